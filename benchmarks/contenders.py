"""One way to find all pairs of related documents, timed in a process of its own.

    python -m benchmarks.contenders --contender exact --embeddings DIR

prints one line of JSON. The clock of a library runs from float32 rows in memory to the list of
pairs: index, search, the threshold. Of ours it runs around the whole of `mine`: shards are read
from the page cache, candidates scored exactly, and files written.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.commands import mpiexec
from benchmarks.peers import PEERS, Peer
from megatron_sbp import cli
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError, require
from megatron_sbp.mining.findings import map_pairs
from megatron_sbp.mining.mine import mine
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import Pairs, PairStore
from megatron_sbp.mining.recall import contained
from megatron_sbp.ranks import Ranks

OURS = ("exact", "exact-int8", "exact-bf16", "exact-fp32", "clusters")
_READ = 1 << 24  # bytes


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of one contender."""

    contender: str = field(metadata={"metavar": "NAME"})
    """What is timed."""
    embeddings: str = field(metadata={"metavar": "DIR"})
    """Directory of embeddings-*.npy."""
    truth: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Exact neighbours of some anchors, to measure recall."""
    min_similarity: float = 0.75
    """Lowest inner product of a pair."""
    neighbors: int = 32
    """Pairs kept per anchor at most."""
    target_recall: float = 0.95
    """What `clusters` is asked for."""
    clusters: int = 0
    """Clusters of `clusters`; 0: its own choice."""
    block_size: int = 0
    """--block-size of ours."""
    memory: str = "4G"
    """--memory of ours."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """--device of ours."""
    peer_sample: float = field(default=1.0, metadata={"metavar": "SHARE"})
    """Share of the queries that a flat search is timed on; its time is scaled up."""

    def __post_init__(self) -> None:
        if self.contender not in (*OURS, *PEERS):
            known = ", ".join((*OURS, *PEERS))
            raise InputError(f"--contender {self.contender}: is none; choose of {known}")


@dataclass(kw_only=True, slots=True)
class Result:
    """What one contender did."""

    contender: str
    ranks: int
    threads: int
    """Of each rank."""
    seconds: float
    parts: dict[str, float]
    """Seconds of its steps."""
    recall: float | None
    """Share of the exact neighbours of the anchors that it found."""
    pairs: int | None
    """Ordered pairs found; None if only a part of the queries was searched."""
    peak_bytes: int
    """Largest resident memory of one process, files that it maps included."""
    figures: dict[str, Any]
    """Its settings, and for ours the counts of the manifest."""


def measure(options: Options, *, threads: int, ranks: int = 1) -> Result:
    """Time a contender in processes of its own.

    Args:
        options: Which one, on what.
        threads: Of every process.
        ranks: Processes under mpiexec; more than one for ours only.

    Raises:
        InputError: If it fails; the message ends with what it said last.
    """
    return Result(**run_module("benchmarks.contenders", asdict(options), threads, ranks))


def run_module(
    module: str, options: Mapping[str, Any], threads: int, ranks: int = 1
) -> dict[str, Any]:
    """Run a module that ends with a line of JSON, and give what it says.

    Args:
        module: Dotted name.
        options: Its options by name, of one value each; those that are None are left out.
        threads: Of every process.
        ranks: Processes under mpiexec.

    Raises:
        InputError: If it fails; the message ends with what it said last.
    """
    flags = [
        text
        for name, value in options.items()
        if value is not None
        for text in ("--" + name.replace("_", "-"), str(value))
    ]
    done = subprocess.run(
        [*(mpiexec(ranks) if ranks > 1 else []), sys.executable, "-m", module, *flags],
        env=os.environ
        | {
            f"{library}_NUM_THREADS": str(threads)
            for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"{module} {' '.join(flags)} ended with {done.returncode}: {said}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    with Ranks.open() as ranks:
        options = ranks.together(lambda: cli.parse(Options, str(__doc__)))
        embeddings = ranks.together(lambda: Embeddings(options.embeddings))
        for path in embeddings.paths:
            _read_once(path)
        if options.contender in OURS:
            result = _time_ours(options, ranks)
        else:
            result = _time_peer(options, embeddings, ranks)
        if ranks.rank == 0:
            print(json.dumps(asdict(result)))


def _read_once(path: Path) -> None:
    """Have a file in the page cache."""
    with open(path, "rb") as file:
        while file.read(_READ):
            pass


def _time_ours(options: Options, ranks: Ranks) -> Result:
    import faiss.contrib.clustering
    import scipy.sparse
    import torch

    del faiss, scipy  # Imported here so that the clock does not run meanwhile.
    if torch.cuda.is_available() and options.device != "cpu":
        torch.ones(64, 64, device="cuda").mm(torch.ones(64, 64, device="cuda"))
    with tempfile.TemporaryDirectory() as directory:
        output = ranks.share(directory) + "/pairs"
        search, _, precision = options.contender.partition("-")
        wanted = MineOptions(
            embeddings=options.embeddings,
            output=output,
            search=search,
            precision=precision or "auto",  # type: ignore[arg-type]
            min_similarity=options.min_similarity,
            neighbors=options.neighbors,
            candidates=options.neighbors,  # There are no filters to choose others for.
            max_anchors_per_neighbor=0,
            target_recall=options.target_recall,
            clusters=options.clusters,
            block_size=options.block_size,
            memory=options.memory,
            device=options.device,
        )
        ranks.gather(None)  # All are ready.
        started = time.perf_counter()
        manifest = mine(wanted, ranks)
        seconds = time.perf_counter() - started
        peak = ranks.most(_peak_bytes())
        recall = ranks.on_first(lambda: _recall_of_store(output, options.truth))
    return Result(
        contender=options.contender,
        ranks=ranks.size,
        threads=ranks.cores,
        seconds=seconds,
        parts={},
        recall=recall,
        pairs=manifest.counts["pairs"],
        peak_bytes=peak,
        figures=manifest.counts,
    )


def _recall_of_store(directory: str, truth: str | None) -> float | None:
    if truth is None:
        return None
    store, exact = PairStore(directory), map_pairs(Path(truth))[0]
    rows = np.flatnonzero(np.isin(store.anchor, exact.anchor))
    return _recall(exact, Pairs(store.anchor[rows], store.neighbor[rows], store.score[rows]))


def _recall(exact: Pairs, found: Pairs) -> float:
    return float(contained(exact, found).mean()) if len(exact) else 1.0


def _time_peer(options: Options, embeddings: Embeddings, ranks: Ranks) -> Result:
    needed = "hnswlib" if options.contender == "hnsw" else "faiss"
    require(needed, package={"faiss": "faiss-cpu"}.get(needed, needed))
    if ranks.size > 1:
        raise InputError(f"--contender {options.contender}: is one process; start it by itself")
    peer = PEERS[options.contender](_float32(embeddings), ranks.cores)
    exact = map_pairs(Path(options.truth))[0] if options.truth else Pairs.none()
    peer.warm_up()
    started = time.perf_counter()
    peer.build()
    built = time.perf_counter() - started
    recall = _tune(peer, exact, options)
    documents = len(peer.rows)
    step = round(1 / options.peer_sample) if peer.flat else 1
    queries, anchors = np.ascontiguousarray(peer.rows[::step]), np.arange(0, documents, step)
    started = time.perf_counter()
    pairs = _pairs(peer, queries, anchors, options)
    searched = (time.perf_counter() - started) * documents / len(queries)
    return Result(
        contender=options.contender,
        ranks=1,
        threads=ranks.cores,
        seconds=built + searched,
        parts={"build": built, "search": searched},
        recall=recall if len(exact) else None,
        pairs=len(pairs) if step == 1 else None,
        peak_bytes=_peak_bytes(),
        figures=peer.about() | ({"queries": len(queries)} if step > 1 else {}),
    )


def _float32(embeddings: Embeddings) -> np.ndarray:
    """All rows, without a second copy of them on the way."""
    rows = np.empty((len(embeddings), embeddings.dimensions), dtype=np.float32)
    for number, start in enumerate(embeddings.offsets[:-1].tolist()):
        shard = embeddings.shard(number)
        rows[start : start + len(shard)] = shard
    return rows


def _tune(peer: Peer, exact: Pairs, options: Options) -> float:
    """Choose the lowest setting with the wanted recall on the sample of anchors; the recall."""
    anchors = np.unique(exact.anchor)
    rows, recall = peer.rows[anchors], 1.0
    for value in peer.settings or [None]:
        if value is not None:
            peer.set(value)
        if len(exact):
            recall = _recall(exact, _pairs(peer, rows, anchors, options))
            if recall >= peer.least_recall:
                break
    return recall


def _pairs(peer: Peer, rows: np.ndarray, anchors: np.ndarray, options: Options) -> Pairs:
    """Related pairs of some rows: the nearest, without themselves, above the threshold."""
    scores, ids = peer.search(rows, min(options.neighbors + 1, len(peer.rows)))
    wanted = (scores >= options.min_similarity) & (ids != anchors[:, None]) & (ids >= 0)
    row, column = np.nonzero(wanted)
    return Pairs(anchors[row], ids[row, column].astype(np.int64), scores[row, column])


def _peak_bytes() -> int:
    """Largest resident memory of this program.

    The system's ``getrusage`` counts that of the process that started it, too, where it is larger.
    """
    match = re.search(r"^VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise InputError("/proc/self/status: says no VmHWM; run the benchmark on Linux")
    return int(match[1]) * 1024


if __name__ == "__main__":
    cli.run(main)
