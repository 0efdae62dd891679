"""Options of the filter stage."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.errors import InputError
from megatron_sbp.mining.layout import parse_bytes


@dataclass(kw_only=True, slots=True)
class FilterOptions:
    """Options of ``tools/filter_synthetic.py``."""

    synthetic: list[str] = field(metadata={"metavar": "S"})
    """Prefixes of the synthetic corpus, such as the parts of an array job; one is written."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the real corpus; those that the seeds come from must be among them. Synthetic
    seeds are read where they lay when the documents were made."""
    output_prefix: str | None = field(default=None, metadata={"metavar": "F"})
    """Path without .bin/.idx of the filtered corpus; needed unless --dry-run."""
    dry_run: bool = False
    """Say what would be left out, and write nothing."""
    min_tokens: int = field(default=16, metadata={"metavar": "TOKENS"})
    """Leave out documents with fewer tokens, the end-of-document token not counted."""
    repetition: bool = True
    """Leave out documents that break MassiveText's rules on repetition."""
    max_containment: float = field(default=0.8, metadata={"metavar": "SHARE"})
    """Leave out documents of which this share of the 5-word shingles, or more, is in the seed."""
    min_similarity: float | None = field(default=None, metadata={"metavar": "COSINE"})
    """Leave out documents that are less similar to their seed; needs --encoder."""
    max_similarity: float | None = field(default=None, metadata={"metavar": "COSINE"})
    """Leave out documents that are more similar to their seed; needs --encoder."""
    encoder: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Encoder of the similarity: minilm, lexical, megatron:DIR, or the directory or Hub name of a
    Hugging Face model."""
    embeddings: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Embeddings of --corpus by that encoder, so that seeds are not embedded again."""
    memory: str = field(default="4G", metadata={"metavar": "SIZE"})
    """Memory of a process for the search of near duplicates, such as 512M or 64G; if it does not
    hold all synthetic documents, the corpora are read several times."""

    def __post_init__(self) -> None:
        if self.output_prefix is None and not self.dry_run:
            raise InputError("give --output-prefix F, or --dry-run to write nothing")
        if self.min_tokens < 0:
            raise InputError(f"--min-tokens {self.min_tokens}: must be at least 0")
        if not 0 < self.max_containment <= 1:
            raise InputError(
                f"--max-containment {self.max_containment}: must be above 0 and at most 1"
            )
        for name in ("min_similarity", "max_similarity"):
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            if value is not None and not -1 <= value <= 1:
                raise InputError(f"{flag} {value}: must be a cosine, from -1 to 1")
            if value is not None and self.encoder is None:
                raise InputError(f"{flag} {value}: needs --encoder NAME")
        if self.lowest > self.highest:
            raise InputError(
                f"--min-similarity {self.lowest}: is above --max-similarity {self.highest}"
            )
        for name in ("encoder", "embeddings"):
            if getattr(self, name) is not None and not self.looks_at_similarity:
                raise InputError(
                    f"--{name} {getattr(self, name)}: give --min-similarity or --max-similarity"
                )
        _ = self.memory_bytes

    @property
    def memory_bytes(self) -> int:
        """Bytes for the search of near duplicates."""
        return parse_bytes(self.memory, "--memory")

    @property
    def looks_at_similarity(self) -> bool:
        """Whether the similarity to the seed is limited."""
        return self.min_similarity is not None or self.max_similarity is not None

    @property
    def lowest(self) -> float:
        """The smallest similarity that passes."""
        return -np.inf if self.min_similarity is None else self.min_similarity

    @property
    def highest(self) -> float:
        """The largest similarity that passes."""
        return np.inf if self.max_similarity is None else self.max_similarity

    def content(self, encoder: EncoderSpec | None) -> dict[str, Any]:
        """What decides the content of the output, besides the inputs."""
        names = ("min_tokens", "repetition", "max_containment", "min_similarity", "max_similarity")
        settings = None if encoder is None else encoder.settings()
        return {name: getattr(self, name) for name in names} | {"encoder": settings}
