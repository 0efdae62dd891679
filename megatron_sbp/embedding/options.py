"""Options of the embed stage, and the encoder that they name."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_sbp.embedding import megatron, minilm
from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.embedding.huggingface import HuggingFaceSpec, fetch
from megatron_sbp.embedding.lexical import LexicalSpec
from megatron_sbp.embedding.megatron import MegatronSpec
from megatron_sbp.embedding.transformer import Machine
from megatron_sbp.errors import InputError

_MEGATRON_ONLY = ("layer", "center")
_TRANSFORMERS_ONLY = ("max_length", "pooling", "prompt", "long_documents", "max_windows")


@dataclass(kw_only=True, slots=True)
class EmbedOptions:
    """Options of ``tools/embed_documents.py``."""

    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus (paths without .bin and .idx), in the order that decides document
    ids."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the corpus, by default `tokenizer/` beside the first prefix."""
    encoder: str = field(default="minilm", metadata={"metavar": "NAME"})
    """`minilm`, `lexical`, `megatron:DIR` with a directory that Megatron saved to, or the directory
    or Hub name of a Hugging Face model."""
    max_length: int = field(default=0, metadata={"metavar": "TOKENS"})
    """Tokens of the encoder that it reads at a time, of every document; 0: what the model was made
    for."""
    long_documents: Literal["head", "mean"] = "head"
    """Of a document longer than that: read its head, or take the mean over windows of that many
    tokens."""
    max_windows: int = field(default=8, metadata={"metavar": "WINDOWS"})
    """Windows read of a document with --long-documents mean."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """How hidden states become one vector; auto: as the model's own files say, mean if they say
    nothing."""
    prompt: str | None = field(default=None, metadata={"metavar": "TEXT"})
    """Text put before every document, by default the model's own; not for `megatron:`."""
    layer: int = field(default=0, metadata={"metavar": "N"})
    """Hidden layer of `megatron:` that is pooled, from 1; 0: the last one."""
    center: bool | None = None
    """Subtract the mean vector, which `megatron:` does by default."""
    dimensions: int = field(default=0, metadata={"metavar": "NUMBERS"})
    """Dimensions of a vector: of `lexical` (0: 256), or the first ones of a model's (0: all)."""
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of weights and products; auto: bf16 where the device multiplies it natively."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a model runs; auto: on a CUDA device if there is one."""
    workers: int = field(default=0, metadata={"metavar": "PROCESSES"})
    """Encoding processes of a rank on a CPU; 0: one per core, as many as fit into memory."""
    batch_tokens: int = field(default=0, metadata={"metavar": "TOKENS"})
    """Padded tokens of one batch; 0: 2,048 on a CPU, 131,072 on a GPU."""
    documents_per_shard: int = field(default=65536, metadata={"metavar": "DOCUMENTS"})
    """Documents of one output file, which one rank writes; an interrupted run continues at the
    files that are missing."""
    fit_documents: int = field(default=0, metadata={"metavar": "DOCUMENTS"})
    """Documents drawn at random that `lexical` learns from (0: 100,000), or that the mean vector is
    taken over (0: 1,024)."""
    seed: int = 0
    """Seed of that draw."""

    def __post_init__(self) -> None:
        for name in (
            "max_length",
            "layer",
            "dimensions",
            "workers",
            "batch_tokens",
            "fit_documents",
            "seed",
        ):
            _at_least(name, getattr(self, name), 0)
        for name in ("documents_per_shard", "max_windows"):
            _at_least(name, getattr(self, name), 1)

    def spec(self) -> EncoderSpec:
        """The encoder that the options name.

        Raises:
            InputError: If there is none of that name, or an option is not for it.
        """
        if self.encoder == "lexical":
            self._refuse(*_MEGATRON_ONLY, *_TRANSFORMERS_ONLY)
            return LexicalSpec(
                dimensions=self.dimensions or 256,
                fit_documents=self.fit_documents or 100_000,
                seed=self.seed,
            )
        shared: dict[str, Any] = {
            "machine": Machine.resolve(
                None if self.dtype == "auto" else self.dtype,
                None if self.device == "auto" else self.device,
                self.batch_tokens,
            ),
            "pooling": None if self.pooling == "auto" else self.pooling,
            "max_length": self.max_length,
            "long_documents": self.long_documents,
            "max_windows": self.max_windows,
            "dimensions": self.dimensions,
        }
        if self.encoder.startswith(megatron.PREFIX):
            self._refuse("prompt")
            return MegatronSpec.resolve(
                self.encoder.removeprefix(megatron.PREFIX),
                layer=self.layer,
                center=self.center is not False,
                fit_documents=self.fit_documents or 1024,
                seed=self.seed,
                **shared,
            )
        self._refuse(*_MEGATRON_ONLY, "fit_documents")
        directory = minilm.locate() if self.encoder == "minilm" else fetch(self.encoder)
        return HuggingFaceSpec.resolve(self.encoder, directory, prompt=self.prompt, **shared)

    def _refuse(self, *names: str) -> None:
        """Raise if an option was given that the encoder has no use for."""
        defaults = {entry.name: entry.default for entry in dataclasses.fields(self)}
        for name in names:
            if (value := getattr(self, name)) != defaults[name]:
                flag = "--" + name.replace("_", "-")
                shown = flag if value is True else f"{flag} {value}"
                shown = f"--no-{name}" if value is False else shown
                raise InputError(f"{shown}: is not for --encoder {self.encoder}; leave it out")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        flag = "--" + name.replace("_", "-")
        raise InputError(f"{flag} {value}: must be at least {least}")
