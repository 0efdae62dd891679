"""What an encoder is to the rest: a specification that is cheap, and a model loaded from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from megatron_sbp.corpus.documents import Corpus


@dataclass(slots=True, eq=False)
class Encoded:
    """Vectors of some texts."""

    vectors: np.ndarray
    """float32 [texts, d], of any length; a text without content may have a zero row."""
    cut: int
    """Number of texts that were longer than the encoder reads."""


class Encoder(Protocol):
    """A loaded model."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of the texts, in their order."""


class EncoderSpec(Protocol):
    """Which encoder, with everything resolved that decides its vectors.

    Making one reads a few small files and no weights into memory, so that a finished output is
    recognised without loading a model. It can be pickled.
    """

    @property
    def name(self) -> str:
        """What the user called it."""

    @property
    def parallel(self) -> bool:
        """Whether several processes, one per core, encode faster than one."""

    @property
    def memory_bytes(self) -> int:
        """Rough resident size of one process with the model loaded."""

    def settings(self) -> dict[str, Any]:
        """What decides the vectors, checksums of weights included, for the manifest."""

    def load(self, corpus: Corpus, threads: int | None = None) -> Encoder:
        """Load or fit the model.

        Args:
            corpus: What will be encoded; an encoder that learns from it is fitted here.
            threads: Limit of threads, None for the library's own choice.
        """
