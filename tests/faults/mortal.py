"""Run a command of the repository so that it can be killed at any of its changes to files.

    python -m tests.faults.mortal tools/mine_pairs.py FLAGS
    python -m tests.faults.mortal -m megatron_sbp.pretrain FLAGS

A change is a file opened for writing, renamed, removed or cut, or a directory made or removed,
below FAULT_BELOW. Every process of the job adds a byte to the file FAULT_CHANGES before each of
them, also those that it forks. At change FAULT_KILL, or FAULT_DELAY seconds after it, the process
that makes it is killed, or with FAULT_VICTIM=job every process of the job.

FAULT_CLOCK: seconds that ``time.time`` jumps by, forwards and back, at every call.
"""

import itertools
import os
import runpy
import signal
import sys
import threading
import time
from typing import Any

from tests.faults.job import MARK, processes

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}


def _die() -> None:
    """Kill this process, or all of the job, itself last."""
    if os.environ["FAULT_VICTIM"] == "job":
        for process in processes(os.environ[MARK]):
            if process != os.getpid():
                os.kill(process, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_changes() -> None:
    below, kill = os.environ["FAULT_BELOW"], int(os.environ["FAULT_KILL"])
    delay = float(os.environ["FAULT_DELAY"])
    changes = os.open(os.environ["FAULT_CHANGES"], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writing = os.O_WRONLY | os.O_RDWR
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & writing
        if not (opened or event in _CHANGES) or not str(arguments[0]).startswith(below):
            return
        os.write(changes, b".")
        if os.fstat(changes).st_size == kill:
            if delay:
                threading.Timer(delay, _die).start()
            else:
                _die()

    sys.addaudithook(watch)


def _shake_clock(seconds: float) -> None:
    true_time = time.time
    jumps = itertools.cycle((0.0, seconds, -seconds))
    time.time = lambda: true_time() + next(jumps)


def main() -> None:
    if "FAULT_CHANGES" in os.environ:
        _watch_changes()
    if "FAULT_CLOCK" in os.environ:
        _shake_clock(float(os.environ["FAULT_CLOCK"]))
    sys.argv = sys.argv[1:]
    if sys.argv[0] == "-m":
        sys.argv = sys.argv[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
