"""The one exception a user is meant to read, and the guard for optional packages."""

import errno
import importlib
import traceback
from pathlib import Path
from types import ModuleType


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line that names the place (file, line, document, rank or flag), the offending
    value and the cure. Commands print it and exit with status 2 (see ``megatron_sbp.cli.run``).
    """


_NOT_WRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_SEMAPHORES = ("multiprocessing", "synchronize.py")
# Of libraries that raise errors of their own. NumPy alone does not say why it wrote less.
_SIGNS = ("No space left on device", "Disk quota exceeded", " requested and ")


def of_the_disk(error: Exception) -> InputError | None:
    """What to tell a user of a disk that is full or read-only; None if the error is another."""
    if isinstance(error, InputError):
        return None
    named = isinstance(error, OSError) and error.errno in _NOT_WRITABLE
    if not named and not any(sign in str(error) for sign in _SIGNS):
        return None
    where = getattr(error, "filename", None) or _place(error)
    reason = getattr(error, "strerror", None) or str(error)
    return InputError(
        f"{where}: cannot be written ({reason}); make room on that disk, and the same command "
        "goes on"
    )


def _place(error: Exception) -> str:
    """Where the disk is full, if the error names no file."""
    frames = traceback.extract_tb(error.__traceback__)
    # The semaphores of a pool of processes are files, which Python does not name.
    semaphore = frames and Path(frames[-1].filename).parts[-2:] == _SEMAPHORES
    return "/dev/shm" if semaphore else "the output"


def require(module: str, *, package: str, extra: str | None = None) -> ModuleType:
    """Import an optional or heavy module where it is needed.

    Args:
        module: Dotted module name.
        package: Name of the distribution on PyPI.
        extra: Extra of this package that brings it, if it is not a plain dependency.

    Raises:
        InputError: If the module cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = f"megatron_sbp[{extra}]" if extra else package
        raise InputError(
            f"cannot import {module} ({error}): install it with `pip install '{wanted}'`"
        ) from error
