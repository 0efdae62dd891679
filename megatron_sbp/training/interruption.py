"""What keeps a killed run from leaving files that its restart, or another run, would stumble on.

Megatron writes the indexes of its data cache and the name of the newest checkpoint in place: killed
while it does, it finds half a file at the next start, and fails or ends with status 0.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.errors import InputError
from megatron_sbp.files import atomic_write, is_locked, remove_abandoned
from megatron_sbp.models.checkpoint import LATEST
from megatron_sbp.npy import save_npy

_LOCK = ".lock"


@contextmanager
def whole_indexes(cache: str | None) -> Iterator[None]:
    """Have every array that Megatron saves meanwhile get its name when it is complete.

    Args:
        cache: Megatron's ``--data-cache-path``; what killed runs have left in it is removed.
    """
    if cache is not None:
        remove_abandoned(cache)
    save = np.save

    def save_whole(path: str, array: np.ndarray, **_: Any) -> None:
        with atomic_write(path) as temporary:
            save_npy(temporary, array)

    np.save = save_whole  # type: ignore[assignment]
    try:
        yield
    finally:
        np.save = save


def mend_tracker(directory: str | Path) -> None:
    """Write the newest checkpoint's number where a killed run has left an empty file for it.

    Args:
        directory: Megatron's ``--load``.

    Raises:
        InputError: If the file holds something that is no iteration, which Megatron takes for the
            end of the run.
    """
    path = Path(directory) / LATEST
    if not path.is_file():
        return
    latest = path.read_text(errors="replace").strip()
    if latest == "release" or latest.isdecimal():
        return
    if latest:
        raise InputError(
            f"{path}: holds {latest[:40]!r}, not an iteration; write one that is there into it"
        )
    # It is emptied only when the checkpoint, of which metadata.json is a last part, is complete.
    numbers = [
        int(found.parent.name.removeprefix("iter_"))
        for found in path.parent.glob("iter_[0-9]*/metadata.json")
    ]
    if not numbers:
        path.unlink()
        return
    with atomic_write(path) as temporary:
        temporary.write_text(str(max(numbers)))


class Lock:
    """Of a run on the directory that it saves to, until this process ends.

    Args:
        directory: Megatron's ``--save``; what killed runs have left in it is removed.

    Raises:
        InputError: If another run has it.
    """

    def __init__(self, directory: str | Path):
        self._path = Path(directory) / _LOCK
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o644)
        if not is_locked(self._descriptor, self._path):
            raise InputError(
                f"{directory}: another run is writing this output; wait for it or stop it"
            )
        remove_abandoned(directory)

    def remove(self) -> None:
        """Remove the file; the run is complete."""
        self._path.unlink()
