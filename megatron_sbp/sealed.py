"""Directories that are made whole or not at all, with the checksums of their files in them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_sbp.errors import InputError
from megatron_sbp.manifest import fingerprint

_FILENAME = "checksums.json"


@contextmanager
def sealed_directory(directory: Path) -> Iterator[Path]:
    """Make a directory that a run which is continued can check.

    Yields:
        An empty directory, which becomes ``directory`` if the block ends well.
    """
    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        found = {
            str(path.relative_to(partial)): fingerprint(path)
            for path in sorted(partial.rglob("*"))
            if path.is_file()
        }
        (partial / _FILENAME).write_text(json.dumps(found))
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_seal(directory: Path) -> None:
    """Compare the files of such a directory with their checksums.

    Raises:
        InputError: If one differs or cannot be read.
    """
    cure = f"remove {directory}, and the same command makes it again"
    try:
        for name, entry in json.loads((directory / _FILENAME).read_text()).items():
            if fingerprint(directory / name) != entry:
                raise InputError(f"{directory / name}: is damaged (its checksum differs); {cure}")
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{directory / _FILENAME}: is damaged ({error}); {cure}") from None
