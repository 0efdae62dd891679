"""How the time of mining grows with documents, dimensions, pairs and ranks, and a fit to it.

    python -m benchmarks.scaling --output DIR

Jobs are measured one at a time, each in processes of its own with one thread per rank. Non-negative
least squares over all of them give the seconds for one of each kind of work that
megatron_sbp/planning/mining.py counts; errors are relative, so that small jobs count like large
ones. DIR gets measurements.json, from which an interrupted run continues, rates.json and
scaling.svg; --publish writes the rates to where the planner reads them, and the figure to docs/.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import contenders, fitting, rates
from benchmarks.vectors import make_clustered
from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write
from megatron_sbp.mining import centroids
from megatron_sbp.mining.layout import Layout, parse_bytes
from megatron_sbp.planning.mining import (
    RATES,
    Fitted,
    Work,
    cluster_work,
    compared_in_equal_clusters,
    exact_work,
)

_MEMORY = "4G"
_NEIGHBORS = 32
_SAMPLE = 1024  # --recall-sample
_FIGURE = Path(__file__).parents[1] / "docs" / "scaling.svg"
_SEARCHES = {"exact": "tab:blue", "clusters": "tab:orange"}


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the measurement."""

    output: str = field(metadata={"metavar": "DIR"})
    """Where measurements, rates and figure go."""
    largest: int = field(default=160_000, metadata={"metavar": "DOCUMENTS"})
    """The largest corpus; the others have a half to a sixteenth."""
    seed: int = 0
    """Of the vectors."""
    publish: bool = False
    """Also replace the planner's rates for this kind of machine, and docs/scaling.svg."""

    def __post_init__(self) -> None:
        if self.largest < 16_000:
            raise InputError(f"--largest {self.largest}: must be at least 16000")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One job."""

    search: str
    documents: int
    dimensions: int = 256
    min_similarity: float = 0.75
    ranks: int = 2
    clusters: float = 1.0
    """Clusters over those that would be taken."""
    block_size: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What one job took."""

    point: Point
    machine: str
    seconds: float
    counts: dict[str, Any]
    """Of the manifest."""

    def work(self) -> Work:
        """What all ranks did together."""
        documents, dimensions = self.point.documents, self.point.dimensions
        candidates = self.counts["candidates"]
        if self.point.search == "exact":
            memory = parse_bytes(_MEMORY, "--memory")
            size = self.counts["search"]["block"]
            layout = Layout.of_size(documents, dimensions, _NEIGHBORS, size, memory=memory)
            return exact_work(layout, self.point.ranks, candidates)
        found = self.counts["search"]
        return cluster_work(
            documents,
            dimensions,
            found["clusters"],
            compared=found["compared"] * documents**2 / 2,
            probes=found["probes"],
            sample=_SAMPLE,
            candidates=candidates,
        )


def points(largest: int) -> list[Point]:
    """What is measured: one thing varied at a time."""
    middle = largest // 4
    found = []
    for search in _SEARCHES:
        base = Point(search=search, documents=middle)
        found += [replace(base, documents=largest // divisor) for divisor in (16, 8, 4, 2, 1)]
        found += [replace(base, dimensions=dimensions) for dimensions in (64, 128, 512, 1024)]
        found += [replace(base, min_similarity=least) for least in (0.6, 0.9)]
        found += [replace(base, documents=documents, ranks=1) for documents in (middle, 2 * middle)]
        found += [replace(base, documents=largest, dimensions=few) for few in (64, 1024)]
    # Placing documents and joining clusters grow alike unless the number of clusters is varied, and
    # all of these corpora have as many blocks unless their size is.
    base = Point(search="clusters", documents=largest)
    found += [replace(base, clusters=factor) for factor in (0.25, 0.5, 2.0, 4.0)]
    base = Point(search="exact", documents=middle)
    return found + [replace(base, block_size=middle // blocks) for blocks in (8, 64)]


# Measuring


def measure(options: Options) -> list[Measured]:
    """Do the jobs that are not in measurements.json yet, and give all of them."""
    path = Path(options.output) / "measurements.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    about = rates.machine()
    machine = f"{about['cpu']} ({', '.join(about['flags'])})"
    done = {key: one for key, one in _read(path).items() if one.machine == machine}
    wanted = points(options.largest)
    with (
        tempfile.TemporaryDirectory() as temporary,
        cli.Progress("measure", len(wanted), "jobs", initial=0) as shown,
    ):
        for point in wanted:
            if point not in done:
                done[point] = _measure(point, Path(temporary), machine, options.seed)
                with atomic_write(path) as file:
                    file.write_text(json.dumps([asdict(one) for one in done.values()], indent=1))
            shown.update()
    return [done[point] for point in wanted]


def _read(path: Path) -> dict[Point, Measured]:
    if not path.exists():
        return {}
    entries = [entry | {"point": Point(**entry["point"])} for entry in json.loads(path.read_text())]
    return {entry["point"]: Measured(**entry) for entry in entries}


def _measure(point: Point, temporary: Path, machine: str, seed: int) -> Measured:
    vectors = temporary / f"{point.documents}x{point.dimensions}"
    if not vectors.exists():
        make_clustered(vectors, point.documents, point.dimensions, seed)
    result = contenders.measure(
        contenders.Options(
            contender=point.search,
            embeddings=str(vectors),
            min_similarity=point.min_similarity,
            neighbors=_NEIGHBORS,
            clusters=min(
                round(centroids.suitable(point.documents) * point.clusters),
                centroids.most(point.documents),
            ),
            block_size=point.block_size,
            memory=_MEMORY,
            device="cpu",
        ),
        threads=1,
        ranks=point.ranks,
    )
    return Measured(point=point, machine=machine, seconds=result.seconds, counts=result.figures)


# Fitting


def fit(measured: Sequence[Measured]) -> Fitted:
    """Seconds for one of each kind of work, and what the largest clustered search was like."""
    jobs = [
        fitting.Timed(work=one.work(), devices=one.point.ranks, seconds=one.seconds)
        for one in measured
    ]
    found = fitting.fit(Work, jobs)
    clustered = [one for one in measured if one.point.search == "clusters"]
    largest = max(clustered, key=lambda one: one.point.documents)
    search, documents = largest.counts["search"], largest.point.documents
    reach = search["overlap"], search["probes"]
    even = compared_in_equal_clusters(documents, search["clusters"], *reach)
    return Fitted(
        machine=measured[0].machine,
        source=f"fitted to {len(measured)} jobs of {search['precision']} with one thread per rank",
        seconds=found.each,
        start=found.start,
        error=found.error,
        overlap=reach[0],
        probes=reach[1],
        unevenness=search["compared"] * documents**2 / 2 / even,
    )


def predicted(fitted: Fitted, measured: Measured) -> float:
    """Seconds that the fit says."""
    return fitted.start + measured.work().times(fitted.seconds, measured.point.ranks)


# Showing


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    measured = measure(options)
    fitted, directory = fit(measured), Path(options.output)
    _print(measured, fitted)
    draw(measured, fitted, directory / "scaling.svg")
    _store(fitted, directory / "rates.json")
    if options.publish:
        _store(fitted, RATES)
        shutil.copyfile(directory / "scaling.svg", _FIGURE)


def machine_kind() -> str:
    """The kind of this machine's CPU: what multiplies fastest of what it has."""
    flags = rates.cpu_flags()
    kinds = ("amx_int8", "avx512_vnni", "avx_vnni", "amx_bf16", "avx512_bf16")
    return next((kind for kind in kinds if kind in flags), "fp32")


def _store(fitted: Fitted, path: Path) -> None:
    """Put the rates of this kind of machine among those that are there."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[machine_kind()] = asdict(fitted)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n")


def _print(measured: Sequence[Measured], fitted: Fitted) -> None:
    print(
        f"{'search':<9} {'documents':>9} {'d':>5} {'least':>5} {'clusters':>8} {'pairs':>11}",
        end="",
    )
    print(f" {'ranks':>5} {'seconds':>8} {'fit':>8} {'off':>6}")
    for one in measured:
        point, fits = one.point, predicted(fitted, one)
        clusters = one.counts["search"].get("clusters", "")
        print(
            f"{point.search:<9} {point.documents:>9,} {point.dimensions:>5} "
            f"{point.min_similarity:>5} {clusters:>8} {one.counts['candidates']:>11,} "
            f"{point.ranks:>5} {one.seconds:>8.2f} {fits:>8.2f} {fits / one.seconds - 1:>+6.0%}"
        )
    rows = {name: f"{value:.3g} s" for name, value in asdict(fitted.seconds).items()}
    reach = f"{fitted.overlap}, {fitted.probes}, {fitted.unevenness:.2f}"
    cli.summary(
        f"seconds of one rank: {fitted.machine}",
        {f"for one of {name}": value for name, value in rows.items()}
        | {"start": f"{fitted.start:.3g} s", "largest error": f"{fitted.error:.0%}"}
        | {"overlap, probes, unevenness": reach}
        | {f"two ranks over one, {name}": f"{value:.2f}" for name, value in speed_ups(measured)},
    )


def speed_ups(measured: Sequence[Measured]) -> Iterator[tuple[str, float]]:
    """What a second rank brought, for every job that was measured with one."""
    seconds = {one.point: one.seconds for one in measured}
    for point, slow in seconds.items():
        if point.ranks == 1:
            yield f"{point.search} {point.documents:,}", slow / seconds[replace(point, ranks=2)]


def draw(measured: Sequence[Measured], fitted: Fitted, path: Path) -> None:
    """Draw what was measured (dots) and what the fit says (lines)."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator

    base = Point(search="", documents=measured[0].point.documents * 4)
    panels: dict[str, tuple[str, Callable[[Measured], float]]] = {
        "documents": ("documents", lambda one: one.point.documents),
        "dimensions": ("dimensions", lambda one: one.point.dimensions),
        "min_similarity": ("pairs per document", per_document),
        "ranks": ("ranks", lambda one: one.point.ranks),
    }
    with rc_context({"svg.hashsalt": "scaling", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(10, 3), layout="constrained")
        all_axes = figure.subplots(1, len(panels), sharey=True)
        for axes, (varied, (title, place)) in zip(all_axes, panels.items(), strict=True):
            ticks: list[float] = []
            for search, color in _SEARCHES.items():
                shown = [one for one in measured if _only_varies(one.point, base, search, varied)]
                shown.sort(key=place)
                x = [place(one) for one in shown]
                axes.plot(x, [one.seconds for one in shown], "o", color=color, label=search)
                axes.plot(x, [predicted(fitted, one) for one in shown], "-", color=color)
                ticks = x
            axes.set(xscale="log", yscale="log", xlabel=title)
            axes.set_xticks(ticks, [EngFormatter(places=0, sep="")(tick) for tick in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
        all_axes[0].yaxis.set_major_formatter(EngFormatter())
        all_axes[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        all_axes[0].set_ylabel("seconds")
        all_axes[0].legend()
        figure.savefig(path, metadata={"Date": None})


def per_document(one: Measured) -> float:
    """Ordered pairs found per document."""
    return one.counts["candidates"] / one.point.documents


def _only_varies(point: Point, base: Point, search: str, varied: str) -> bool:
    """Whether a job is ``base`` with another value of one field."""
    return point == replace(base, search=search, **{varied: getattr(point, varied)})


if __name__ == "__main__":
    cli.run(main)
