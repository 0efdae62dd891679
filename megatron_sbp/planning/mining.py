"""What a run will cost before it is started; so far the mining of pairs.

    python -m megatron_sbp.planning.mining --documents 1.2e9 --dimensions 1024 --ranks 512

    a search -> Work, what is to be done, counted -> times Rates, seconds for one of each -> Cost

The rates of CPUs are fitted to measurements by ``python -m benchmarks.scaling`` and lie in
``rates.json`` beside this file; those of a GPU are what the hardware can do at most, see ``GPU``.
docs/scaling.md says what is assumed.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.mining.centroids import suitable
from megatron_sbp.mining.layout import Layout, parse_bytes
from megatron_sbp.mining.options import MOST_OVERLAP, MOST_PROBES
from megatron_sbp.mining.products import grid
from megatron_sbp.planning.amounts import Amounts
from megatron_sbp.planning.units import size

RATES = Path(__file__).with_name("rates.json")
"""Machine kind -> ``Fitted``."""

_TRAINED = 64  # documents per centroid that k-means is trained on
_ITERATIONS = 6  # of k-means
_UNITS = (64, 4096)  # of a clustered search, at least and at most
_COMPARED_IN_UNIT = 1e8  # pairs, if that makes a number of units between these
_FLOAT16 = 2  # bytes
_PAIR = 20  # bytes of a pair: two ids and a score
_PAIR_IN_PART = 48  # bytes: the pair twice, and a row number
_PAIR_SETTLED = 1  # byte: whether it is dropped
_HOUR = 3600


@dataclass(frozen=True, kw_only=True, slots=True)
class Work(Amounts):
    """What all ranks of a search do together."""

    placing: float = 0.0
    """Operations (a multiplication or an addition) that train centroids and place documents."""
    products: float = 0.0
    """Operations of the documents that are compared: two per dimension of every pair."""
    tests: float = 0.0
    """Pairs compared; their products are written, and read to look for high ones."""
    numbers: float = 0.0
    """Numbers of embeddings read and checked."""
    coding: float = 0.0
    """Operations that turn rows before they are rounded to int8."""
    candidates: float = 0.0
    """Ordered pairs found, scored, sorted and written."""
    clusters: float = 0.0
    """Clusters that are joined."""
    units: float = 0.0
    """Units of work, each of which ends with a file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What was measured on one kind of machine."""

    machine: str
    """Its name."""
    source: str
    """Where the rates come from."""
    seconds: Work
    """Of one rank with one thread (or one GPU), for one of each kind of work."""
    start: float
    """Seconds of a job besides."""
    error: float
    """Largest relative error of the fit over what was measured; 0 if nothing was."""
    overlap: int
    """Clusters that documents of the largest measured corpus were stored in."""
    probes: int
    """Clusters that they were compared with."""
    unevenness: float
    """Pairs compared there over those that equal clusters would make."""


GPU = Fitted(
    machine="H200",
    # 790 TFLOP/s bf16 and 4.3 TB/s were measured on one, but not by mining. int8 is taken to be no
    # faster. A product is written and read once, as 4 bytes. Blocks come over PCIe, of which
    # 50 GB/s are assumed, for fp32 products 50 TFLOP/s, for candidates a microsecond each on the
    # host, 10 ms for a cluster and for a file, and 100 Tflop/s for placing, of which the choice of
    # the nearest takes most.
    source="ceilings of the hardware, not measured with this program",
    seconds=Work(
        placing=1e-14,
        products=1 / 790e12,
        tests=8 / 4.3e12,
        numbers=_FLOAT16 / 50e9,
        coding=1 / 50e12,
        candidates=1e-6,
        clusters=1e-2,
        units=1e-2,
    ),
    start=60.0,
    error=0.0,
    overlap=2,
    probes=4,
    unevenness=1.5,
)


def known_rates() -> dict[str, Fitted]:
    """The kinds of machines that can be planned for."""
    stored = json.loads(RATES.read_text()) if RATES.exists() else {}
    return {"h200": GPU} | {
        kind: Fitted(**entry | {"seconds": Work(**entry["seconds"])})
        for kind, entry in stored.items()
    }


# Counting


def blocks_read(blocks: int, resident: int, ranks: int) -> int:
    """Blocks that all ranks of an exact search read together, at most.

    A rank goes through the rows of the upper triangle. The last ``resident`` blocks stay with it;
    of the ``passing`` others row i reads itself and those after it.
    """
    passing = max(0, blocks - resident)
    staying = blocks - passing
    return passing * (passing + 1) // 2 + ranks * staying + ranks - 1


def exact_work(layout: Layout, ranks: int, candidates: float) -> Work:
    """The work of an exact search.

    Args:
        layout: Documents, dimensions and blocks.
        ranks: Of the job.
        candidates: Ordered pairs that are found.
    """
    documents, dimensions = layout.documents, layout.dimensions
    compared = documents**2 / 2
    blocks = math.ceil(documents / layout.size)
    rows = min(layout.size, documents) * blocks_read(blocks, layout.resident, ranks)
    return Work(
        products=2 * dimensions * compared,
        tests=compared,
        numbers=rows * dimensions,
        coding=2 * rows * dimensions * sum(grid(dimensions)),
        candidates=candidates,
        units=blocks * (blocks + 1) // 2,
    )


def compared_in_equal_clusters(documents: int, clusters: int, overlap: int, probes: int) -> float:
    """Pairs that a clustered search compares if all clusters are equally large.

    A cluster stores ``overlap * documents / clusters`` documents and compares them with each other
    and with the ``(probes - overlap) * documents / clusters`` others that probe it.
    """
    overlap, probes = min(overlap, clusters), min(probes, clusters)
    return documents**2 / clusters * (overlap**2 / 2 + overlap * (probes - overlap))


def cluster_work(
    documents: int,
    dimensions: int,
    clusters: int,
    *,
    compared: float,
    probes: int,
    sample: int,
    candidates: float,
) -> Work:
    """The work of a clustered search.

    Args:
        documents: Of the corpus.
        dimensions: Of an embedding.
        clusters: Number of clusters.
        compared: Pairs compared inside clusters.
        probes: Clusters that a document is compared with.
        sample: Anchors that the reach is decided by; recall is measured on as many others.
        candidates: Ordered pairs that are found.
    """
    sampled = 2.0 * min(sample, documents / 2) * documents
    training = min(_TRAINED * clusters, documents)
    joined = documents * min(probes, clusters)
    return Work(
        placing=2 * dimensions * clusters * (_ITERATIONS * training + documents),
        products=2 * dimensions * (compared + sampled),
        tests=compared + sampled,
        # Every row is read for the sample and to be placed, too, but is coded only to be joined.
        numbers=(joined + training + 2 * documents) * dimensions,
        coding=2 * joined * dimensions * sum(grid(dimensions)),
        candidates=candidates,
        clusters=clusters,
        units=min(clusters, max(_UNITS[0], min(_UNITS[1], round(compared / _COMPARED_IN_UNIT)))),
    )


# Planning


@dataclass(kw_only=True, slots=True)
class PlanOptions:
    """Options of the planner."""

    documents: float = 1.2e9
    """Documents of the corpus; 1.2e9 of 828 tokens are 1T tokens."""
    dimensions: int = 1024
    """Dimensions of an embedding."""
    pairs_per_document: float = 16.0
    """Neighbours above the threshold of a document, on average."""
    neighbors: int = 32
    """Pairs kept per anchor at most; twice as many candidates are."""
    ranks: int = 512
    """Processes of the job: one per GPU, or with some cores each."""
    threads: int = 1
    """Cores of a rank; on CPUs they are taken to divide its time."""
    memory: str = field(default="64G", metadata={"metavar": "SIZE"})
    """Memory of a rank, for its blocks."""
    machine: str = field(default="h200", metadata={"metavar": "KIND"})
    """Kind of machine: `h200`, or a CPU that benchmarks.scaling has measured."""
    product_rate: float = field(default=0.0, metadata={"metavar": "TERAOPS"})
    """10^12 operations per second of one rank's products, in place of the machine's; 0: its own."""
    overlap: int = 0
    """Clusters that a document is stored in; 0: as measured."""
    probes: int = 0
    """Clusters that a document is compared with; 0: as measured."""

    def __post_init__(self) -> None:
        for name in ("documents", "dimensions", "neighbors", "ranks", "threads"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")
        for name in ("pairs_per_document", "product_rate"):
            if getattr(self, name) < 0:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {getattr(self, name)}: must not be negative")
        if (self.overlap == 0) != (self.probes == 0) or not (
            0 <= self.overlap <= min(self.probes, MOST_OVERLAP) and self.probes <= MOST_PROBES
        ):
            raise InputError(
                f"--overlap {self.overlap} --probes {self.probes}: give both, 1 to {MOST_OVERLAP} "
                f"and from there to {MOST_PROBES}, or neither"
            )
        parse_bytes(self.memory, "--memory")
        self.rates()

    def rates(self) -> Fitted:
        """The rates of one rank.

        Raises:
            InputError: If the machine is not known.
        """
        known = known_rates()
        if self.machine not in known:
            raise InputError(
                f"--machine {self.machine}: no rates are known for it; give one of "
                f"{', '.join(known)}, or measure it with `python -m benchmarks.scaling --publish`"
            )
        rates = known[self.machine]
        scale = 1.0 if self.machine == "h200" else self.threads
        seconds = {name: value / scale for name, value in asdict(rates.seconds).items()}
        if self.product_rate:
            seconds["products"] = 1e-12 / self.product_rate
        return replace(rates, seconds=Work(**seconds))

    def layout(self) -> Layout:
        """What a rank holds."""
        return Layout.fit(
            round(self.documents),
            self.dimensions,
            2 * self.neighbors,
            memory=parse_bytes(self.memory, "--memory"),
            device="cuda" if self.machine == "h200" else "cpu",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one search costs."""

    seconds: float
    """From start to end."""
    rank_hours: float
    work: Work
    bytes_read: float
    """Of the embeddings, by all ranks."""
    scratch_bytes: float
    """On disk before the job ends, the pairs included."""
    pair_bytes: float
    """Of the pairs, which stay."""
    memory: int
    """Bytes of a rank, at most."""


def plan_exact(options: PlanOptions) -> Cost:
    """What an exact search costs.

    Raises:
        InputError: If the memory does not hold two blocks.
    """
    layout = options.layout()
    found = options.documents * options.pairs_per_document
    return _cost(options, exact_work(layout, options.ranks, found))


def plan_clusters(options: PlanOptions) -> Cost:
    """What a clustered search costs, with the reach and the evenness that were measured.

    Raises:
        InputError: If the memory does not hold two blocks.
    """
    layout, rates = options.layout(), options.rates()
    overlap, probes = (options.overlap or rates.overlap), (options.probes or rates.probes)
    documents = layout.documents
    clusters = suitable(documents)
    even = compared_in_equal_clusters(documents, clusters, overlap, probes)
    found = options.documents * options.pairs_per_document
    work = cluster_work(
        documents,
        layout.dimensions,
        clusters,
        compared=even * rates.unevenness,
        probes=probes,
        sample=1024,
        candidates=found,
    )
    # Nearest clusters of all documents, and documents of all clusters.
    assigned = documents * (min(MOST_PROBES, clusters) + min(probes, clusters)) * 4
    return _cost(options, work, assigned)


def _cost(options: PlanOptions, work: Work, assigned: int = 0) -> Cost:
    """What some work costs; ``assigned`` are the bytes on disk that say which clusters count."""
    rates, found = options.rates(), work.candidates
    seconds = rates.start + work.times(rates.seconds, options.ranks)
    kept = min(found, options.documents * options.neighbors)
    settled = kept * (_PAIR_IN_PART + _PAIR_SETTLED + _PAIR)
    return Cost(
        seconds=seconds,
        rank_hours=seconds * options.ranks / _HOUR,
        work=work,
        bytes_read=work.numbers * _FLOAT16,
        scratch_bytes=assigned + found * _PAIR + settled,
        pair_bytes=kept * _PAIR,
        memory=parse_bytes(options.memory, "--memory"),
    )


# Showing


def main() -> None:
    """Print what both searches cost."""
    options = cli.parse(PlanOptions, str(__doc__))
    rates, layout = options.rates(), options.layout()
    costs = plan_exact(options), plan_clusters(options)
    error = f", off by {rates.error:.0%} at most where measured" if rates.error else ""
    cli.summary(
        f"{options.documents:.3g} documents x {options.dimensions}, "
        f"{options.pairs_per_document:g} pairs each, {options.ranks:,} ranks",
        {
            "rates": f"{rates.machine}: {rates.source}{error}",
            "block": f"{layout.size:,} documents, {layout.resident:,} more stay in memory",
            "": f"{'exact':>14}  {'clusters':>14}",
        }
        | {
            name: "  ".join(f"{show(cost, options):>14}" for cost in costs)
            for name, show in _ROWS.items()
        },
    )


_ROWS: dict[str, Callable[[Cost, PlanOptions], str]] = {
    "time": lambda cost, _: _duration(cost.seconds),
    "rank-hours": lambda cost, _: f"{cost.rank_hours:,.1f}",
    "pairs compared": lambda cost, _: f"{cost.work.tests:.3g}",
    "operations": lambda cost, _: f"{cost.work.products + cost.work.placing:.3g}",
    "embeddings read": lambda cost, _: size(cost.bytes_read),
    "read per second and rank": lambda cost, options: size(
        cost.bytes_read / options.ranks / cost.seconds
    ),
    "files of candidates": lambda cost, _: f"{cost.work.units:,}",
    "disk, until the end": lambda cost, _: size(cost.scratch_bytes),
    "disk, pairs": lambda cost, _: size(cost.pair_bytes),
    "memory of a rank, at most": lambda cost, _: size(cost.memory),
}


def _duration(seconds: float) -> str:
    if seconds < _HOUR:
        return cli.clock(seconds)
    hours = seconds / _HOUR
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"


if __name__ == "__main__":
    cli.run(main)
