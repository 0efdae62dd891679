import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.mining import centroids
from megatron_sbp.mining.clusters import (
    Assignments,
    ClusterSearch,
    Members,
    Reach,
    choose,
    compared,
    costs,
    group,
    probes_needed,
    units,
)
from megatron_sbp.mining.layout import cut
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.products import Products
from megatron_sbp.mining.recall import contained, estimate
from megatron_sbp.mining.window import Window
from megatron_sbp.ranks import Ranks
from tests.mining.test_join import rows
from tests.mining.vectors import brute_force, unit, write_shards

CPU = torch.device("cpu")
SEED = 31
DOCUMENTS, DIMENSIONS, CLUSTERS = 500, 8, 9


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> Embeddings:
    # Without structure, so that clusters cut through neighbourhoods.
    vectors = unit(np.random.default_rng(SEED).standard_normal((DOCUMENTS, DIMENSIONS)))
    return Embeddings(write_shards(tmp_path_factory.mktemp("e") / "e", vectors, shards=3))


@pytest.fixture(scope="module")
def nearest(embeddings: Embeddings) -> np.ndarray:
    """Nearest clusters of all documents."""
    places = centroids.train(embeddings, CLUSTERS, SEED, Ranks(), CPU)
    return centroids.assign(embeddings.rows(0, DOCUMENTS), places, CLUSTERS, CPU)


@pytest.fixture
def assignments(embeddings: Embeddings, tmp_path: Path) -> Assignments:
    blocks = cut(DOCUMENTS, 120)
    made = Assignments(tmp_path / "assigned", blocks)
    places = centroids.train(embeddings, CLUSTERS, SEED, Ranks(), CPU)
    for block in made.missing():
        made.make(block, embeddings.rows(*blocks[block]), places, CPU)
    assert not made.missing()
    return made


def meet(left: np.ndarray, right: np.ndarray, reach: Reach) -> bool:
    """Whether two documents are compared, by what docs/mining.md says, one cluster at a time."""
    stored, probed = left[: reach.overlap], right[: reach.probes]
    other_stored, other_probed = right[: reach.overlap], left[: reach.probes]
    return bool(set(stored) & set(probed) or set(other_stored) & set(other_probed))


@pytest.mark.parametrize("reach", [Reach(1, 1), Reach(1, 3), Reach(2, 2), Reach(2, 5), Reach(2, 3)])
@pytest.mark.parametrize("most", [1000, 40])
def test_candidates_are_the_pairs_that_meet(
    reach: Reach,
    most: int,
    embeddings: Embeddings,
    nearest: np.ndarray,
    assignments: Assignments,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    window = Window(minimum=0.6, maximum=0.95, depth=12)
    all_pairs = [row for row in brute_force(embeddings.rows(0, DOCUMENTS), 0.6)]
    meeting = [row for row in all_pairs if meet(nearest[row[0]], nearest[row[1]], reach)]
    assert 0 < len(meeting) < len(all_pairs), f"seed {SEED} does not try anything"
    anchor, neighbor, score = (np.array(column) for column in zip(*meeting, strict=True))
    expected = window.best(Pairs(anchor, neighbor, score.astype(np.float32)))
    sizes = assignments.sizes(CLUSTERS, range(5))
    groups = group(costs(sizes, reach))
    assert [cluster for some in groups for cluster in some] == list(range(CLUSTERS))
    products = Products("int8", CPU, DIMENSIONS)
    members = Members(tmp_path / "members", assignments, CLUSTERS, reach.probes)
    for block in members.missing():
        members.make(block)
    tools = assignments, members, groups, sizes[: reach.probes].sum(0), reach, products
    search = ClusterSearch(embeddings, window, *tools, most, 1 << 30)
    found = list(search.find(range(len(groups))))
    joined = Pairs.join([one.pairs for one in found])
    assert len({row[:2] for row in rows(joined)}) == len(joined), "a pair was found twice"
    assert rows(window.best(joined)) == rows(expected), f"seed {SEED}"
    above = np.float32(0.95)
    assert sum(one.above for one in found) == sum(row[2] > above for row in meeting)
    # Clusters gathered a few at a time find the same.
    gathered, memory, gather = list[range](), 20_000, members.of

    def spied(span: range) -> Any:
        gathered.append(span)
        return gather(span)

    monkeypatch.setattr(members, "of", spied)
    search = ClusterSearch(embeddings, window, *tools, most, memory)
    for number, one in enumerate(search.find(range(len(groups)))):
        assert rows(one.pairs) == rows(found[number].pairs)
    assert [cluster for span in gathered for cluster in span] == list(range(CLUSTERS))
    held = [assignments.sizes(CLUSTERS, range(5))[: reach.probes, span].sum() for span in gathered]
    assert all(
        40 * some <= memory or span in groups for some, span in zip(held, gathered, strict=True)
    )
    # Units by themselves, and not all of them, find the same.
    some = list(range(1, len(groups), 2))
    for number, one in zip(some, search.find(some), strict=True):
        assert rows(one.pairs) == rows(found[number].pairs)


def test_members_of_blocks_behind_2_to_the_32_documents(
    embeddings: Embeddings, nearest: np.ndarray, tmp_path: Path
) -> None:
    far = (1 << 32) - 7
    assignments = Assignments(tmp_path / "assigned", [(0, 20), (far, far + 300)])
    places = centroids.train(embeddings, CLUSTERS, SEED, Ranks(), CPU)
    members = Members(tmp_path / "members", assignments, CLUSTERS, 3)
    for block, rows_of in enumerate([embeddings.rows(0, 20), embeddings.rows(20, 320)]):
        assignments.make(block, rows_of, places, CPU)
        members.make(block)
    ids = np.concatenate([np.arange(20), far + np.arange(300)])
    for cluster, (found, at) in zip(range(2, 6), members.of(range(2, 6)), strict=True):
        row, place = np.nonzero(nearest[:320, :3] == cluster)
        assert np.array_equal(found, ids[row]) and np.array_equal(at, place)
        assert np.array_equal(assignments.of(found)[:, :3], nearest[row, :3])


def test_probes_needed_and_sizes_say_what_a_reach_does(
    embeddings: Embeddings, nearest: np.ndarray, assignments: Assignments
) -> None:
    pairs = brute_force(embeddings.rows(0, DOCUMENTS), 0.6)[::7]
    anchor, neighbor = (np.array([row[place] for row in pairs]) for place in (0, 1))
    assert np.array_equal(assignments.of(anchor), nearest[anchor])
    needed = probes_needed(assignments.of(anchor), assignments.of(neighbor))
    sizes = assignments.sizes(CLUSTERS, range(5))
    for reach in (Reach(1, 1), Reach(1, 4), Reach(2, 3), Reach(4, 9)):
        found = [meet(nearest[a], nearest[b], reach) for a, b, _ in pairs]
        assert (needed[reach.overlap - 1] <= reach.probes).tolist() == found, f"seed {SEED}"
        for cluster in range(CLUSTERS):
            stored = int((nearest[:, : reach.overlap] == cluster).sum())
            probing = int((nearest[:, : reach.probes] == cluster).sum())
            work = stored * stored / 2 + stored * (probing - stored)
            assert compared(sizes, reach)[cluster] == work
    target = 0.9
    reach, recall = choose(needed, anchor, sizes, target)
    assert recall.low >= target
    cheaper = [
        Reach(overlap, probes)
        for overlap in range(1, 5)
        for probes in range(overlap, CLUSTERS + 1)
        if costs(sizes, Reach(overlap, probes)).sum() < costs(sizes, reach).sum()
    ]
    assert cheaper
    for other in cheaper:
        assert estimate(anchor, needed[other.overlap - 1] <= other.probes).low < target


def test_centroids_do_not_depend_on_chunks_and_cover_the_corpus(
    embeddings: Embeddings, nearest: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = embeddings.rows(0, DOCUMENTS)
    places = centroids.train(embeddings, CLUSTERS, SEED, Ranks(), CPU)
    assert np.allclose(np.linalg.norm(places, axis=1), 1, atol=1e-6)
    monkeypatch.setattr(centroids, "_CODED", 100)
    monkeypatch.setattr(centroids, "_PRODUCTS", 1)
    assert np.array_equal(centroids.assign(vectors, places, CLUSTERS, CPU), nearest)
    # Nearly all documents go to the centroid that float64 says; codes of int8 may err at ties.
    exact = (vectors.astype(np.float64) @ places.T.astype(np.float64)).argmax(1)
    assert (exact == nearest[:, 0]).mean() > 0.95
    assert len(np.unique(nearest[:, 0])) == CLUSTERS


_GROWTH = """
import resource, sys
import numpy as np, torch
from megatron_sbp.mining import centroids

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

torch.set_num_threads(1)
draw = np.random.default_rng(int(sys.argv[1]))
rows = draw.standard_normal((1 << 16, 8)).astype(np.float16)
places = centroids.unit(draw.standard_normal((13_784, 8)))
centroids.assign(rows[:2048], places, 1, torch.device("cpu"))
before = peak()
centroids.assign(rows, places, 1, torch.device("cpu"))
print(peak() - before)
"""


def test_assigning_more_documents_takes_no_more_memory() -> None:
    """With as many clusters as 47 million documents have, products once split the heap."""
    command = [sys.executable, "-c", _GROWTH, str(SEED)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "megabytes"


@pytest.mark.parametrize("documents", [1, 38, 39, 77, 78, 10_000, 10**9])
def test_no_more_clusters_than_the_data_supports(documents: int) -> None:
    assert 1 <= centroids.suitable(documents) <= max(1, documents / 39)


def test_recall_counts_pairs_and_its_interval_covers_the_truth() -> None:
    source = np.random.default_rng(SEED)
    truth, covered = 0.9, []
    expected = np.clip(truth + 0.08 * source.standard_normal(10**5), 0, 1)
    for _ in range(300):
        # Anchors differ in how many pairs they have, and in how many of them are found.
        counts = source.integers(1, 30, 200)
        share = np.clip(truth + 0.08 * source.standard_normal(200), 0, 1)
        anchor = np.repeat(np.arange(200), counts)
        found = source.random(len(anchor)) < np.repeat(share, counts)
        recall = estimate(anchor, found)
        assert recall.value == found.mean() and recall.pairs == len(anchor)
        assert recall.low < recall.value < recall.high
        covered.append(recall.low <= expected.mean() <= recall.high)
    assert 0.92 <= np.mean(covered) <= 0.98, f"seed {SEED}"


def test_recall_of_everything_is_not_called_certain() -> None:
    everything = estimate(np.arange(100), np.ones(100, dtype=bool))
    assert everything.value == 1 and 0.9 < everything.low < 1 and everything.high == 1
    assert estimate(np.empty(0, np.int64), np.empty(0, bool)).anchors == 0


def test_contained_looks_at_both_ids() -> None:
    exact = Pairs(np.array([1, 1, 2]), np.array([5, 6, 5]), np.zeros(3, np.float32))
    found = Pairs(np.array([2, 1]), np.array([6, 5]), np.zeros(2, np.float32))
    assert contained(exact, found).tolist() == [True, False, False]
    assert not contained(exact, Pairs.none()).any()


def test_units_are_even() -> None:
    work = np.random.default_rng(SEED).pareto(2, 5000) * 1e6
    made = units(group(work), work)
    assert sum(unit.cost for unit in made) == pytest.approx(work.sum())
    assert max(unit.cost for unit in made) <= work.max() + work.sum() / 64
