"""The model of a synthesis run: where it lies, whether the tokenizer fits, how it is loaded."""

import json
from pathlib import Path
from typing import Protocol

from megatron_sbp.corpus.tokenizer import FILENAME as TOKENIZER
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.models import export, vocabulary
from megatron_sbp.models.checkpoint import MegatronCheckpoint, is_megatron
from megatron_sbp.synthesis.engine import Engine, Sampling

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_WEIGHTS = ("*.safetensors", "*.bin", "config.json")


class Source(Protocol):
    """A model on disk."""

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""

    def files(self) -> list[Path]:
        """The files that decide what the model computes, sorted."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the model's.

        Raises:
            InputError: Naming both.
        """

    def prepare(self, tokenizer: Tokenizer, directory: Path) -> Path:
        """The Hugging Face directory of the model; ``directory`` if one has to be made."""


def find(load: str) -> Source:
    """The model in a directory that Megatron saved to, or in a Hugging Face directory.

    Raises:
        InputError: If there is none.
    """
    return MegatronSource(load) if is_megatron(load) else HuggingFaceSource(load)


class MegatronSource:
    """The newest Megatron checkpoint in a directory.

    Args:
        load: The directory.
    """

    def __init__(self, load: str):
        self._checkpoint = MegatronCheckpoint(load)

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""
        return self._checkpoint.args.max_position_embeddings

    def files(self) -> list[Path]:
        """The files of the checkpoint."""
        return self._checkpoint.files()

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the model's, and a model that cannot be exported."""
        vocabulary.check(self._checkpoint, tokenizer)

    def prepare(self, tokenizer: Tokenizer, directory: Path) -> Path:
        """Export to ``directory``, unless that was done before."""
        if not directory.exists():
            partial = directory.with_name(directory.name + ".partial")
            export.write_model(self._checkpoint, tokenizer, partial)
            partial.rename(directory)
        return directory


class HuggingFaceSource:
    """A Hugging Face model directory.

    Args:
        load: The directory.

    Raises:
        InputError: If it has no ``config.json``.
    """

    def __init__(self, load: str):
        self._directory = Path(load)
        if not (self._directory / "config.json").is_file():
            raise InputError(
                f"{load}: holds no model; give a directory that Megatron saved to, or a Hugging "
                "Face directory"
            )

    def _config(self, *names: str) -> int:
        """A number of ``config.json`` by the first of its names that is there.

        Transformers would know all names, but takes seconds to import.
        """
        path = self._directory / "config.json"
        try:
            config = json.loads(path.read_text())
            return next(int(config[name]) for name in names if name in config)
        except (ValueError, TypeError, StopIteration):
            raise InputError(
                f"{path}: gives no {names[0]}; save the model again with save_pretrained"
            ) from None

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""
        return self._config("max_position_embeddings", "n_positions")

    def files(self) -> list[Path]:
        """Configuration and weights."""
        return sorted(path for pattern in _WEIGHTS for path in self._directory.glob(pattern))

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the model's."""
        if (self._directory / TOKENIZER).is_file():
            vocabulary.check_tokens(tokenizer, self._directory)
        known = self._config("vocab_size")
        if known < tokenizer.vocab_size:
            raise InputError(
                f"{tokenizer.directory}: has {tokenizer.vocab_size} ids, but the model in "
                f"{self._directory} knows {known}; give a corpus with the model's tokenizer"
            )

    def prepare(self, tokenizer: Tokenizer, directory: Path) -> Path:
        """The directory itself."""
        return self._directory


def load_engine(
    directory: Path,
    eod: int,
    sampling: Sampling,
    *,
    batch_size: int,
    dtype: str,
    device: str,
    threads: int,
    rank: int,
) -> Engine:
    """Load a model into the hf engine, the only one so far.

    Args:
        directory: Hugging Face directory.
        eod: Token that ends a document.
        sampling: How to draw tokens.
        batch_size: Documents at work at a time.
        dtype: fp32 or bf16.
        device: auto, cpu or cuda.
        threads: CPU threads.
        rank: Of this process; the ranks of a node take its CUDA devices in turn.

    Raises:
        InputError: If the model cannot be loaded, or there is no CUDA device.
    """
    import torch

    from megatron_sbp.synthesis.hf import HuggingFaceEngine

    torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--device cuda: there is no CUDA device here; use --device cpu")
        device = f"cuda:{rank % torch.cuda.device_count()}"
    return HuggingFaceEngine(
        directory,
        eod=eod,
        sampling=sampling,
        batch_size=batch_size,
        dtype=getattr(torch, _DTYPES[dtype]),
        device=torch.device(device),
    )
