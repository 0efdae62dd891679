from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining import pairs as pairs_module
from megatron_sbp.mining.pairs import (
    ColumnWriter,
    Pairs,
    PairStore,
    create_columns,
    place_in_run,
    rank_order,
)

type Row = tuple[int, int, float]

ROWS: list[Row] = [(0, 2, 0.9), (0, 1, 0.8), (0, 3, 0.8), (2, 0, 0.9), (5, 1, 0.5)]

small_ids = st.integers(0, 6)
triples = st.lists(
    st.tuples(small_ids, small_ids, st.floats(-1, 1, width=32)).filter(lambda t: t[0] != t[1]),
    unique_by=lambda t: t[:2],
)


def columns(rows: list[Row]) -> Pairs:
    anchor, neighbor, score = zip(*rows, strict=True) if rows else ([], [], [])
    return Pairs(
        np.array(anchor, np.int64), np.array(neighbor, np.int64), np.array(score, np.float32)
    )


def save(directory: Path, rows: list[Row]) -> Path:
    """Write a store by the letter of docs/formats.md."""
    pairs = columns(rows)
    np.save(directory / "anchor.npy", pairs.anchor)
    np.save(directory / "neighbor.npy", pairs.neighbor)
    np.save(directory / "score.npy", pairs.score)
    return directory


def test_store_gives_back_what_was_written(tmp_path: Path) -> None:
    store = PairStore(save(tmp_path, ROWS))
    assert len(store) == len(ROWS)
    assert store.anchor.tolist() == [0, 0, 0, 2, 5]
    assert store.neighbor.tolist() == [2, 1, 3, 0, 1]
    assert store.score.dtype == np.float32 and store.corpus is None


@given(rows=triples, cut=st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_ordered_pairs_make_a_store(
    rows: list[Row], cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [
        (anchor + 3_000_000_000, neighbor + (1 << 40), score) for anchor, neighbor, score in rows
    ]
    expected = sorted(rows, key=lambda row: (row[0], -row[2], row[1]))
    pairs = columns(rows).ordered()
    directory = tmp_path_factory.mktemp("store")
    create_columns(directory, len(rows))
    bounds = [min(bound, len(rows)) for bound in (0, cut, cut + 2, len(rows))]
    with ColumnWriter(directory) as odd, ColumnWriter(directory) as even:
        for writer, low, high in zip((even, odd, even), bounds, bounds[1:], strict=False):
            writer.write(low, pairs[low:high])
    store = PairStore(directory)
    found = zip(store.anchor.tolist(), store.neighbor.tolist(), store.score.tolist(), strict=True)
    assert list(found) == expected


some_ids = st.sampled_from([0, 1, 7, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 62])


@given(
    rows=st.lists(
        st.tuples(
            some_ids,
            st.sampled_from([-1.0, -0.5, -0.0, 0.0, 1e-45, 0.75, 1.0]) | st.floats(-1, 1, width=32),
            some_ids,
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_order_is_that_of_python(rows: list[tuple[int, float, int]]) -> None:
    group, score, last = zip(*rows, strict=True) if rows else ([], [], [])
    order = rank_order(np.array(group, np.int64), np.array(score, np.float32), np.array(last))
    expected = sorted(range(len(rows)), key=lambda row: (rows[row][0], -rows[row][1], rows[row][2]))
    assert [rows[row] for row in order] == [rows[row] for row in expected]


@given(rows=triples.filter(lambda rows: len(rows) > 1))
@settings(max_examples=60, deadline=None)
def test_disorder_is_refused(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> None:
    ordered = sorted(rows, key=lambda row: (row[0], -row[2], row[1]))
    with pytest.raises(InputError, match="comes before its next row"):
        PairStore(save(tmp_path_factory.mktemp("store"), ordered[::-1]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, 1, 0.5)], "row 0 .* pairs a document with itself"),
        ([(0, 1, 0.5), (0, -1, 0.4)], r"row 1 \(0, -1, .* id outside"),
        ([(0, 1, float("nan"))], "not finite"),
    ],
)
def test_impossible_rows_are_named(rows: list[Row], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        PairStore(save(tmp_path, rows))


@given(
    rows=triples.filter(bool),
    again=st.tuples(st.integers(0, 20), st.floats(-1, 1, width=32)),
    piece=st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_a_pair_that_comes_twice_is_named(
    rows: list[Row],
    again: tuple[int, float],
    piece: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Wherever in its anchor's rows it comes again, and however few rows are read at a time."""
    anchor, neighbor, score = rows[again[0] % len(rows)]
    assume(again[1] != score)  # or the order would be wrong, too
    directory = tmp_path_factory.mktemp("store")
    ordered = sorted(rows, key=lambda row: (row[0], -row[2], row[1]))
    with mock.patch.object(pairs_module, "_ROWS", piece):
        PairStore(save(directory, ordered))
        twice = sorted([*ordered, (anchor, neighbor, again[1])], key=lambda r: (r[0], -r[2], r[1]))
        last = max(row for row, found in enumerate(twice) if found[:2] == (anchor, neighbor))
        message = rf"row {last} \({anchor}, {neighbor}, .*\) is a pair that comes twice"
        with pytest.raises(InputError, match=message):
            PairStore(save(directory, twice))


def test_a_store_over_another_corpus_is_refused(words_corpus: Corpus, words_pairs: Path) -> None:
    PairStore(words_pairs, words_corpus)
    turned = Corpus(words_corpus.prefixes[::-1])  # as many documents: every id is one
    with pytest.raises(InputError, match=f"is not the corpus that {words_pairs} was made from"):
        PairStore(words_pairs, turned)


def test_damaged_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"anchor\.npy"):
        PairStore(tmp_path)
    save(tmp_path, ROWS)
    np.save(tmp_path / "score.npy", np.zeros(4, np.float32))
    with pytest.raises(InputError, match="different lengths"):
        PairStore(tmp_path)
    np.save(tmp_path / "score.npy", np.zeros(5))
    with pytest.raises(InputError, match=r"score\.npy: float64"):
        PairStore(tmp_path)
    (tmp_path / "score.npy").write_bytes((tmp_path / "anchor.npy").read_bytes()[:-5])
    with pytest.raises(InputError, match=r"score\.npy: not a complete"):
        PairStore(tmp_path)


def test_manifest_of_another_stage_is_refused(tmp_path: Path) -> None:
    Manifest(stage="embed", options={}, inputs={}).write(save(tmp_path, ROWS))
    with pytest.raises(InputError, match="stage 'embed'"):
        PairStore(tmp_path)


@given(st.lists(st.integers(0, 3)))
def test_place_in_run(keys: list[int]) -> None:
    places, previous = [], None
    for key in keys:
        places.append(places[-1] + 1 if key == previous else 0)
        previous = key
    assert place_in_run(np.array(keys, dtype=np.int64)).tolist() == places
