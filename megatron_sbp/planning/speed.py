"""How fast this machine's cores are at the moment, in seconds of a fixed task.

The same machine may run everything at half the speed of an hour before, where others share its
processors. What a stage took counts together with what the task took then.
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import numpy as np

_ROUNDS = 40
_ROWS, _WIDTH, _INNER = 512, 128, 512


def task_seconds() -> float:
    """Seconds of one round of the task on every core at once, the median of some.

    A round is what a layer of a small model does: two products in float32, and a function of every
    number between them.
    """
    from threadpoolctl import threadpool_limits

    cores = len(os.sched_getaffinity(0))
    with threadpool_limits(1), ThreadPoolExecutor(cores) as threads:
        rounds = threads.map(_rounds, range(cores))
    return median(seconds for one in rounds for seconds in one)


def _rounds(seed: int) -> list[float]:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((_ROWS, _WIDTH), dtype=np.float32)
    into = random.standard_normal((_WIDTH, _INNER), dtype=np.float32)
    back = random.standard_normal((_INNER, _WIDTH), dtype=np.float32)
    found = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(8):
            np.tanh(rows @ into) @ back
        found.append(time.perf_counter() - started)
    return found
