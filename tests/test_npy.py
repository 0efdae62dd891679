"""Arrays in files, and what is looked up in arrays."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.npy import positions
from tests.faults.job import has_namespaces

# The last line is met if creating raised; a process that fills a map of a file without room dies of
# SIGBUS.
_FULL_DISK = """
import errno, sys
import numpy as np
from megatron_sbp.npy import create_npy
try:
    create_npy(sys.argv[1] + "/array.npy", np.float64, 100_000)[:] = 1.0
except OSError as error:
    sys.exit(0 if error.errno == errno.ENOSPC else 1)
sys.exit(1)
"""


@pytest.mark.skipif(not has_namespaces(), reason="no mount namespaces: needs root on Linux")
@pytest.mark.parametrize("size", ["4k", "64k", "600k"])
def test_a_full_disk_is_an_error(size: str, tmp_path: Path) -> None:
    """A file that is filled through a map of it is there in full before the map is."""
    mount = 'mount -t tmpfs -o size=$1 tmpfs "$2" && exec "$3" -c "$4" "$2"'
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", size, str(tmp_path)]
    status = subprocess.run([*command, sys.executable, _FULL_DISK], check=False).returncode
    assert status == 0


@pytest.mark.parametrize("seed", range(5))
def test_positions_are_where_every_value_is(seed: int) -> None:
    draw = np.random.default_rng(seed)
    values = draw.integers(-3, 12, size=draw.integers(1, 60))
    found = dict(positions(values))
    assert list(found) == sorted(set(values.tolist()))
    for value, where in found.items():
        assert np.array_equal(where, np.flatnonzero(values == value)), f"seed {seed}"
    assert not list(positions(values[:0]))
