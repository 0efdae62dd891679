"""Files of arrays: what comes back, and that no damage goes unseen."""

import random
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.errors import InputError
from megatron_sbp.mining.arrays import check_arrays, map_arrays, save_arrays


def arrays(seed: int) -> dict[str, np.ndarray]:
    source = np.random.default_rng(seed)
    return {
        "bool": source.random(13) < 0.5,
        "empty": np.empty((0, 3), np.int64),
        "table": source.integers(-9, 9, (7, 5), dtype=np.int32).T,
        "float16": source.normal(size=33).astype(np.float16),
    }


def test_arrays_and_counts_come_back(tmp_path: Path) -> None:
    given = arrays(1)
    save_arrays(tmp_path / "x.arrays", given, {"above": 3})
    check_arrays(tmp_path / "x.arrays")
    found, counts = map_arrays(tmp_path / "x.arrays")
    assert counts == {"above": 3} and found.keys() == given.keys()
    for name, array in given.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_a_flipped_bit_is_seen_wherever_it_is(tmp_path: Path) -> None:
    """But in the bytes between two arrays, which nobody reads."""
    path, given = tmp_path / "x.arrays", arrays(2)
    save_arrays(path, given, {"above": 3})
    whole = path.read_bytes()
    unseen = 0
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << random.Random(place).randrange(8)
        path.write_bytes(content)
        try:
            check_arrays(path)
        except InputError as error:
            assert str(path) in str(error)
        else:
            assert whole[place] == 0
            unseen += 1
    held = sum(array.nbytes for array in given.values())
    assert unseen == len(whole) - whole.index(b"\n") - 1 - held


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, share: float) -> None:
    path = tmp_path / "x.arrays"
    save_arrays(path, arrays(3), {})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=f"{path}: is damaged"):
        check_arrays(path)
