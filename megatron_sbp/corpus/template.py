"""How related documents become a sequence of tokens: what stands before, between and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Self

import numpy as np

from megatron_sbp.errors import InputError

_FIELDS = ("bos", "d1", "sep", "d2", "eod")
_KNOWN = " ".join(f"{{{name}}}" for name in _FIELDS)


@dataclass(frozen=True, slots=True)
class Template:
    """Token ids around the two documents of a pair: before, d1, between, d2, after.

    Several documents may stand in the place of d1, with the separator between them.
    """

    before: tuple[int, ...]
    """Ids before d1."""
    between: tuple[int, ...]
    """Ids between d1 and d2."""
    after: tuple[int, ...]
    """Ids after d2."""
    separator: tuple[int, ...] = ()
    """Ids between documents in the place of d1."""

    @classmethod
    def parse(
        cls,
        template: str,
        separator: str,
        encode: Callable[[str], Sequence[int]],
        *,
        bos: int,
        eod: int,
    ) -> Self:
        """Turn a template such as ``{bos}{d1}{sep}{d2}{eod}`` into ids.

        ``{sep}`` stands for the separator's text. All text between two of the other fields is
        tokenized in one piece. A brace that is text is doubled.

        Args:
            template: The template.
            separator: Text of ``{sep}``.
            encode: Gives the ids of a text without adding any; a special token that the text names
                becomes that token.
            bos: Id of ``{bos}``.
            eod: Id of ``{eod}``.

        Raises:
            InputError: If a field is unknown, ``{d1}`` or ``{d2}`` is not there exactly once,
                ``{d2}`` comes first, or the separator has no tokens.
        """
        pieces = _pieces(template)
        names = [name for _, name in pieces]
        for document in ("d1", "d2"):
            if names.count(document) != 1:
                raise InputError(
                    f"template {template!r}: has {{{document}}} {names.count(document)} times; "
                    "put each of {d1} and {d2} in once"
                )
        if names.index("d1") > names.index("d2"):
            raise InputError(
                f"template {template!r}: has {{d2}} before {{d1}}; put {{d1}} first, and choose "
                "which document it is with --sbp-direction"
            )
        if "sep" in names and not encode(separator):
            raise InputError(f"separator {separator!r}: has no tokens; give a token or some text")
        parts: list[tuple[int, ...]] = []
        ids: list[int] = []
        text = ""
        for literal, name in [*pieces, ("", "end")]:
            text += literal + (separator if name == "sep" else "")
            if name in ("", "sep"):
                continue
            ids += encode(text) if text else []
            text = ""
            if name in ("bos", "eod"):
                ids.append(bos if name == "bos" else eod)
            else:
                parts.append(tuple(ids))
                ids = []
        before, between, after = parts
        return cls(before, between, after, tuple(encode(separator)))

    def prompt(self, first: np.ndarray) -> np.ndarray:
        """What a model is given to continue with d2: int64, for the tokens in the place of d1."""
        return np.concatenate([self.before, first, self.between]).astype(np.int64)

    def document(self, continuation: np.ndarray) -> np.ndarray:
        """d2, from what a model continued with up to the last token of ``after``."""
        closing = self.after[:-1]
        ends = len(continuation) - len(closing)
        closed = bool(closing) and tuple(continuation[max(ends, 0) :].tolist()) == closing
        return continuation[:ends] if closed else continuation


def join(documents: Sequence[np.ndarray], separator: Sequence[int]) -> np.ndarray:
    """What stands in the place of d1 for several documents.

    Args:
        documents: Integers [tokens] each, at least one.
        separator: Ids between two of them.

    Returns:
        Integers [tokens of all].
    """
    if len(documents) == 1:
        return documents[0]
    parts = [part for document in documents for part in (separator, document)]
    return np.concatenate(parts[1:]).astype(np.int64)


def _pieces(template: str) -> list[tuple[str, str]]:
    """Every field's name with the text before it; an empty name where a piece is text only."""
    try:
        parsed = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"template {template!r}: {error}; double a brace that is text ({{{{ or }}}})"
        ) from None
    for _, name, form, conversion in parsed:
        if name is not None and (name not in _FIELDS or form or conversion):
            raise InputError(
                f"template {template!r}: has a field {{{name}}} that is not one of {_KNOWN}; "
                "correct it, or double its braces if they are text"
            )
    return [(literal, name or "") for literal, name, _, _ in parsed]
