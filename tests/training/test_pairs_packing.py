"""Packing by counts and the shuffle, against piece-by-piece packing and plain properties."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp.training.pairs.packing import Layout, best_fit
from megatron_sbp.training.pairs.shuffle import Permutation

LENGTHS = st.lists(st.integers(1, 40), max_size=120)


def histogram(lengths: list[int], capacity: int) -> np.ndarray:
    return np.bincount(np.array(lengths, dtype=np.int64), minlength=capacity + 1)


def rows_piece_by_piece(lengths: list[int], capacity: int) -> int:
    """Number of rows of best-fit-decreasing, one piece after another."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return len(rooms)


@settings(deadline=None, max_examples=300)
@given(lengths=LENGTHS, extra=st.integers(0, 60))
def test_as_many_rows_as_piece_by_piece(lengths: list[int], extra: int) -> None:
    capacity = max(lengths, default=1) + extra
    patterns = best_fit(histogram(lengths, capacity))
    assert sum(pattern.rows for pattern in patterns) == rows_piece_by_piece(lengths, capacity)
    packed: Counter[int] = Counter()
    for pattern in patterns:
        assert pattern.rows > 0
        assert sum(length * number for length, number in pattern.content) <= capacity
        for length, number in pattern.content:
            packed[length] += pattern.rows * number
    assert packed == Counter(lengths)


@settings(deadline=None, max_examples=200)
@given(lengths=LENGTHS, extra=st.integers(0, 60))
def test_every_piece_has_a_place_of_its_own(lengths: list[int], extra: int) -> None:
    capacity = max(lengths, default=1) + extra
    patterns = best_fit(histogram(lengths, capacity))
    layout = Layout(patterns)
    placed = np.zeros(len(lengths), dtype=np.int64)
    for length, count in Counter(lengths).items():
        places = layout.places(length, np.arange(count))
        assert not placed[places].any()
        placed[places] = length
    # The rows written out one after another.
    wanted = [
        [length for length, number in pattern.content for _ in range(number)]
        for pattern in patterns
        for _ in range(pattern.rows)
    ]
    assert placed.tolist() == [length for row in wanted for length in row]
    assert layout.rows == len(wanted)
    for first, start, pieces in layout.table.tolist():
        assert start == sum(map(len, wanted[:first]))
        assert pieces == len(wanted[first])


def test_patterns_do_not_grow_with_the_pieces() -> None:
    few = np.random.default_rng(1).integers(0, 5, 257)
    assert len(best_fit(few * 10**9)) <= 3 * len(few)


@pytest.mark.parametrize("seed", range(3))
def test_a_permutation_is_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    for count in (1, 2, 3, 10, *random.integers(11, 5000, 20).tolist()):
        order = Permutation(count, [seed, count])
        got = order(np.arange(count))
        assert sorted(got.tolist()) == list(range(count))
        assert [order(index) for index in range(min(count, 50))] == got[:50].tolist()


def test_a_permutation_of_many_stays_inside_and_apart() -> None:
    count = 10**12 + 39
    index = np.arange(count - 200_000, count)
    got = Permutation(count, [7])(index)
    assert len(np.unique(got)) == len(got)
    assert got.min() >= 0 and got.max() < count
    # Spread evenly: of 200,000 over ten equal parts each gets 20,000, with a deviation of 134.
    parts = np.bincount(got // (count // 10 + 1), minlength=10)
    assert np.abs(parts - 20_000).max() < 6 * 134


def test_every_order_of_four_is_as_likely() -> None:
    tries = 4800
    seen = Counter(tuple(Permutation(4, [key])(np.arange(4)).tolist()) for key in range(tries))
    assert len(seen) == 24
    # 200 each; chi-squared with 23 degrees of freedom exceeds 59 once in 20,000 times.
    assert sum((number - 200) ** 2 / 200 for number in seen.values()) < 59
