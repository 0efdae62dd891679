"""Options of ``tools/mine_pairs.py``."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from megatron_sbp.errors import InputError
from megatron_sbp.mining.layout import parse_bytes

MOST_OVERLAP = 4
MOST_PROBES = 16  # Nearest clusters that are found for every document.


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
    """`exact`; `clusters`; or `faiss:FACTORY[:PARAMETERS]` for a FAISS index, such as
    `faiss:IVF256,Flat:nprobe=16`."""
    target_recall: float = field(default=0.95, metadata={"metavar": "SHARE"})
    """Share of the exact candidates that `clusters` shall find; decides --overlap and --probes."""
    recall_sample: int = field(default=1024, metadata={"metavar": "ANCHORS"})
    """Random anchors that recall is measured on; `clusters` decides its reach by as many others."""
    clusters: int = 0
    """Clusters of `clusters`; 0: about twice the square root of the number of documents."""
    overlap: int = field(default=0, metadata={"metavar": "CLUSTERS"})
    """Clusters that a document is stored in, 1 to 4; 0: decided by --target-recall."""
    probes: int = field(default=0, metadata={"metavar": "CLUSTERS"})
    """Clusters whose documents a document is compared with, at least --overlap and at most 16; 0:
    decided by --target-recall."""
    min_tokens: int = 0
    """Drop pairs in which a document has fewer tokens, the end-of-document token not counted."""
    max_tokens: int = 0
    """Drop pairs in which a document has more tokens; 0: no limit."""
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
    memory: str = field(default="4G", metadata={"metavar": "SIZE"})
    """Memory that a process may use, such as 512M or 64G, on a GPU the GPU's; it decides the size
    of blocks."""
    block_size: int = field(default=0, metadata={"metavar": "DOCUMENTS"})
    """Documents of a block; 0: what fits into --memory."""
    precision: Literal["auto", "int8", "bf16", "fp32"] = "auto"
    """Format of the products that candidates must pass before they are scored exactly; auto: the
    fastest of the device. The pairs do not depend on it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where products are made; auto: on CUDA devices if there are any."""
    loader: Literal["auto", "map", "pinned", "dali"] = "auto"
    """How blocks get to the device; auto: dali on a CUDA device if DALI is installed, else pinned;
    map on a CPU."""
    transfer: Literal["map", "ring"] = "map"
    """map: every rank reads every shard; ring: ranks read the shards that their machines have and
    pass them round, without a shared file system for --embeddings."""

    def __post_init__(self) -> None:
        for name, least in {
            "neighbors": 1,
            "candidates": 0,
            "max_anchors_per_neighbor": 0,
            "shingle_words": 1,
            "seed": 0,
            "block_size": 0,
            "recall_sample": 1,
            "clusters": 0,
            "overlap": 0,
            "probes": 0,
            "min_tokens": 0,
            "max_tokens": 0,
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
        if 0 < self.max_tokens < self.min_tokens:
            raise InputError(
                f"--max-tokens {self.max_tokens}: is below --min-tokens {self.min_tokens}; "
                "exchange them"
            )
        if not self.corpus and (self.min_tokens or self.max_tokens):
            raise InputError("--min-tokens and --max-tokens need --corpus, which has the lengths")
        self._check_search()
        if (self.control == "random") != (self.pairs is not None):
            raise InputError(
                "--control random and --pairs DIR go together: the control set takes its anchors "
                "from mined pairs; give both or neither"
            )

    def _check_search(self) -> None:
        if self.search not in ("exact", "clusters") and not self.factory:
            raise InputError(
                f"--search {self.search}: must be exact, clusters or faiss:FACTORY, such as "
                "faiss:HNSW32"
            )
        if not 0 < self.target_recall < 1:
            raise InputError(
                f"--target-recall {self.target_recall}: must be between 0 and 1; --search exact "
                "finds everything"
            )
        if (self.overlap == 0) != (self.probes == 0):
            raise InputError(
                f"--overlap {self.overlap} and --probes {self.probes} go together: give both, or "
                "neither and --target-recall"
            )
        if self.overlap > MOST_OVERLAP or self.probes > MOST_PROBES or self.probes < self.overlap:
            raise InputError(
                f"--overlap {self.overlap} --probes {self.probes}: must be 1 to {MOST_OVERLAP}, "
                f"and from there to {MOST_PROBES}"
            )
        if self.transfer == "ring" and (self.search != "exact" or self.control != "none"):
            raise InputError(
                "--transfer ring: passes whole blocks, which only --search exact can use; copy "
                "the embeddings to a shared file system for the others"
            )
        parse_bytes(self.memory, "--memory")

    def depth(self, documents: int) -> int:
        """Candidates of an anchor in a corpus of some number of documents."""
        return min(self.candidates or 2 * self.neighbors, documents - 1)

    @property
    def memory_bytes(self) -> int:
        """Bytes that a process may use."""
        return parse_bytes(self.memory, "--memory")

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
        ignored = {"embeddings", "output", "corpus", "tokenizer", "pairs"}
        ignored |= {"memory", "block_size", "precision", "device", "loader", "transfer"}
        ignored |= {"seed", "recall_sample"} if self.search == "exact" else set()
        if self.search != "clusters":
            ignored |= {"clusters", "overlap", "probes", "target_recall"}
        if not self.corpus:
            ignored |= {"max_jaccard", "max_containment", "shingle_words"}
            ignored |= {"min_tokens", "max_tokens"}
        chosen = {name: value for name, value in asdict(self).items() if name not in ignored}
        return chosen | {"token_filters": bool(self.corpus)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
