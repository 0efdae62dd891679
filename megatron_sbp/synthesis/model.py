"""The model of a synthesis run: where it lies, whether the tokenizer fits, how it is loaded."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from megatron_sbp.corpus.tokenizer import FILENAME as TOKENIZER
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError, require
from megatron_sbp.manifest import fingerprints
from megatron_sbp.models import export, vocabulary
from megatron_sbp.models.checkpoint import MegatronCheckpoint, is_megatron
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.engine import Engine, EngineOptions, Sampling

if TYPE_CHECKING:
    import torch

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
# What an engine needs beyond the plain dependencies, and the extra that brings it.
_PACKAGES: dict[str, tuple[tuple[str, str | None], ...]] = {
    "megatron": (("einops", None),),
    "vllm": (("vllm", "synthesis"),),
}
_WEIGHTS = ("*.safetensors", "*.bin", "config.json")


class Source(Protocol):
    """A model on disk."""

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""

    def files(self) -> list[Path]:
        """The files that decide what the model computes, sorted."""

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of these files, by path.

        Raises:
            InputError: If one is not as it was saved, where that is known.
        """

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the model's.

        Raises:
            InputError: Naming both.
        """

    def prepare(self, tokenizer: Tokenizer, directory: Path) -> Path:
        """What the engine loads; ``directory`` if it has to be made."""


def find(load: str, engine: str = "hf") -> Source:
    """The model in a directory that Megatron saved to, or in a Hugging Face directory.

    Args:
        load: The directory.
        engine: What will load it: hf, megatron or vllm.

    Raises:
        InputError: If there is none, the engine cannot load it, or is not installed.
    """
    for package, extra in _PACKAGES.get(engine, ()):
        if find_spec(package) is None:
            require(package, package=package, extra=extra)  # says how to install it
    if is_megatron(load):
        return MegatronSource(load, export=engine != "megatron")
    source = HuggingFaceSource(load)
    if engine == "megatron":
        raise InputError(
            f"{load}: is a Hugging Face directory, and --engine megatron needs one that Megatron "
            "saved to; use --engine hf or vllm"
        )
    return source


class MegatronSource:
    """The newest Megatron checkpoint in a directory.

    Args:
        load: The directory.
        export: Whether it is exported to a Hugging Face directory, or taken as it is.
    """

    def __init__(self, load: str, export: bool):
        self._checkpoint = MegatronCheckpoint(load)
        self._export = export

    @property
    def context(self) -> int:
        """Most tokens of a sequence."""
        return self._checkpoint.args.max_position_embeddings

    def files(self) -> list[Path]:
        """The files of the checkpoint."""
        return self._checkpoint.files()

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Theirs."""
        return self._checkpoint.fingerprints()

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the model's, and a model that cannot be exported."""
        if self._export:
            vocabulary.check(self._checkpoint, tokenizer)
        else:
            vocabulary.check_tokenizer(self._checkpoint, tokenizer)

    def prepare(self, tokenizer: Tokenizer, directory: Path) -> Path:
        """The checkpoint, or its export to ``directory``, unless that was done before."""
        if not self._export:
            return self._checkpoint.directory
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

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Theirs."""
        return fingerprints(self.files())

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
    options: EngineOptions,
    directory: Path,
    sampling: Sampling,
    ranks: Ranks,
    *,
    eod: int,
    vocab_size: int,
) -> Engine:
    """Load a model into an engine, on all ranks.

    Args:
        options: Which engine, and what it has of the machine.
        directory: What ``Source.prepare`` returned.
        sampling: How to draw tokens.
        ranks: All ranks of the run; those of a machine take its CUDA devices in turn.
        eod: Token that ends a document.
        vocab_size: Number of the tokenizer's ids; megatron draws none that only pads them.

    Raises:
        InputError: If the model cannot be loaded, or what the engine needs is not there.
    """
    import torch

    torch.set_num_threads(ranks.cores)
    if options.engine == "vllm":
        from megatron_sbp.synthesis.vllm import VllmEngine

        return VllmEngine(directory, sampling, options, ranks, eod=eod)
    device = choose_device(options, ranks)
    if options.engine == "megatron":
        with warnings.catch_warnings(action="ignore"):  # It warns of all that is not installed.
            _prepare_inference(options, device)
            from megatron_sbp.synthesis.megatron import MegatronEngine

            checkpoint = MegatronCheckpoint(directory)
            return MegatronEngine(
                checkpoint, sampling, options, ranks, device, eod=eod, vocab_size=vocab_size
            )
    from megatron_sbp.synthesis.hf import HuggingFaceEngine

    return HuggingFaceEngine(
        directory,
        eod=eod,
        sampling=sampling,
        batch_size=options.batch_size,
        dtype=getattr(torch, _DTYPES[options.dtype]),
        device=device,
    )


def choose_device(options: EngineOptions, ranks: Ranks) -> "torch.device":
    """The device of this rank.

    Raises:
        InputError: If it is to be a GPU, and there is none.
    """
    import torch

    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise InputError("--device cuda: there is no CUDA device here; use --device cpu")
    if options.device == "cpu" or not there:
        return torch.device("cpu")
    return torch.device("cuda", ranks.local_rank % torch.cuda.device_count())


def prepare_megatron(device: "torch.device") -> None:
    """Have the CPU platform in force before Megatron is imported, where there is no GPU.

    Raises:
        InputError: If Megatron would not take the device.
    """
    import torch

    from megatron_sbp.training import platform

    if device.type == "cpu" and torch.cuda.is_available():
        raise InputError(
            "--device cpu: Megatron takes the GPU of a machine that has one; use --engine hf"
        )
    platform.install()


def _prepare_inference(options: EngineOptions, device: "torch.device") -> None:
    """Have Megatron's inference run on this device, or say why it does not.

    Raises:
        InputError: Naming the flag or the package.
    """
    prepare_megatron(device)
    if device.type == "cpu":
        from megatron_sbp.synthesis import megatron_cpu

        megatron_cpu.install()
        return
    from megatron.core.transformer import attention
    from megatron.core.utils import is_fa_min_version

    if options.dtype == "fp32":
        raise InputError(
            "--dtype fp32: Megatron attends on a GPU through FlashAttention, which has no fp32; "
            "give --dtype bf16 or use --engine hf"
        )
    if not (attention.HAVE_FA4 or attention.HAVE_FA3 or is_fa_min_version("2.7.3")):
        raise InputError(
            "--engine megatron attends through FlashAttention, which is not there or older than "
            "2.7.3; install flash-attn or use --engine vllm or hf"
        )
