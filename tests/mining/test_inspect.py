import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megatron_sbp.mining.overview
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.mining.inspect import InspectOptions, inspect
from megatron_sbp.mining.overview import Overview
from megatron_sbp.mining.pairs import PairStore
from tests.conftest import run_command
from tests.mining.test_pairs import Row, save


def options(corpus: Corpus | None, pairs: Path, **others: float | str) -> InspectOptions:
    prefixes = [str(prefix) for prefix in corpus.prefixes] if corpus else []
    return InspectOptions(pairs=str(pairs), corpus=prefixes, **others)  # type: ignore[arg-type]


def shown(chosen: InspectOptions) -> list[str]:
    """The lines above the figures of the whole store."""
    lines = list(inspect(chosen))
    frames = [place for place, line in enumerate(lines) if line == "=" * chosen.width]
    return lines[: frames[-1]]


def test_texts_stand_side_by_side(words_corpus: Corpus, words_pairs: Path) -> None:
    lines = shown(options(words_corpus, words_pairs, sample=3, width=9000, lines=0))
    heads = [line for line in lines if "score" in line]
    assert len(heads) == 3 and len(lines) == 12
    store = PairStore(words_pairs)
    texts = list(words_corpus.texts(range(len(words_corpus))))
    known = {
        (texts[anchor], texts[neighbor], f"{score:.4f}")
        for anchor, neighbor, score in zip(store.anchor, store.neighbor, store.score, strict=True)
    }
    for head, line in zip(lines[1::4], lines[3::4], strict=True):
        left, right = (part.strip() for part in line.split(" | "))
        assert (left, right, head.split("score ")[1].split()[0]) in known


def test_limits_and_width(words_corpus: Corpus, words_pairs: Path) -> None:
    chosen = options(words_corpus, words_pairs, min_similarity=0.5, max_similarity=0.6, width=80)
    lines = shown(chosen)
    scores = [float(line.split("score ")[1].split()[0]) for line in lines if "score" in line]
    assert scores and all(0.5 <= score <= 0.6 for score in scores)
    with pytest.raises(InputError, match="widen the limits"):
        list(inspect(options(words_corpus, words_pairs, min_similarity=1.5)))


def overview_of(scores: list[float], piece: int, directory: Path) -> Overview:
    """The overview of pairs with these scores, read in pieces of so many rows."""
    rows: list[Row] = sorted(
        [(place % 3, 3 + place, score) for place, score in enumerate(scores)],
        key=lambda row: (row[0], -row[2]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_sbp.mining.overview, "_ROWS", piece)
        return Overview.of(PairStore(save(directory, rows)))


@given(
    scores=st.lists(
        st.sampled_from([-0.3, -0.05, 0.0, 0.7, 0.75, 0.8, 1.0]) | st.floats(-1, 1, width=32),
        min_size=1,
        max_size=20,
    ),
    piece=st.sampled_from([1, 2, 3, 5, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_pairs_at_thresholds_by_brute_force(
    scores: list[float], piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    overview = overview_of(scores, piece, tmp_path_factory.mktemp("store"))
    stored = sorted(np.float32(score) for score in scores)
    rows = [re.findall(r"[-\d.,]+", line) for line in overview.lines()]
    table = [row for row in rows[rows.index([]) :] if len(row) == 3]
    assert 1 <= len(table) <= 12
    for threshold, count, share in table:
        expected = sum(score >= np.float32(float(threshold)) for score in stored)
        assert int(count) == expected
        assert float(share) == pytest.approx(100 * expected / len(scores), abs=0.01)
    assert int(table[0][1]) == len(scores), "the table begins above the lowest score"
    step = (float(table[-1][0]) - float(table[0][0])) / max(len(table) - 1, 1)
    assert len(table) == 1 or round(float(table[-1][0]) + step, 6) > stored[-1]
    for share in (0.05, 0.5, 0.95):
        score = stored[int(share * len(stored))]
        assert overview.quantile(share) <= score + 1e-7 and score < overview.quantile(share) + 0.001


@given(
    counts=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    piece=st.sampled_from([1, 2, 5, 99]),
)
@settings(max_examples=60, deadline=None)
def test_pairs_per_anchor_by_brute_force(
    counts: list[int], piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows: list[Row] = [
        (3_000_000_000 + anchor, neighbor, 0.5)
        for anchor, count in enumerate(counts)
        for neighbor in range(count)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_sbp.mining.overview, "_ROWS", piece)
        overview = Overview.of(PairStore(save(tmp_path_factory.mktemp("store"), rows)))
    assert overview.anchors.tolist() == [counts.count(many) for many in range(max(counts) + 1)]
    assert overview.median() == sorted(counts)[(len(counts) - 1) // 2]
    assert overview.pairs == sum(counts)


def test_without_a_corpus_there_is_no_text(words_pairs: Path) -> None:
    first, second, *others = inspect(options(None, words_pairs))
    assert first == "no text: --corpus is not given"
    assert second.split() == ["pairs", f"{len(PairStore(words_pairs)):,}"]
    assert not any("->" in line for line in others)


@pytest.mark.parametrize("scores", [[0.9, 0.8, 0.7, 0.75], [0.5, 0.5], [1.0]])
def test_plot(scores: list[float], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    overview_of(scores, 10, tmp_path / "store")
    for name in ("plot.png", "plot.svg", "again.svg"):
        chosen = options(None, tmp_path / "store", plot=str(tmp_path / name))
        assert list(inspect(chosen))[-1] == f"plot written to {tmp_path / name}"
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "plot.svg").read_text()
    assert all(f">{label}<" in svg for label in ("threshold", "pairs per anchor", "anchors"))
    assert svg == (tmp_path / "again.svg").read_text()
    assert len(list(tmp_path.iterdir())) == 4


def test_plots_that_cannot_be_written_are_refused_first(tmp_path: Path) -> None:
    for name, message in (("plot.jpg", r"must end with \.png or \.svg"), ("no/a.png", "no such")):
        with pytest.raises(InputError, match=message):
            options(None, tmp_path, plot=str(tmp_path / name))


def test_stores_without_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no pairs"):
        list(inspect(options(None, save(tmp_path, []))))


def test_command(words_corpus: Corpus, words_pairs: Path) -> None:
    flags: list[str | Path] = ["--pairs", words_pairs, "--corpus"]
    done = run_command("tools/inspect_pairs.py", *flags, *words_corpus.prefixes, "--sample", "2")
    assert done.returncode == 0 and done.stdout.count(" -> ") == 2
    wrong = run_command("tools/inspect_pairs.py", *flags, words_corpus.prefixes[0])
    (line,) = wrong.stderr.splitlines()
    assert wrong.returncode == 2 and "made from 2 corpus prefixes" in line
