"""The benchmark of mining: its vectors, its truth, and that its contenders agree."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import list_number
from benchmarks.vectors import exact_neighbors, make_clustered
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.mining.window import Window
from tests.conftest import run_command
from tests.mining.vectors import brute_force


def test_made_vectors_are_what_their_description_says(tmp_path: Path) -> None:
    make_clustered(tmp_path / "a", 20_000, 64, seed=5)
    make_clustered(tmp_path / "b", 20_000, 64, seed=5)
    embeddings = Embeddings(tmp_path / "a")  # which checks lengths when rows are read
    assert len(embeddings.paths) == 2
    rows = embeddings.rows(0, 20_000).astype(np.float32)
    assert np.array_equal(rows, Embeddings(tmp_path / "b").rows(0, 20_000))
    scores = rows[:300] @ rows.T
    scores[np.arange(300), np.arange(300)] = 0
    # 39 others of a cluster, of which about a third are so near.
    assert 10 < (scores >= 0.75).sum() / 300 < 20
    assert scores.max() < 1


def test_truth_is_what_brute_force_finds(tmp_path: Path) -> None:
    make_clustered(tmp_path / "e", 1200, 32, seed=6)
    embeddings = Embeddings(tmp_path / "e")
    sample = np.array([0, 17, 555, 1199])
    found = exact_neighbors(embeddings, sample, Window(minimum=0.6, maximum=np.inf, depth=5))
    expected = [
        row for row in brute_force(embeddings.rows(0, 1200), 0.6, depth=5) if row[0] in sample
    ]
    columns = found.anchor.tolist(), found.neighbor.tolist(), found.score.tolist()
    assert list(zip(*columns, strict=True)) == expected


def test_lists_are_the_power_of_two_near_four_roots() -> None:
    assert [list_number(count) for count in (60_000, 200_000, 100_000)] == [1024, 2048, 1024]
    assert list_number(1000) == 16  # 39 documents for each


def test_contenders_find_the_same_pairs(tmp_path: Path) -> None:
    pytest.importorskip("hnswlib", reason="no hnswlib")
    path = tmp_path / "report.json"
    done = run_command(
        *("-m", "benchmarks.mining", "--sizes", "1000x16", "--threads", "1", "--anchors", "200"),
        *("--contenders", "flat", "ivf", "big-batch", "hnsw", "exact-fp32"),
        *("--output", path),
    )
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(path.read_text())["sets"]
    results = {result["contender"]: result for result in made["results"]}
    assert results["flat"]["recall"] == results["exact-fp32"]["recall"] == 1
    # But for scores that float32 rounds over the threshold.
    assert results["flat"]["pairs"] == pytest.approx(results["exact-fp32"]["pairs"], abs=2)
    assert results["ivf"]["recall"] >= 0.97
    assert results["big-batch"]["recall"] >= 0.95 <= results["hnsw"]["recall"]
    for name in results:
        assert f"\n{name} " in done.stdout


def test_a_threshold_that_nothing_reaches_is_one_line() -> None:
    done = run_command(
        "-m", "benchmarks.mining", "--sizes", "1000x16", "--min-similarity", "0.9999"
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --min-similarity 0.9999: none of 1000 documents of ")
    assert done.stderr.count("\n") == 1
