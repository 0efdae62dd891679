import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp.mining.layout import cut
from megatron_sbp.mining.pairs import Pairs
from megatron_sbp.mining.parts import Parts
from tests.mining.test_pairs import Row, columns

FIRST = 3_000_000_000  # An id that needs more than 31 bits, and far from the others.


def rows_of(pairs: Pairs) -> list[Row]:
    return list(
        zip(pairs.anchor.tolist(), pairs.neighbor.tolist(), pairs.score.tolist(), strict=True)
    )


@given(documents=st.integers(1, 100), size=st.integers(1, 120))
def test_blocks_cover_the_corpus(documents: int, size: int) -> None:
    blocks = cut(documents, size)
    assert list(itertools.chain(*(range(*block) for block in blocks))) == list(range(documents))
    assert all(stop - start == size for start, stop in blocks[:-1])


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(5, 20) | st.integers(FIRST, FIRST + 9),
            st.floats(-1, 1, width=32),
        ),
        unique_by=lambda row: row[:2],
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_towards_a_block_are_all_of_them(
    rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> None:
    bounds = [0, 5, 8, 19, 1 << 31, FIRST, FIRST + 4, FIRST + 10]
    blocks = list(itertools.pairwise(bounds))
    parts = Parts(tmp_path_factory.mktemp("job") / "parts", blocks)
    assert parts.missing() == [0, 1, 2, 3, 4, 5, 6]
    pairs = columns(rows).ordered()
    parts.save(0, pairs, {"candidates": 7, "near_copies": 0})
    assert parts.missing() == [1, 2, 3, 4, 5, 6]
    assert rows_of(parts.pairs(0)) == rows_of(pairs)
    assert not parts.pairs(0).anchor.flags.writeable
    assert parts.counts(0) == {"candidates": 7, "near_copies": 0}
    part = parts.open(0)
    assert rows_of(part.pairs[part.rows]) == rows_of(part.by_target)
    for target, (start, stop) in enumerate(blocks):
        inside = [row for row in rows_of(pairs) if start <= row[1] < stop]
        assert rows_of(part.towards(target)) == inside
        assert part.count_towards(target) == len(inside)


def test_a_part_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path, cut(10, 5))
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            parts.save(1, columns([(8, 1, 0.5)]), {})
    (tmp_path / ".part-000001.tmp-1").write_bytes(b"left by a process that was killed")
    assert parts.missing() == [0, 1]


def test_many_empty_blocks_take_little_room(tmp_path: Path) -> None:
    parts = Parts(tmp_path, cut(3_000_000_000, 1 << 14))
    assert len(parts.blocks) == 183_106
    parts.save(183_105, Pairs.none(), {})
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4096
    assert len(parts.pairs(183_105)) == 0 and parts.open(183_105).count_towards(0) == 0
    assert parts.pairs(183_105).score.dtype == np.float32
