"""Jobs that need each other, run side by side."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter

from megatron_sbp import cli


def run_all(
    needs: Mapping[str, Sequence[str]], work: Callable[[str], bool], at_a_time: int
) -> None:
    """Run jobs, each once those that it needs are done; says what begins and what has ended.

    Of those that may run the one that is named first begins first. After an error no other begins;
    those that are at work end before it is raised.

    Args:
        needs: Name of a job -> names of those that it needs.
        work: Does a job; whether there was anything to do.
        at_a_time: Jobs that run side by side.

    Raises:
        Exception: What ``work`` raised first.
    """
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    places = {name: place for place, name in enumerate(needs)}
    ready: list[str] = []
    running: dict[Future[bool], str] = {}
    begun: dict[str, float] = {}
    done, failure = 0, None
    with ThreadPoolExecutor(at_a_time) as pool:
        while sorter.is_active():
            ready = sorted([*ready, *sorter.get_ready()], key=places.__getitem__)
            while ready and len(running) < at_a_time and failure is None:
                name = ready.pop(0)
                begun[name] = time.monotonic()
                running[pool.submit(work, name)] = name
                _say(f"{name}: begins")
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                name = running.pop(future)
                seconds = cli.clock(time.monotonic() - begun[name])
                if error := future.exception():
                    failure = failure or error
                    _say(f"{name}: failed after {seconds}")
                    continue
                sorter.done(name)
                done += 1
                how = f"done in {seconds}" if future.result() else "nothing to do"
                _say(f"{name}: {how} ({done} of {len(needs)})")
    if failure is not None:
        raise failure


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
