"""One run of a command: all of its processes, what they said, and what they left behind.

A job has a /dev/shm and a directory for temporary files of its own where the machine allows it
(root), so that what is left there can be told from what others leave.
"""

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import ROOT

MARK = "FAULT_JOB"
"""Variable of the environment by which the processes of a job are found."""
PATIENCE = 60.0
"""Seconds in which the processes that a fault leaves must end."""
_POLL = 0.01
_MOUNT = 'mount {what} /dev/shm && exec "$@"'


class Hung(Exception):
    """The job did not end by itself; it was killed."""


def processes(mark: str) -> list[int]:
    """The processes of a job that are alive."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(entry))
    return found


@functools.cache
def has_namespaces() -> bool:
    """Whether a process may have a /dev/shm of its own here."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class Job:
    """A command that was started.

    Args:
        command: Arguments of this interpreter.
        place: Directory for what the job says and leaves.
        ranks: MPI processes.
        environment: More variables.
        shared: Size of its /dev/shm, such as ``64k``; without a limit if empty.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        place: Path,
        *,
        ranks: int = 1,
        environment: dict[str, str] | None = None,
        shared: str = "",
    ):
        self.mark = uuid.uuid4().hex
        self._said = {name: place / name for name in ("stdout", "stderr")}
        self._shm = place / "shm"
        self._shm.mkdir(parents=True, exist_ok=True)
        # Sockets lie there, whose paths must be short.
        self._tmp = Path(tempfile.mkdtemp(prefix="fault-"))
        self._command = [sys.executable, "-m", "tests.faults.mortal", *map(str, command)]
        line = self._command
        if ranks > 1:
            line = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks), *line]
        if has_namespaces():
            what = f"-t tmpfs -o size={shared} tmpfs" if shared else f"--bind {self._shm}"
            line = ["unshare", "--mount", "sh", "-c", _MOUNT.format(what=what), "sh", *line]
        own = {MARK: self.mark, "TMPDIR": str(self._tmp), "OMP_NUM_THREADS": "1"}
        own["PYTHONPATH"] = str(ROOT)
        variables = os.environ | own | (environment or {})
        self._started = time.monotonic()
        with (
            open(self._said["stdout"], "wb") as stdout,
            open(self._said["stderr"], "wb") as stderr,
        ):
            self._process = subprocess.Popen(
                line,
                cwd=ROOT,
                env=variables,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )

    @property
    def error(self) -> str:
        """What it wrote to standard error."""
        return self._said["stderr"].read_text(errors="replace")

    @property
    def everything(self) -> str:
        """All that it wrote."""
        return self._said["stdout"].read_text(errors="replace") + self.error

    @property
    def said(self) -> str:
        """The end of it."""
        return self.everything[-3000:]

    @property
    def status(self) -> int:
        """Of the process that was started, which has ended."""
        return self._process.returncode

    @property
    def main(self) -> int:
        """The process that was started: mpiexec, where there are ranks."""
        return self._process.pid

    def ranks(self) -> list[int]:
        """The interpreters that run the command itself; not mpiexec, which names it, too."""
        own = "\0".join(self._command).encode()
        return [pid for pid in processes(self.mark) if _line(pid).startswith(own)]

    def ended(self) -> bool:
        """Whether the process that was started has ended."""
        return self._process.poll() is not None

    def signal_all(self, number: int) -> None:
        """Send a signal to every process of the job."""
        for pid in processes(self.mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def sleep(self, seconds: float) -> bool:
        """Let it work for some seconds; whether it is still at work."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill_all(self) -> None:
        """Kill every process, and those that they started meanwhile."""
        while processes(self.mark) or not self.ended():
            self.signal_all(signal.SIGKILL)
            time.sleep(_POLL)

    def until(self, happened: Callable[[], bool], seconds: float) -> bool:
        """Wait until something happens, or the job ends; whether it happened.

        Raises:
            Hung: If neither is so after some seconds.
        """
        deadline = time.monotonic() + seconds
        while not happened():
            if self.ended():
                return happened()
            if time.monotonic() > deadline:
                self.kill_all()
                raise Hung(f"after {seconds:.0f} s: {self.said}")
            time.sleep(_POLL)
        return True

    def wait(self, seconds: float) -> int:
        """Wait for the end of all its processes; the exit status of the first.

        Raises:
            Hung: If one of them is left; it was killed.
        """
        self.until(self.ended, seconds)
        deadline = time.monotonic() + PATIENCE
        while left := processes(self.mark):
            if time.monotonic() > deadline:
                lines = [_line(pid).replace(b"\0", b" ").decode()[:200] for pid in left]
                self.kill_all()
                raise Hung(f"orphans after {PATIENCE:.0f} s: {lines}")
            time.sleep(_POLL)
        self.seconds = time.monotonic() - self._started
        """From the start to the end of the last process."""
        self.left = [str(path) for top in (self._shm, self._tmp) for path in top.rglob("*")]
        """What lay in its /dev/shm and in its directory for temporary files then."""
        shutil.rmtree(self._tmp)
        return self.status


def _line(pid: int) -> bytes:
    """Command line of a process, empty if it has ended."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
