"""Settles the parts in a directory, as one of several ranks; run by test_settle.py.

Prints what was removed and how many pairs are left, or kills itself.
"""

import argparse
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_sbp.mining.layout import cut
from megatron_sbp.mining.pairs import ColumnWriter
from megatron_sbp.mining.parts import Parts
from megatron_sbp.mining.settle import settle
from megatron_sbp.ranks import Ranks


def kill_before(count: int, owner: Any, name: str) -> None:
    """Let the process kill itself when it calls a function for the ``count``-th time."""
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def counted(*given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*given)

    setattr(owner, name, counted)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--documents", type=int)
    parser.add_argument("--size", type=int)
    parser.add_argument("--cap", type=int)
    parser.add_argument("--kill-at-file", type=int, default=0)
    parser.add_argument("--kill-at-write", type=int, default=0)
    options = parser.parse_args()
    with Ranks.open() as ranks:
        if ranks.rank == 0:
            kill_before(options.kill_at_file, os, "replace")
            kill_before(options.kill_at_write, ColumnWriter, "write")
        parts = Parts(options.workspace / "parts", cut(options.documents, options.size))
        settled = settle(parts, options.workspace, ranks, one_direction=True, cap=options.cap)
        assert len(set(ranks.gather(json.dumps(asdict(settled))))) == 1
        if ranks.rank == 0:
            print(json.dumps(asdict(settled)))


if __name__ == "__main__":
    main()
