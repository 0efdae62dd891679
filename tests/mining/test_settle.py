from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megatron_sbp.mining.settle
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.parts import Parts, blocks
from megatron_sbp.mining.settle import Settling
from tests.mining.test_pairs import Row, columns

DOCUMENTS = 9
ids = st.integers(0, DOCUMENTS - 1)
rows = st.lists(
    st.tuples(ids, ids, st.sampled_from([0.75, 0.8, 0.9])).filter(lambda row: row[0] != row[1]),
    unique_by=lambda row: row[:2],
)


def settle(directory: Path, found: list[Row]) -> Settling:
    parts = Parts(directory, blocks(DOCUMENTS, 4))
    assert parts.missing() == [(0, 4), (4, 8), (8, 9)]
    counts = []
    for start, stop in parts.blocks:
        inside = [row for row in found if start <= row[0] < stop]
        parts.save((start, stop), columns(inside).ordered(), 1.0, {})
        counts.append(len(inside))
    return Settling(parts, counts)


def left(settling: Settling) -> list[Row]:
    pairs = Pairs.join(list(settling.pieces()))
    assert len(pairs) == len(settling)
    return list(
        zip(pairs.anchor.tolist(), pairs.neighbor.tolist(), pairs.score.tolist(), strict=True)
    )


@given(found=rows, limit=st.integers(1, 3), interval=st.sampled_from([1, 5, 1000]))
@settings(max_examples=80, deadline=None)
def test_rules_by_plain_python(
    found: list[Row], limit: int, interval: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = [
        (anchor, neighbor, columns([(0, 1, score)]).score.item())
        for anchor, neighbor, score in found
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_sbp.mining.settle, "_INTERVAL_PAIRS", interval)
        settling = settle(tmp_path_factory.mktemp("parts"), found)
        dropped = settling.one_direction()
        one_way = left(settling)
        capped = settling.cap_neighbors(limit)
        final = left(settling)
    both = {row[:2] for row in found}
    expected = [
        (a, b, score)
        for a, b, score in found
        if (b, a) not in both or (a < b) == ((a + b) % 2 == 0)
    ]
    assert sorted(one_way) == sorted(expected) and dropped == len(found) - len(one_way)
    assert len({frozenset(row[:2]) for row in one_way}) == len(one_way)
    by_neighbor = defaultdict(list)
    for anchor, neighbor, score in one_way:
        by_neighbor[neighbor].append((-score, anchor))
    best = {
        (anchor, n) for n, found_ in by_neighbor.items() for _, anchor in sorted(found_)[:limit]
    }
    assert {row[:2] for row in final} == best and capped == len(one_way) - len(final)
    assert final == sorted(final, key=lambda row: (row[0], -row[2], row[1]))
