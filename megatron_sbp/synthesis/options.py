"""Options of a synthesis run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError
from megatron_sbp.synthesis.engine import EngineOptions, Sampling
from megatron_sbp.synthesis.seeds import TOKENS, UNIFORM
from megatron_sbp.synthesis.shards import Shards

# Options that do not decide the content; the content of these paths is among the inputs.
_FREE = """load corpus seed_corpus pairs output_prefix tokenizer batch_size device
tensor_model_parallel_size pipeline_model_parallel_size gpu_memory_share""".split()
_LEAST_PER_SHARD = 64
_MOST_SHARDS = 1 << 16
_TOKENS = 256  # of a document, where a number of shards is to be foreseen


@dataclass(kw_only=True, slots=True)
class SynthesizeOptions(EngineOptions):
    """Options of ``tools/synthesize.py``."""

    load: str = field(metadata={"metavar": "CKPT"})
    """The tuned synthesizer: a directory that Megatron saved to, or a Hugging Face directory."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus that seeds are drawn from, with the model's tokenizer."""
    output_prefix: str = field(metadata={"metavar": "S"})
    """Path without .bin/.idx of the synthetic corpus; its directory must be empty or not exist."""
    num_tokens: int | None = field(default=None, metadata={"metavar": "N"})
    """Stop with the document that brings the corpus to N tokens."""
    num_documents: int | None = field(default=None, metadata={"metavar": "N"})
    """Stop after N documents; give this or --num-tokens."""
    seed_corpus: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Draw seeds from these prefixes in the place of --corpus, such as those of an earlier round;
    --corpus then lends its tokenizer alone."""
    seed_weights: str = field(default=UNIFORM, metadata={"metavar": "uniform|tokens|FILE"})
    """Draw each document with equal probability, by its length, or by a weight of its own, from a
    .npy file with a number for every document of the seed corpus."""
    context_documents: int = field(default=1, metadata={"metavar": "K"})
    """The --sbp-context-documents that the synthesizer was tuned with: the seed and up to K - 1 of
    its neighbors in --pairs, the most similar first."""
    pairs: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Pair store over the seed corpus; for, and only for, --context-documents above 1."""
    part: str | None = field(default=None, metadata={"metavar": "I/N"})
    """Make the I-th of N parts of the run, from 1/N to N/N, each as a job of its own with an output
    of its own; together they are the whole run."""
    model_generation: int | None = field(default=None, metadata={"metavar": "N"})
    """The largest generation of the documents that the model was trained on, 0 for real ones
    alone. By default it is found from the arguments in the checkpoint."""
    temperature: float = 1.0
    """Divisor of the logits; 0 takes the most probable token."""
    top_p: float = 0.9
    """Draw from the smallest set of most probable tokens with this much probability; 1: all."""
    top_k: int = 0
    """Draw from the K most probable tokens; 0: all."""
    max_seed_tokens: int = 0
    """Cut seeds to this many tokens; 0: half of the context, or what --max-new-tokens leaves."""
    max_new_tokens: int = 0
    """End a document after this many tokens; 0: when the context is full."""
    template: str = "{bos}{d1}{sep}{d2}{eod}"
    """The --sbp-template that the synthesizer was tuned with; it must end with {eod}."""
    separator: str = "<|sep|>"
    """The --sbp-separator that it was tuned with."""
    seed: int = 0
    """Seed of the run: it and a document's number decide everything random about the document."""
    documents_per_shard: int = field(default=0, metadata={"metavar": "DOCUMENTS"})
    """Documents that are written, and kept if the run is interrupted, together; 0: 64, or more if
    that would make more than 65,536 shards, with documents of 256 tokens."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the corpus, by default `tokenizer/` beside the first prefix."""

    def __post_init__(self) -> None:
        EngineOptions.__post_init__(self)  # super() does not find a class with slots
        if (self.num_tokens is None) == (self.num_documents is None):
            raise InputError("give either --num-tokens or --num-documents")
        for name in ("num_tokens", "num_documents", "context_documents"):
            self._check(name, 1)
        for name in """temperature top_k max_seed_tokens max_new_tokens seed documents_per_shard
        model_generation""".split():
            self._check(name, 0)
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p {self.top_p}: must be above 0 and at most 1")
        if (self.context_documents > 1) != (self.pairs is not None):
            raise InputError(
                f"--context-documents {self.context_documents}, --pairs {self.pairs}: a context of "
                "several documents needs the pair store they are taken from, one of one needs none"
            )
        parts = self.numbered_part[1]
        for name in ("num_tokens", "num_documents"):
            self._check(name, parts)

    def _check(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value}: must be at least {least}")

    @property
    def numbered_part(self) -> tuple[int, int]:
        """Number of this part of the run, from 0, and how many there are."""
        if self.part is None:
            return 0, 1
        number, slash, parts = self.part.partition("/")
        if slash and number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts):
            return int(number) - 1, int(parts)
        raise InputError(f"--part {self.part}: must be from 1/N to N/N, such as 3/8")

    def shards(self, directory: Path) -> Shards:
        """The shards of this part of the run.

        Args:
            directory: Where they lie.
        """
        part, parts = self.numbered_part
        documents = tokens = None
        if self.num_documents is not None:
            documents = (self.num_documents - part + parts - 1) // parts
        if self.num_tokens is not None:
            tokens = (self.num_tokens - part + parts - 1) // parts
        expected = documents or (tokens or 0) // _TOKENS
        per_shard = self.documents_per_shard or max(_LEAST_PER_SHARD, -(-expected // _MOST_SHARDS))
        return Shards(directory, per_shard, documents, tokens, part, parts)

    @property
    def weights_file(self) -> str | None:
        """The file of ``seed_weights``, if it is one."""
        return None if self.seed_weights in (UNIFORM, TOKENS) else self.seed_weights

    @property
    def sampling(self) -> Sampling:
        """How the next token is drawn."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k)

    def content(self) -> dict[str, Any]:
        """What decides the content of the output, besides the inputs."""
        content = {name: value for name, value in asdict(self).items() if name not in _FREE}
        if self.weights_file:
            content["seed_weights"] = "file"
        return content
