"""The planner's formulas, against what small jobs do, and the fit of its rates."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks import scaling
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Stage
from megatron_sbp.mining import centroids
from megatron_sbp.mining.exact import ExactSearch, Triangle
from megatron_sbp.mining.layout import Layout, cut, shares
from megatron_sbp.mining.loading import MapLoader
from megatron_sbp.mining.mine import mine
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.products import Products
from megatron_sbp.mining.window import Window
from megatron_sbp.planning import mining as planning
from megatron_sbp.planning.mining import PlanOptions, Work
from megatron_sbp.ranks import Ranks
from tests.conftest import run_command
from tests.mining.vectors import clustered, write_shards

if TYPE_CHECKING:
    import torch


class CountingLoader(MapLoader):
    """Counts the blocks that are read."""

    read = 0

    def load(self, ranges: Iterable[tuple[int, int]]) -> Iterator["torch.Tensor"]:
        for span in ranges:
            self.read += 1
            yield from super().load([span])


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("resident", [0, 3, 8, 20])
def test_exact_search_reads_the_blocks_that_are_counted(
    resident: int, ranks: int, tmp_path: Path
) -> None:
    import torch

    blocks = cut(1100, 100)
    embeddings = Embeddings(write_shards(tmp_path / "e", clustered(1100, 16, 30, seed=1)))
    triangle = Triangle(blocks)
    units = triangle.units()
    read = []
    for share in shares([unit.cost for unit in units], ranks):
        loader = CountingLoader(embeddings)
        search = ExactSearch(
            triangle,
            Window(minimum=0.9, maximum=2.0, depth=4),
            resident,
            Products("fp32", torch.device("cpu"), 16),
            loader,
        )
        list(search.find(share))
        read.append(loader.read)
    counted = planning.blocks_read(len(blocks), resident, ranks)
    # At most what is counted: the last two rows read nothing, and a rank that begins later does not
    # need the first blocks.
    assert sum(read) <= counted <= sum(read) + 2 + (ranks - 1) * min(resident + 1, len(blocks))
    layout = Layout(documents=1100, dimensions=16, size=100, resident=resident)
    work = planning.exact_work(layout, ranks, candidates=0)
    assert work.tests == sum(unit.cost for unit in units) == 1100**2 / 2
    assert work.units == len(units)
    assert work.numbers == counted * 100 * 16


@pytest.mark.parametrize(("overlap", "probes"), [(1, 1), (1, 3), (2, 2), (2, 5)])
def test_equal_clusters_compare_the_pairs_that_are_counted(overlap: int, probes: int) -> None:
    documents, number = 400, 10
    draw = np.random.default_rng(2)
    # Every cluster is the nearest, second nearest, ... of equally many documents.
    nearest = (np.arange(documents)[:, None] + draw.permutation(number)) % number
    meetings = 0
    for cluster in range(number):
        stored = {int(row) for row in np.flatnonzero((nearest[:, :overlap] == cluster).any(1))}
        probing = {int(row) for row in np.flatnonzero((nearest[:, :probes] == cluster).any(1))}
        meetings += len({frozenset((a, b)) for a in stored for b in probing if a != b})
    counted = planning.compared_in_equal_clusters(documents, number, overlap, probes)
    # A document is not compared with itself: half a pair of about 40 * overlap for each.
    assert counted == pytest.approx(meetings + documents * overlap / 2)


class Spy:
    """What a clustered job does: comparisons with centroids, rows that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.placed = self.rows = self.scratch = 0
        find_nearest, check, finish = centroids._nearest, Embeddings.check, Stage.finish

        def spied_nearest(coded: Any, count: int, places: np.ndarray, nearest: int) -> np.ndarray:
            self.placed += count * len(places)
            return find_nearest(coded, count, places, nearest)

        def spied_check(own: Embeddings, rows: np.ndarray, documents: np.ndarray) -> None:
            self.rows += len(rows)
            check(own, rows, documents)

        def spied_finish(own: Stage, **given: Any) -> None:
            files = [path for path in own.workspace.rglob("*") if path.is_file()]
            self.scratch = sum(path.stat().st_size for path in files)
            finish(own, **given)

        monkeypatch.setattr(centroids, "_nearest", spied_nearest)
        monkeypatch.setattr(Embeddings, "check", spied_check)
        monkeypatch.setattr(Stage, "finish", spied_finish)


@pytest.mark.parametrize("search", ["exact", "clusters"])
def test_a_real_job_does_the_work_that_is_planned(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents, dimensions = 3000, 16
    vectors = clustered(documents, dimensions, 90, seed=3)
    spy = Spy(monkeypatch)
    options = MineOptions(
        embeddings=str(write_shards(tmp_path / "e", vectors)),
        output=str(tmp_path / "pairs"),
        search=search,
        min_similarity=0.8,
        candidates=32,  # --neighbors, so that all of them are kept
        max_anchors_per_neighbor=0,
        overlap=2 if search == "clusters" else 0,
        probes=3 if search == "clusters" else 0,
        recall_sample=200,
        precision="fp32",
    )
    counts = mine(options, Ranks()).counts
    found = counts["search"]
    if search == "clusters":
        work = planning.cluster_work(
            documents,
            dimensions,
            found["clusters"],
            compared=found["compared"] * documents**2 / 2,
            probes=found["probes"],
            sample=200,
            candidates=counts["candidates"],
        )
        assert 2 * dimensions * spy.placed == pytest.approx(work.placing, rel=0.02)
        # Rows of the exact sample are read by the loader, which has its own check.
        assert spy.rows == pytest.approx(work.numbers / dimensions - documents, rel=0.1)
        assert work.clusters == found["clusters"] and found["units"] <= work.units
    plan = {"exact": planning.plan_exact, "clusters": planning.plan_clusters}[search]
    cost = plan(
        PlanOptions(
            documents=documents,
            dimensions=dimensions,
            pairs_per_document=counts["candidates"] / documents,
            memory="4G",
        )
    )
    assert cost.pair_bytes == pytest.approx(counts["pairs"] * 20)
    assert cost.scratch_bytes == pytest.approx(spy.scratch, rel=0.25)


def test_the_products_of_a_trillion_tokens_take_what_they_take_by_hand() -> None:
    """1.2e9^2 x 1,024 operations at 600 Tops/s are 682.7 device-hours."""
    slow, fast = (
        planning.plan_exact(PlanOptions(documents=1.2e9, dimensions=1024, product_rate=rate))
        for rate in (600, 1e12)
    )
    assert slow.rank_hours - fast.rank_hours == pytest.approx(682.7, rel=1e-3)
    assert slow.seconds == pytest.approx(slow.rank_hours * 3600 / 512)


# Rates


def measured(point: scaling.Point, seconds: float = 0.0) -> scaling.Measured:
    """A job of the measurement, with counts as a clustered corpus has them."""
    documents = point.documents
    search: dict[str, Any] = {"precision": "int8", "overlap": 1, "probes": 2, "block": 2048}
    if point.search == "exact":
        search["block"] = point.block_size or documents // 24
    else:
        number = round(2 * math.sqrt(documents) * point.clusters)
        even = planning.compared_in_equal_clusters(documents, number, 1, 2)
        search |= {"clusters": number, "compared": 1.3 * 2 * even / documents**2}
    pairs = {0.6: 25, 0.75: 13, 0.9: 1.3}[point.min_similarity]
    counts = {"candidates": round(pairs * documents), "search": search}
    return scaling.Measured(point=point, machine="test", seconds=seconds, counts=counts)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_measured_decides_the_rates(seed: int) -> None:
    """Times from known rates, off by 4%, give a fit that is right for a far larger corpus."""
    true = Work(
        placing=1 / 350e9,
        products=1 / 350e9,
        tests=1e-10,
        numbers=1e-9,
        coding=1 / 80e9,
        candidates=1e-6,
        clusters=3e-3,
        units=6e-3,
    )
    noise = np.random.default_rng(seed)
    jobs = []
    for point in scaling.points(160_000):
        job = measured(point)
        seconds = 0.5 + job.work().times(true) / point.ranks
        jobs.append(replace(job, seconds=seconds * (1 + 0.04 * noise.standard_normal())))
    fitted = scaling.fit(jobs)
    assert fitted.error < 0.2
    assert fitted.unevenness == pytest.approx(1.3)
    large = Layout.fit(10**9, 1024, 64, memory=64 << 30, device="cpu")
    exact = planning.exact_work(large, 512, candidates=1.6e10)
    number = centroids.suitable(10**9)
    compared = planning.compared_in_equal_clusters(10**9, number, 1, 2)
    approximate = planning.cluster_work(
        10**9, 1024, number, compared=compared, probes=2, sample=1024, candidates=1.6e10
    )
    assert exact.times(fitted.seconds) == pytest.approx(exact.times(true), rel=0.1)
    assert approximate.times(fitted.seconds) == pytest.approx(approximate.times(true), rel=0.35)


def test_rates_of_measured_cpus_are_found_and_shared_by_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rates.json"
    entry = replace(planning.GPU, machine="a CPU", seconds=Work(products=1e-12), start=10.0)
    path.write_text(json.dumps({"fp32": asdict(entry)}))
    monkeypatch.setattr(planning, "RATES", path)
    one, four = (
        planning.plan_exact(
            PlanOptions(documents=1e6, dimensions=100, ranks=2, machine="fp32", threads=threads)
        )
        for threads in (1, 4)
    )
    assert one.seconds == pytest.approx(10 + 1e14 * 1e-12 / 2)
    assert four.seconds == pytest.approx(10 + 1e14 * 1e-12 / 2 / 4)
    with pytest.raises(InputError, match=r"--machine z80: no rates .* one of h200, fp32,"):
        PlanOptions(machine="z80")


def test_the_command_prints_one_screen() -> None:
    done = run_command(
        *("-m", "megatron_sbp.planning.mining", "--documents", "1.2e9"),
        *("--dimensions", "1024", "--ranks", "512"),
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) < 24
    assert "1.2e+09 documents x 1024" in done.stdout and "rank-hours" in done.stdout


def test_bad_options_are_one_line() -> None:
    done = run_command("-m", "megatron_sbp.planning.mining", "--overlap", "3", "--probes", "2")
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: --overlap 3 --probes 2: ") and done.stderr.count("\n") == 1
    )
