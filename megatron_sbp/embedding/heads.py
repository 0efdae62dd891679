"""The head of a text, cut before it is tokenised, where that cannot change its first tokens.

A tokenizer splits a text into words and splits every word by itself. Where a text is cut between a
character and the white space after it, all words before the cut are those of the whole text, except
perhaps the last one, which may have white space at its end. So the first tokens are those of the
whole text if they end before the last word of the head does.
"""

import re
from typing import Any

# Characters per token that nearly every text stays below; one that does not is tokenised whole.
_CHARACTERS = 8
# A space or a line break after a character, which every tokenizer takes for the end of a word.
_END = re.compile(r"\S(?=[ \n])")


def cuts_are_safe(tokenizer: Any) -> bool:
    """Whether a tokenizer is known to split texts into words of its own at white space.

    Those are BERT's, and byte-level ones, whose words are the matches of a regular expression.

    Args:
        tokenizer: A fast tokenizer of ``transformers``.
    """
    backend = tokenizer.backend_tokenizer
    splitters = _parts(backend.pre_tokenizer)
    known = splitters == ["BertPreTokenizer"] or (
        splitters[-1:] == ["ByteLevel"] and set(splitters[:-1]) <= {"Split", "Digits"}
    )
    return (
        known
        and set(_parts(backend.normalizer)) <= {"BertNormalizer", "NFC", "Lowercase"}
        and not any(re.search(r"\s", token) for token in tokenizer.get_added_vocab())
    )


def _parts(component: Any) -> list[str]:
    """Names of the classes that a component of a tokenizer is made of."""
    if component is None:
        return []
    if type(component).__name__ == "Sequence":
        return [type(part).__name__ for part in component]
    return [type(component).__name__]


def cut_where_safe(text: str, tokens: int) -> str:
    """The head of a text that should have more than so many tokens, or all of it."""
    end = _END.search(text, tokens * _CHARACTERS)
    return text[: end.end()] if end else text


def is_certain(encoding: Any) -> bool:
    """Whether the tokens kept of a head are surely the first ones of the whole text.

    Args:
        encoding: Of the head, truncated to the tokens that are kept.
    """
    words = [word for word in encoding.word_ids if word is not None]
    rest = encoding.overflowing
    return bool(rest and words and words[-1] < max(filter(None, rest[-1].word_ids), default=0))
