"""Options of ``tools/mine_pairs.py``."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from megatron_sbp.errors import InputError


@dataclass(kw_only=True, slots=True)
class MineOptions:
    """What to mine and which pairs to keep."""

    embeddings: str = field(metadata={"metavar": "DIR"})
    """Directory of embeddings-*.npy."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    corpus: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus that was embedded, in the same order; without it the filters that need
    tokens are off."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the corpus, by default `tokenizer/` beside the first prefix."""
    min_similarity: float = 0.75
    """Lowest inner product of a pair, -1 to 1."""
    max_similarity: float | None = None
    """Highest inner product of a pair; by default no limit."""
    neighbors: int = 32
    """Pairs kept per anchor at most: those with the highest similarity."""
    candidates: int = 0
    """Nearest documents inside the similarity limits that the filters choose from, per anchor; 0:
    twice --neighbors."""
    search: str = field(default="exact", metadata={"metavar": "METHOD"})
    """`exact`, or `faiss:FACTORY[:PARAMETERS]` for a FAISS index, such as
    `faiss:IVF256,Flat:nprobe=16`."""
    direction: Literal["both", "one"] = "both"
    """Of pairs found both ways, (a, b) and (b, a), keep both or one."""
    max_anchors_per_neighbor: int = field(default=32, metadata={"metavar": "PAIRS"})
    """Pairs kept per neighbour at most: those with the highest similarity; 0: no limit."""
    max_jaccard: float = field(default=0.8, metadata={"metavar": "SHARE"})
    """Drop pairs with at least this share of common word shingles among all of both; above 1:
    off."""
    max_containment: float = field(default=0.9, metadata={"metavar": "SHARE"})
    """Drop pairs where one contains at least this share of the other's word shingles; above 1:
    off."""
    shingle_words: int = field(default=5, metadata={"metavar": "WORDS"})
    """Words of a shingle."""
    control: Literal["none", "random"] = "none"
    """random: write a control set instead, with the anchors of --pairs and random neighbours."""
    pairs: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Mined pairs that --control random takes its anchors from."""
    seed: int = 0
    """Seed of the control set and of an index's training sample."""
    block_size: int = field(default=16384, metadata={"metavar": "DOCUMENTS"})
    """Documents held in memory at a time; the result does not depend on it."""

    def __post_init__(self) -> None:
        for name, least in {
            "neighbors": 1,
            "candidates": 0,
            "max_anchors_per_neighbor": 0,
            "shingle_words": 1,
            "seed": 0,
            "block_size": 1,
        }.items():
            if getattr(self, name) < least:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: must be at least {least}")
        for name in ("min_similarity", "max_similarity"):
            value = getattr(self, name)
            if value is not None and not -1 <= value <= 1:
                raise InputError(f"{_flag(name)} {value}: must be between -1 and 1")
        if self.max_similarity is not None and self.max_similarity < self.min_similarity:
            raise InputError(
                f"--max-similarity {self.max_similarity}: is below --min-similarity "
                f"{self.min_similarity}; exchange them"
            )
        for name in ("max_jaccard", "max_containment"):
            if not getattr(self, name) > 0:
                raise InputError(f"{_flag(name)} {getattr(self, name)}: must be above 0")
        if 0 < self.candidates < self.neighbors:
            raise InputError(
                f"--candidates {self.candidates}: fewer than --neighbors {self.neighbors}; give "
                "at least as many, or 0"
            )
        if self.search != "exact" and not self.factory:
            raise InputError(
                f"--search {self.search}: must be exact or faiss:FACTORY, such as faiss:HNSW32"
            )
        if (self.control == "random") != (self.pairs is not None):
            raise InputError(
                "--control random and --pairs DIR go together: the control set takes its anchors "
                "from mined pairs; give both or neither"
            )

    @property
    def factory(self) -> str:
        """String for FAISS's ``index_factory``; empty for exact search."""
        return self.search.removeprefix("faiss:").partition(":")[0] if self._faiss else ""

    @property
    def search_parameters(self) -> str:
        """String for FAISS's ``ParameterSpace``; may be empty."""
        return self.search.removeprefix("faiss:").partition(":")[2] if self._faiss else ""

    @property
    def _faiss(self) -> bool:
        return self.search.startswith("faiss:")

    def content(self) -> dict[str, Any]:
        """The options that decide the pairs, for the manifest."""
        if self.control == "random":
            return {"control": self.control, "seed": self.seed}
        ignored = {"embeddings", "output", "corpus", "tokenizer", "pairs", "block_size"}
        ignored |= set() if self.factory else {"seed"}
        ignored |= set() if self.corpus else {"max_jaccard", "max_containment", "shingle_words"}
        chosen = {name: value for name, value in asdict(self).items() if name not in ignored}
        return chosen | {"token_filters": bool(self.corpus)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
