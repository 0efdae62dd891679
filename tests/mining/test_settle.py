import functools
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import megatron_sbp.mining.settle
from megatron_sbp.mining.layout import cut
from megatron_sbp.mining.pairs import COLUMNS, PairStore
from megatron_sbp.mining.parts import Parts
from megatron_sbp.mining.settle import Settled, settle
from megatron_sbp.ranks import Ranks
from tests.conftest import run_command
from tests.mining.test_pairs import Row, columns
from tests.mining.test_parts import rows_of

HUGE = 3_000_000_000
CAP = 3
ids = st.integers(0, 8)
rows = st.lists(
    st.tuples(ids, ids, st.sampled_from([0.75, 0.875, 1.0])).filter(lambda row: row[0] != row[1]),
    unique_by=lambda row: row[:2],
)


def save_parts(directory: Path, found: Sequence[Row], documents: int, size: int) -> Parts:
    parts = Parts(directory, cut(documents, size))
    for number, (start, stop) in enumerate(parts.blocks):
        inside = [row for row in found if start <= row[0] < stop]
        parts.save(number, columns(inside).ordered(), {})
    return parts


def by_hand(found: Sequence[Row], one_direction: bool, cap: int) -> tuple[list[Row], Settled]:
    """The rules as docs/mining.md has them, in plain Python."""
    both = {row[:2] for row in found}
    left = [
        (a, b, score)
        for a, b, score in found
        if not one_direction or (b, a) not in both or (a < b) == ((a + b) % 2 == 0)
    ]
    by_neighbor = defaultdict(list)
    for row in left:
        by_neighbor[row[1]].append(row)
    final = []
    for leading in by_neighbor.values():
        leading.sort(key=lambda row: (-row[2], row[0]))
        final += leading[: cap or None]
    final.sort(key=lambda row: (row[0], -row[2], row[1]))
    removed = {}
    if one_direction:
        removed["other_direction"] = len(found) - len(left)
    if cap:
        removed["beyond_anchors_per_neighbor"] = len(left) - len(final)
    return final, Settled(pairs=len(final), removed=removed)


def stored(directory: Path) -> list[Row]:
    store = PairStore(directory)
    return rows_of(store[:])


@given(
    found=rows,
    one_direction=st.booleans(),
    cap=st.integers(0, 3),
    size=st.integers(1, 9),
    held=st.sampled_from([1, 5, 1000]),
)
@settings(max_examples=80, deadline=None)
def test_rules_by_plain_python(
    found: list[Row],
    one_direction: bool,
    cap: int,
    size: int,
    held: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("settle")
    parts = save_parts(directory / "parts", found, 9, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(megatron_sbp.mining.settle, "_ROWS", held)
        settled = settle(parts, directory, Ranks(), one_direction=one_direction, cap=cap)
    expected, counts = by_hand(found, one_direction, cap)
    assert settled == counts
    if expected:
        assert stored(directory) == expected
    else:
        assert not list(directory.glob("*.npy"))


def random_rows(seed: int, documents: list[int], count: int) -> list[Row]:
    """Distinct pairs of documents, a few of which very many lead to, scores with many ties."""
    source = np.random.default_rng(seed)
    places = len(documents)
    anchors = source.integers(0, places, count)
    neighbors = (source.random(count) ** 3 * places).astype(int)
    found = {
        (documents[a], documents[b]): (documents[a], documents[b], source.integers(48, 65) / 64)
        for a, b in zip(anchors.tolist(), neighbors.tolist(), strict=True)
        if a != b
    }
    return list(found.values())


def run(workspace: Path, ranks: int, documents: int, size: int, **others: int) -> Any:
    """Settle the parts in a workspace in processes of their own."""
    values = {"documents": documents, "size": size, "cap": CAP} | others
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    return run_command("tests/mining/settle_ranks.py", workspace, *flags, ranks=ranks)


@pytest.mark.parametrize(
    ("ranks", "size"), [(1, 1 << 28), (2, 1 << 28), (2, (1 << 27) + 12345), (2, 1 << 31)]
)
def test_any_ranks_and_blocks_give_the_same(ranks: int, size: int, tmp_path: Path) -> None:
    """Ids beyond 31 and 32 bits: few documents of a corpus of many have pairs."""
    source = np.random.default_rng(3)
    documents = sorted({*source.integers(0, 2 * HUGE, 60).tolist(), 0, 1 << 31, 1 << 32})
    found = random_rows(4, documents, 900)
    save_parts(tmp_path / "parts", found, 2 * HUGE, size)
    done = run(tmp_path, ranks, 2 * HUGE, size)
    expected, counts = by_hand(found, True, CAP)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == asdict(counts)
    assert min(counts.removed.values()) > 0
    assert stored(tmp_path) == expected


def test_killed_and_started_again(tmp_path: Path) -> None:
    found = random_rows(5, list(range(200)), 4000)
    expected, counts = by_hand(found, True, CAP)
    attempt = functools.partial(run, documents=200, size=20)

    def inodes() -> dict[str, int]:
        files = (tmp_path / "killed" / "parts").glob("dropped-*")
        return {path.name: path.stat().st_ino for path in files}

    for name in ("killed", "whole"):
        save_parts(tmp_path / name / "parts", found, 200, 20)
    whole = attempt(tmp_path / "whole", 1)
    assert json.loads(whole.stdout) == asdict(counts) and stored(tmp_path / "whole") == expected

    assert attempt(tmp_path / "killed", 2, kill_at_file=3).returncode
    first = inodes()
    assert 2 <= len(first) < 10, "not killed in the middle of the decisions"
    assert attempt(tmp_path / "killed", 1, kill_at_write=4).returncode
    second = inodes()
    assert len(second) == 10 and first.items() <= second.items()
    done = attempt(tmp_path / "killed", 2)
    assert json.loads(done.stdout) == asdict(counts) and inodes() == second
    for name in COLUMNS:
        column = (tmp_path / "whole" / f"{name}.npy").read_bytes()
        assert (tmp_path / "killed" / f"{name}.npy").read_bytes() == column
