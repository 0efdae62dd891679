"""Configuration of the paired-document dataset, and the lengths that follow from it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_config import BlendedMegatronDatasetConfig

from megatron_sbp import manifest
from megatron_sbp.errors import InputError


@dataclass
class PairedDocumentDatasetConfig(BlendedMegatronDatasetConfig):
    """Megatron's dataset configuration and what pairs need besides."""

    pairs: tuple[str, ...] = ()
    """Directories of the pair stores."""
    pairs_fingerprints: tuple[str, ...] = field(init=False, default=())
    """SHA-256 of each pair store's manifest; set from ``pairs``."""
    before: tuple[int, ...] = ()
    """Token ids before d1."""
    separator: tuple[int, ...] = ()
    """Token ids between the documents of a context of several."""
    between: tuple[int, ...] = ()
    """Token ids between d1 and d2."""
    after: tuple[int, ...] = ()
    """Token ids after a d2 that was not cut."""
    eod: int = 0
    """Token id that is stripped from the end of both documents as they are read."""
    pad: int = 0
    """Token id that fills a row; never supervised."""
    context_documents: int = 1
    """Most documents in the place of d1: itself and its best neighbors in the pair store. All that
    is said of d1 elsewhere then holds for these documents with the separator between them."""
    direction: Literal["forward", "backward", "both", "random"] = "forward"
    """Which document of a stored pair is d1: anchor, neighbor, each once, one by the seed."""
    packing: bool = True
    """Several pairs in a row; otherwise one."""
    overflow: Literal["truncate", "skip"] = "truncate"
    """What becomes of a pair that is longer than a row."""
    truncate_d1: Literal["head", "tail"] = "tail"
    """The end of d1 that is cut off."""
    d1_share: float = 0.5
    """Share of the room of both documents that d1 keeps before d2 is cut, too."""
    min_d2: int = 1
    """Pairs of whose d2 fewer tokens are left are skipped."""
    multiple: int = 1
    """The segment of a pair in a packed row is padded to a multiple of this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pairs_fingerprints = tuple(
            manifest.fingerprint(Path(path) / manifest.FILENAME)["sha256"] for path in self.pairs
        )
        if not self.before and not self.between:
            raise InputError(
                "the template has nothing before d2 but d1, so the first token of d2 cannot be "
                "predicted where d1 is empty; put {bos} before {d1} or {sep} after it"
            )
        if self.context_documents < 1:
            raise InputError(
                f"--sbp-context-documents {self.context_documents}: must be at least 1"
            )
        if self.context_documents > 1 and not self.separator:
            raise InputError("--sbp-context-documents needs --sbp-separator between documents")
        if not 0 <= self.d1_share <= 1:
            raise InputError(f"--sbp-d1-share {self.d1_share}: must be from 0 to 1")
        if self.min_d2 < 1:
            raise InputError(f"--sbp-min-d2 {self.min_d2}: must be at least 1")
        if self.sequence_length % self.multiple:
            raise InputError(
                f"--seq-length {self.sequence_length}: must be a multiple of {self.multiple}, to "
                "which every pair is padded (--sbp-segment-multiple)"
            )
        if self.room < self.min_d2:
            raise InputError(
                f"--seq-length {self.sequence_length}: the template leaves {self.room} tokens for "
                f"both documents, and --sbp-min-d2 is {self.min_d2}; make the rows longer"
            )

    @property
    def room(self) -> int:
        """Tokens of a row for d1 and d2: a row's tokens are one more than its positions."""
        fixed = len(self.before) + len(self.between) + len(self.after)
        return self.sequence_length + 1 - fixed


class Segment(NamedTuple):
    """A pair as it stands in a row, or many, int64 or bool [n] each."""

    first: Any
    """Tokens of d1 that are kept."""
    second: Any
    """Tokens of d2 that are kept."""
    whole: Any
    """Whether all of d2 is, which is then followed by ``after``."""
    positions: Any
    """Positions with real tokens and labels."""
    size: Any
    """Positions with the padding to ``multiple``."""

    def with_first(self, kept: int) -> "Segment":
        """The same segment with another d1, of which no more is kept."""
        positions = self.positions - self.first + kept
        return self._replace(first=kept, positions=positions)


class Room:
    """What a row has room for.

    Args:
        config: Of the row.
    """

    def __init__(self, config: PairedDocumentDatasetConfig):
        self.tokens = config.room
        """Tokens of d1 and d2 together."""
        self._share = int(config.d1_share * config.room)
        # Labels are the tokens one step later, so that a pair takes a position less than tokens.
        self._fixed = len(config.before) + len(config.between) - 1
        self._after = len(config.after)
        self._multiple = config.multiple

    def fit(
        self,
        first: Any,
        second: Any,
        smaller: Callable[[Any, Any], Any] = np.minimum,
        larger: Callable[[Any, Any], Any] = np.maximum,
    ) -> Segment:
        """Cut pairs to the room.

        d1 gives way first, but not below its share of the room; then d2 does. With room for 400
        and a share of 0.5, documents of (300, 150) tokens get (250, 150), documents of (300, 300)
        get (200, 200).

        Args:
            first: Lengths of d1, int64 [n] or one.
            second: Lengths of d2, likewise.
            smaller: The smaller of two such lengths: for one, ``min`` is many times faster.
            larger: The larger one.
        """
        least = smaller(first, self._share)
        first = smaller(first, larger(self.tokens - second, least))
        kept = smaller(second, self.tokens - first)
        whole = kept == second
        positions = self._fixed + first + kept + self._after * whole
        size = -(-positions // self._multiple) * self._multiple
        return Segment(first, kept, whole, positions, size)
