"""Runs of ``megatron_sbp.pretrain`` whose ranks are forked from a process that has Megatron loaded.

Loading it takes a rank longer than the twenty steps of a small model. What torchrun does for a
rank, its variables and its end with the others, is done here; ``runs.pretrain`` uses torchrun.
"""

import multiprocessing
import multiprocessing.connection
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.training.runs import SMALL

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([f"{__package__}.preloaded"])
_LIMIT = 300  # seconds


def pretrain(
    *arguments: str, processes: int = 1, drop: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """As ``runs.pretrain``: the small model, in processes of their own, on a CPU."""
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded: with the first run
    line = [*(flag for flag in SMALL if flag not in drop), *arguments]
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory) / name for name in ("stdout", "stderr")]
        port = _free_port()
        ranks = [
            _SERVER.Process(target=_rank, args=(line, _variables(rank, processes, port), outputs))
            for rank in range(processes)
        ]
        for rank in ranks:
            rank.start()
        status = _wait(ranks)
        said, complained = (path.read_text(errors="replace") for path in outputs)
    return subprocess.CompletedProcess(line, status, said, complained)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _variables(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun sets."""
    return {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
        **{"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }


def _rank(line: list[str], variables: dict[str, str], outputs: list[Path]) -> None:
    for stream, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ.update(variables)
    sys.argv = ["pretrain", *line]
    from megatron_sbp.cli import run
    from megatron_sbp.pretrain import main

    run(main)


def _wait(ranks: Sequence[multiprocessing.process.BaseProcess]) -> int:
    """Exit status of the first rank that fails, which ends the others, or 0."""
    end = time.monotonic() + _LIMIT
    while True:
        statuses = [rank.exitcode for rank in ranks]
        failed = [status for status in statuses if status]
        if time.monotonic() > end:
            failed = [-1]
        if failed:
            for rank in ranks:
                rank.kill()
                rank.join()
            return failed[0]
        if None not in statuses:
            return 0
        multiprocessing.connection.wait([rank.sentinel for rank in ranks if rank.is_alive()], 1)
