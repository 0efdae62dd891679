"""What every generation engine does: prompts in, continuations out, in any order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from megatron_sbp.errors import InputError

END_OF_DOCUMENT, LENGTH = 0, 1
"""Why a document ended: its end-of-document token was drawn, or the maximum was reached."""


@dataclass(kw_only=True, slots=True)
class EngineOptions:
    """Which engine generates, and what it has of the machine."""

    engine: Literal["hf", "megatron", "vllm"] = "hf"
    """What generates. hf: Transformers with a key-value cache; in fp32 on one platform the same
    document always has the same tokens. megatron: Megatron's own inference from its checkpoint; the
    same random numbers per document, but rounding depends on what is computed together. vllm: from
    the exported checkpoint; a seed per document, rounding as for megatron."""
    batch_size: int = field(default=64, metadata={"metavar": "DOCUMENTS"})
    """Documents that a worker (a rank, or the ranks of one Megatron model) works on at a time."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What to compute in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto: on a CUDA device if there is one."""
    tensor_model_parallel_size: int = field(default=1, metadata={"metavar": "DEVICES"})
    """Devices that share every layer of one model; for megatron and vllm. Megatron takes a rank for
    each of them, vLLM starts the processes it needs itself."""
    pipeline_model_parallel_size: int = field(default=1, metadata={"metavar": "DEVICES"})
    """Devices that one model's layers are dealt out to; likewise."""
    fp8_format: Literal["e4m3", "hybrid"] | None = None
    """Matrix products of megatron in FP8, by Transformer Engine."""
    fp8_recipe: Literal["tensorwise", "blockwise", "mxfp8"] = "tensorwise"
    """How FP8 scales. There is no `delayed`, whose scales are those of a run's past steps."""
    gpu_memory_share: float = field(default=0.9, metadata={"metavar": "SHARE"})
    """The share of a GPU's memory that weights, keys and values may take; for megatron and vllm."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "tensor_model_parallel_size", "pipeline_model_parallel_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: must be at least 1")
        if not 0 < self.gpu_memory_share <= 1:
            raise InputError(
                f"--gpu-memory-share {self.gpu_memory_share}: must be above 0 and at most 1"
            )
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
            if self.engine == "hf" and getattr(self, name) > 1:
                raise InputError(
                    f"{_flag(name)} {getattr(self, name)}: --engine hf has the whole model on one "
                    "device; use megatron or vllm"
                )
        if self.fp8_format is not None and self.engine != "megatron":
            raise InputError(
                f"--fp8-format {self.fp8_format}: --engine {self.engine} does not compute in FP8; "
                "use megatron"
            )

    @property
    def devices(self) -> int:
        """Devices that one model is spread over."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size

    @property
    def ranks_per_worker(self) -> int:
        """Ranks that work on the same documents."""
        return self.devices if self.engine == "megatron" else 1

    def workers(self, ranks: int) -> int:
        """How many models so many ranks have.

        Raises:
            InputError: If that is no whole number.
        """
        if ranks % self.ranks_per_worker:
            raise InputError(
                f"--tensor-model-parallel-size {self.tensor_model_parallel_size}, "
                f"--pipeline-model-parallel-size {self.pipeline_model_parallel_size}: a model of "
                f"--engine megatron takes {self.devices} ranks, and there are {ranks}; start a "
                "multiple of that"
            )
        return ranks // self.ranks_per_worker


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampling:
    """How the next token is drawn from the model's distribution."""

    temperature: float
    """Divisor of the logits; 0 takes the most probable token."""
    top_p: float
    """Smallest set of most probable tokens with at least this mass; 1 keeps all."""
    top_k: int
    """Number of most probable tokens kept; 0 keeps all."""


@dataclass(kw_only=True, slots=True, eq=False)
class Request:
    """One document to generate."""

    number: int
    """Document number in the run."""
    prompt: np.ndarray
    """int64 [prompt tokens], at least two."""
    uniforms: np.ndarray
    """float64 [maximum of new tokens] in [0, 1): what decides each token, and how many at most."""

    @property
    def seed(self) -> int:
        """The first of the document's random numbers as an integer, for an engine with its own."""
        return int(self.uniforms[0] * 2**53)


@dataclass(kw_only=True, slots=True, eq=False)
class Continuation:
    """One generated document."""

    number: int
    """Document number in the run."""
    tokens: np.ndarray
    """int64 [new tokens], without an end-of-document token."""
    finish_reason: int
    """``END_OF_DOCUMENT`` or ``LENGTH``."""

    @classmethod
    def of(cls, request: Request, tokens: list[int], eod: int) -> "Continuation":
        """The result of a request whose tokens may end with the end-of-document token."""
        ended = tokens[-1:] == [eod]
        return cls(
            number=request.number,
            tokens=np.array(tokens[:-1] if ended else tokens, np.int64),
            finish_reason=END_OF_DOCUMENT if ended else LENGTH,
        )


class Engine(Protocol):
    """A language model that continues prompts."""

    context: int
    """Most tokens that a prompt and its continuation may have together."""
    vocab_size: int
    """Number of token ids that the model knows."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """Continue every prompt.

        Requests are taken one by one as there is room for them; the continuations come in the order
        in which they end. What a request gives depends on nothing but the request, up to rounding.
        A rank that has a part of another rank's model takes and gives nothing, and returns when
        that rank is done.
        """
        ...
