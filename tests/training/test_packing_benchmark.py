"""The benchmark of packing runs, and its corpora are what their descriptions say."""

import re
from pathlib import Path

import numpy as np

from benchmarks import packing
from megatron_sbp.mining.pairs import PairStore
from tests.conftest import run_command


def test_made_pairs_are_a_store(tmp_path: Path) -> None:
    lengths = packing.make_lengths(5000, median=400, sigma=1.1, seed=1)
    # Standard error of the median of 5,000: 1.25 * 1.1 / sqrt(5000), 2%.
    assert abs(np.median(lengths) - 400) < 6 * 0.02 * 400
    corpus = packing.make_corpus(tmp_path / "c", lengths[:300], tokens=None)
    packing.make_pairs(tmp_path / "pairs", corpus, 1500, seed=2)
    store = PairStore(tmp_path / "pairs", corpus)  # which checks ids, scores and order
    assert np.bincount(store.anchor).tolist() == [5] * 300
    assert len(np.unique(store.neighbor)) > 250


def test_it_runs() -> None:
    done = run_command(
        *("-m", "benchmarks.packing", "--pairs", "20000", "--length", "512", "--median", "50"),
        *("--documents", "300", "--rows", "20"),
    )
    assert done.returncode == 0, done.stderr
    assert "20,000 pairs of 4,000 documents, rows of 512" in done.stdout
    (share,) = re.findall(r"^real tokens +([\d.]+)%", done.stdout, re.MULTILINE)
    assert float(share) >= 97
    for name in ("GPTDataset", "packed pairs", "one pair a row"):
        assert re.search(rf"^{name} +[\d.]+ M +[\d.]+$", done.stdout, re.MULTILINE)


def test_an_option_out_of_range_is_one_line() -> None:
    done = run_command("-m", "benchmarks.packing", "--rows", "0")
    assert (done.returncode, done.stderr) == (2, "error: --rows 0: must be at least 1\n")
