"""How fast pairs are mined, beside other libraries on the same vectors with the same threads.

    python -m benchmarks.mining
    python -m benchmarks.mining --embeddings quickstart/embeddings

All find the pairs with an inner product of at least --min-similarity, the --neighbors nearest of
every document at most. Each runs in a process of its own. The clock of a library runs from float32
rows in memory to the list of pairs: training, building, searching. Ours runs around the whole of
mining, from shards in the page cache to finished files, with scores computed exactly. Recall is the
share of the exact neighbours of --anchors random documents that was found, by float64 products.
Libraries that trade time for recall use the lowest setting that reaches it on these anchors: 0.97
for IndexIVFFlat, 0.95 for big_batch_search and hnswlib; the search for it is not timed.

On machines with a GPU, faiss.knn_gpu and GpuIndexIVFFlat are what ours is compared with.
"""

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contenders, rates
from benchmarks.contenders import Result
from benchmarks.peers import PEERS
from benchmarks.vectors import DESCRIPTION, exact_neighbors, make_clustered
from megatron_sbp import cli
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write
from megatron_sbp.mining.findings import save_pairs
from megatron_sbp.mining.recall import draw
from megatron_sbp.mining.window import Window

_SIZES = ("200000x384", "100000x1024")
_OURS = ("exact-int8", "exact-bf16", "exact-fp32", "clusters")
_CPU = ("flat", "ivf", "big-batch", "hnsw", *_OURS, "ranks")
_CUDA = ("gpu-flat", "gpu-flat-fp16", "gpu-ivf", *_OURS)
_RANKS = ("exact", "clusters")  # what `ranks` measures


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    sizes: list[str] = field(default_factory=list, metadata={"metavar": "DOCUMENTSxDIMENSIONS"})
    """Made vectors to measure on; by default 200000x384 and 100000x1024, or none with
    --embeddings."""
    embeddings: list[str] = field(default_factory=list, metadata={"metavar": "DIR"})
    """Directories of embeddings-*.npy to measure on."""
    contenders: list[str] = field(default_factory=list, metadata={"metavar": "NAME"})
    """What to measure: flat ivf big-batch hnsw gpu-flat gpu-flat-fp16 gpu-ivf (libraries),
    exact-int8 exact-bf16 exact-fp32 clusters (ours), ranks (ours with one and with two ranks of one
    thread); by default those that suit the machine."""
    threads: int = 0
    """Threads of each; 0: all cores."""
    min_similarity: float = 0.75
    """Lowest inner product of a pair."""
    neighbors: int = 32
    """Pairs kept per document at most."""
    target_recall: float = 0.95
    """What `clusters` is asked for."""
    memory: str = "4G"
    """--memory of ours."""
    anchors: int = field(default=1000, metadata={"metavar": "DOCUMENTS"})
    """Random documents that recall is measured on."""
    peer_sample: float = field(default=1.0, metadata={"metavar": "SHARE"})
    """Share of the queries that flat searches are timed on; their time is scaled up, to which it is
    proportional."""
    seed: int = 0
    """Of the vectors and of the anchors."""
    output: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Also write everything as JSON."""

    def __post_init__(self) -> None:
        for size in self.sizes:
            shape(size)
        for name in self.contenders:
            if name not in (*PEERS, *_OURS, "ranks"):
                known = " ".join((*PEERS, *_OURS, "ranks"))
                raise InputError(f"--contenders {name}: is none; choose of {known}")
        for name, least in {"threads": 0, "neighbors": 1, "anchors": 1}.items():
            if getattr(self, name) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}")
        if not 0 < self.peer_sample <= 1:
            raise InputError(f"--peer-sample {self.peer_sample}: must be above 0, at most 1")


def shape(size: str) -> tuple[int, int]:
    """Documents and dimensions of ``200000x384``.

    Raises:
        InputError: If they are none, or too few.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", size)
    if not match or int(match[1]) < 1000 or int(match[2]) < 8:
        raise InputError(
            f"--sizes {size}: give documents (1000 or more) and dimensions (8 or more), such as "
            f"{_SIZES[0]}"
        )
    return int(match[1]), int(match[2])


@dataclass(kw_only=True, slots=True)
class Data:
    """Vectors that are measured on."""

    title: str
    directory: Path
    documents: int
    dimensions: int
    truth: Path
    """Exact neighbours of some documents."""
    pairs_per_document: float
    """Of these documents, those that count."""

    @property
    def bytes(self) -> int:
        """Of the embeddings."""
        return 2 * self.documents * self.dimensions


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    threads = options.threads or len(os.sched_getaffinity(0))
    machine = rates.machine()
    cli.summary(
        f"python -m benchmarks.mining {' '.join(sys.argv[1:])}".strip(),
        {
            name: " ".join(value) if isinstance(value, list) else value
            for name, value in machine.items()
        }
        | {"threads": threads},
    )
    report: dict[str, Any] = {"command": sys.argv, "machine": machine, "sets": []}
    with tempfile.TemporaryDirectory() as temporary:
        for data in _data(options, Path(temporary)):
            speed = contenders.run_module(
                "benchmarks.rates", {"dimensions": data.dimensions}, threads
            )
            results = list(_results(options, data, threads, speed["device"]))
            _show(options, data, speed, results)
            entry = asdict(data) | {"directory": str(data.directory), "truth": str(data.truth)}
            rows = [asdict(result) for result in results]
            report["sets"].append(entry | {"rates": speed, "results": rows})
            if options.output:
                with atomic_write(options.output) as file:
                    file.write_text(json.dumps(report, indent=1) + "\n")


def _data(options: Options, temporary: Path) -> Iterator[Data]:
    """Every set of vectors, made when it is wanted."""
    sizes = options.sizes or ([] if options.embeddings else list(_SIZES))
    for size in sizes:
        directory = temporary / size
        make_clustered(directory, *shape(size), options.seed)
        yield _sampled(options, directory, temporary, DESCRIPTION)
    for number, name in enumerate(options.embeddings):
        yield _sampled(options, Path(name), temporary / f"given-{number}", name)


def _sampled(options: Options, directory: Path, truth: Path, title: str) -> Data:
    embeddings = Embeddings(directory)
    documents = len(embeddings)
    window = Window(
        minimum=options.min_similarity, maximum=np.inf, depth=min(options.neighbors, documents - 1)
    )
    sample = draw(documents, options.anchors, options.seed)
    exact = exact_neighbors(embeddings, sample, window)
    if not len(exact):
        raise InputError(
            f"--min-similarity {options.min_similarity}: none of {len(sample)} documents of "
            f"{directory} has a neighbour that near; give a lower one"
        )
    path = truth.with_name(f"{truth.name}-{directory.name}.pairs")
    save_pairs(path, exact)
    return Data(
        title=title,
        directory=directory,
        documents=documents,
        dimensions=embeddings.dimensions,
        truth=path,
        pairs_per_document=len(exact) / len(sample),
    )


def _results(options: Options, data: Data, threads: int, device: str) -> Iterator[Result]:
    """Measure one contender after another."""
    for name in options.contenders or (_CPU if device == "cpu" else _CUDA):
        jobs = [(name, threads, 1)]
        if name == "ranks":
            jobs = [(search, 1, ranks) for search in _RANKS for ranks in (1, 2)]
        for contender, own_threads, ranks in jobs:
            started = time.perf_counter()
            yield contenders.measure(
                contenders.Options(
                    contender=contender,
                    embeddings=str(data.directory),
                    truth=str(data.truth),
                    min_similarity=options.min_similarity,
                    neighbors=options.neighbors,
                    target_recall=options.target_recall,
                    memory=options.memory,
                    peer_sample=options.peer_sample,
                    device="cpu" if name == "ranks" else "auto",
                ),
                threads=own_threads,
                ranks=ranks,
            )
            took = cli.clock(time.perf_counter() - started)
            print(f"measured {contender} on {ranks} x {own_threads}: {took}", file=sys.stderr)


# Showing


def _show(
    options: Options, data: Data, speed: Mapping[str, Any], results: Sequence[Result]
) -> None:
    print(f"\n{data.documents:,} x {data.dimensions} ({data.bytes / 1e6:,.0f} MB): {data.title}")
    print(
        f"pairs: inner product >= {options.min_similarity}, {options.neighbors} per document at "
        f"most; {data.pairs_per_document:.1f} on average"
    )
    if options.peer_sample < 1:
        print(f"flat searches: timed on {options.peer_sample:.1%} of the queries and scaled up")
    peers = [result for result in results if result.contender in PEERS]
    print("x: how many times as fast as that library; peak: resident memory of one process")
    heads = "".join(f"{'x ' + peer.contender:>15}" for peer in peers)
    print(f"{'':<14}{'ranks':>6}{'s':>9}{heads}{'recall':>9}{'peak MB':>9}{'/ data':>7}  settings")
    for result in results:
        ratios = "".join(f"{peer.seconds / result.seconds:>15.2f}" for peer in peers)
        recall = "" if result.recall is None else f"{result.recall:.4f}"
        print(
            f"{result.contender:<14}{f'{result.ranks}x{result.threads}':>6}{result.seconds:>9.2f}"
            f"{ratios}{recall:>9}{result.peak_bytes / 1e6:>9,.0f}"
            f"{result.peak_bytes / data.bytes:>7.1f}  {_settings(result)}"
        )
    _show_speed(data, speed, results)
    _show_ranks(results)
    sys.stdout.flush()


def _settings(result: Result) -> str:
    """What a contender ran with, and the steps that its time is made of."""
    figures = result.figures
    if result.contender not in PEERS:
        search = figures["search"]
        names = ("precision", "device", "clusters", "overlap", "probes", "compared")
        figures = {name: search[name] for name in names if name in search}
    steps = [f"{name} {seconds:.2f} s" for name, seconds in result.parts.items()]
    return ", ".join([*(f"{name} {value}" for name, value in figures.items()), *steps])


def _show_speed(data: Data, speed: Mapping[str, Any], results: Sequence[Result]) -> None:
    """The machine's rates of products, and what of them exact search reached."""
    best = {name: max(speed["tile"][name], speed["large"][name]) for name in speed["tile"]}
    print(f"products on {speed['device']}, 10^9 operations/s of all threads:")
    for name in best:
        tile, large = speed["tile"][name] / 1e9, speed["large"][name] / 1e9
        shapes = speed["shapes"]
        print(f"  {name:<14}{tile:>9,.0f} ({shapes['tile']}){large:>9,.0f} ({shapes['large']})")
    exact = [result for result in results if result.contender.startswith("exact-")]
    if exact:
        print("exact search, as N^2 d operations (the upper triangle) over all of its time:")
    for result in exact:
        reached = data.documents**2 * data.dimensions / result.seconds
        precision = result.figures["search"]["precision"]
        print(
            f"  {precision:<14}{reached / 1e9:>9,.0f}: {reached / best['bf16']:.0%} of the bf16 "
            f"rate, {reached / best[precision]:.0%} of the {precision} rate"
        )


def _show_ranks(results: Sequence[Result]) -> None:
    for search in _RANKS:
        seconds = {
            result.ranks: result.seconds
            for result in results
            if result.contender == search and result.threads == 1
        }
        if {1, 2} <= seconds.keys():
            ratio = seconds[1] / seconds[2]
            print(f"{search}: two ranks of one thread are {ratio:.2f} times as fast as one")


if __name__ == "__main__":
    cli.run(main)
