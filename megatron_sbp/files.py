"""Files that are there whole or not at all, and locks that end with the process that holds them."""

import contextlib
import errno
import fcntl
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary path that takes the name ``path`` when the block ends without an error."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_RDWR, 0o644)
    try:
        with contextlib.suppress(OSError):  # Not every file system has locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(descriptor)


def remove_abandoned(directory: str | Path) -> None:
    """Remove what an ``atomic_write`` has left that was killed; one at work holds its lock."""
    for path in Path(directory).glob(".*.tmp-*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(descriptor)


def is_locked(descriptor: int, path: str | Path) -> bool:
    """Whether this process now has the lock of a file, opened by it, that still has its name."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run that held it may have removed or renamed the file in the meantime.
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def check_regular(path: str | Path) -> None:
    """Look at a file before it is opened: a pipe may never end, or never begin.

    Raises:
        OSError: If it is a pipe, a socket or a device, or is not there.
    """
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a file", str(path))


def most_open() -> int:
    """How many files a process may keep open for one purpose, or mapped, which takes as much.

    An eighth of what the system allows it, but no fewer than 64 and no more than 8,192: Linux has
    65,530 maps for a process. The soft limit, which is often 1,024, is raised to the hard one.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return 8192 if soft == resource.RLIM_INFINITY else min(max(soft // 8, 64), 8192)


def flush(path: Path) -> None:
    """Have a file (or the names in a directory) on the disk before anything relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
