"""What an encoder is to the rest: a specification that is cheap, and a model loaded from it."""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_sbp.corpus.documents import Corpus


@dataclass(slots=True, eq=False)
class Encoded:
    """Vectors of some documents."""

    vectors: np.ndarray
    """float32 [documents, d], of any length; a document without content may have a zero row."""
    cut: int
    """Number of documents that were longer than the encoder reads."""


class Encoder(Protocol):
    """A loaded model."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Vectors of texts, in their order."""

    def encode_documents(self, corpus: Corpus, documents: Sequence[int]) -> Encoded:
        """Vectors of documents of the corpus that the encoder was opened for, in their order."""


class EncoderSpec(ABC):
    """Which encoder, with everything resolved that decides its vectors.

    Making one reads a few small files and no weights into memory, so that a finished output is
    recognised without loading a model. It can be pickled.
    """

    name: str
    """What the user called it."""

    @property
    @abstractmethod
    def parallel(self) -> bool:
        """Whether several processes, one per core, encode faster than one."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Rough resident size of one process with the model loaded."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What decides the vectors, checksums of weights included, for the manifest."""

    @abstractmethod
    def prepare(self, corpus: Corpus, directory: Path) -> None:
        """Make once what every process then opens: a model exported, what the corpus teaches.

        Args:
            corpus: What will be encoded.
            directory: An empty directory to write to.

        Raises:
            InputError: If encoder and corpus do not fit.
        """

    @abstractmethod
    def open(
        self, corpus: Corpus, directory: Path, *, threads: int | None = None, gpu: int = 0
    ) -> Encoder:
        """Load the model.

        Args:
            corpus: What will be encoded.
            directory: What ``prepare`` wrote.
            threads: Threads on a CPU, None for the library's own choice.
            gpu: Number of the CUDA device, if it runs on one.

        Raises:
            InputError: If it cannot be loaded.
        """

    def load(self, corpus: Corpus) -> Encoder:
        """Prepare and open in one step, for texts few enough for one process."""
        with tempfile.TemporaryDirectory() as directory:
            self.prepare(corpus, Path(directory))
            return self.open(corpus, Path(directory))


def sample(corpus: Corpus, most: int, seed: int) -> list[int]:
    """Documents to learn from, ascending: all, or ``most`` of them drawn at random."""
    if len(corpus) <= most:
        return list(range(len(corpus)))
    draw = np.random.default_rng(seed)
    return np.sort(draw.choice(len(corpus), most, replace=False)).tolist()
