"""What a killed training run leaves is mended, and two runs never save to one directory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write
from megatron_sbp.training.interruption import Lock, mend_tracker, whole_indexes

TRACKER = "latest_checkpointed_iteration.txt"


def checkpoint(run: Path, iteration: int, *, complete: bool) -> None:
    directory = run / f"iter_{iteration:07d}"
    directory.mkdir(parents=True)
    if complete:
        (directory / "metadata.json").write_text("{}")


def test_an_emptied_tracker_names_the_newest_complete_checkpoint(tmp_path: Path) -> None:
    for iteration, complete in ((8, True), (12, True), (16, False)):
        checkpoint(tmp_path, iteration, complete=complete)
    (tmp_path / TRACKER).write_text("")
    mend_tracker(tmp_path)
    assert (tmp_path / TRACKER).read_text() == "12"


@pytest.mark.parametrize("latest", ["8", "release", "8\n"])
def test_a_tracker_that_names_one_stays(tmp_path: Path, latest: str) -> None:
    checkpoint(tmp_path, 12, complete=True)
    (tmp_path / TRACKER).write_text(latest)
    mend_tracker(tmp_path)
    assert (tmp_path / TRACKER).read_text() == latest


def test_a_tracker_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("8a")
    with pytest.raises(InputError, match=f"{tmp_path}/{TRACKER}: holds '8a', not an iteration"):
        mend_tracker(tmp_path)


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    """Which is killed while it writes its manifest, of which nothing stays."""
    program = (
        "import sys\n"
        "from megatron_sbp.files import atomic_write\n"
        "from megatron_sbp.training.interruption import Lock\n"
        "lock = Lock(sys.argv[1])\n"
        "with atomic_write(sys.argv[1] + '/manifest.json'):\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"{tmp_path}: another run is writing this output"):
            Lock(tmp_path)
        first.kill()
        first.wait()
        Lock(tmp_path).remove()
    assert not list(tmp_path.iterdir())


def test_an_array_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    """And what a killed run has left of one is removed, but not what another run is writing."""
    array = np.random.default_rng(0).integers(0, 9, size=(5, 3))
    np.save(tmp_path / "plain.npy", array)
    abandoned = tmp_path / ".index.npy.tmp-1"
    abandoned.write_bytes(b"half")
    with atomic_write(tmp_path / "other.npy") as at_work:
        with whole_indexes(str(tmp_path)):
            assert at_work.exists() and not abandoned.exists()
            np.save(f"{tmp_path}/index.npy", array, allow_pickle=True)
        at_work.write_bytes(b"other")
    names = {"plain.npy", "other.npy", "index.npy"}
    assert set(os.listdir(tmp_path)) == names
    assert (tmp_path / "index.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()
