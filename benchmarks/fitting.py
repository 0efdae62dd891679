"""Rates of a machine from jobs that were timed."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from megatron_sbp.planning.amounts import Amounts


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed[Work: Amounts]:
    """A job that was timed."""

    work: Work
    devices: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit[Work: Amounts]:
    """What explains the times of some jobs."""

    each: Work
    """Seconds of one device for one of each kind of work."""
    start: float
    """Seconds of a job besides."""
    error: float
    """Largest relative error over the jobs."""

    def seconds(self, job: Timed[Work]) -> float:
        """What the fit says that a job takes."""
        return self.start + job.work.times(self.each, job.devices)


def fit[Work: Amounts](kind: type[Work], jobs: Sequence[Timed[Work]]) -> Fit[Work]:
    """Seconds for one of each kind of work, by non-negative least squares of relative errors."""
    from scipy.optimize import nnls

    shares = [[*job.work.shares(job.devices), 1.0] for job in jobs]
    matrix = np.array(shares) / np.array([[job.seconds] for job in jobs])
    # The columns differ by many powers of ten, which the solver's tolerance would not survive.
    scales = np.maximum(matrix.max(0), 1e-300)
    found = nnls(matrix / scales, np.ones(len(jobs)))[0] / scales
    *each, start = found.tolist()
    names = [one.name for one in fields(kind)]
    return Fit(
        each=kind(**dict(zip(names, each, strict=True))),
        start=start,
        error=float(np.abs(matrix @ found - 1).max()),
    )
