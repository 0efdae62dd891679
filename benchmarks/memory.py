"""The memory of a command, and of all processes that it starts, while it runs."""

import contextlib
import itertools
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sbp.errors import InputError

_EVERY = 1.0  # seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """What one command held."""

    name: str
    seconds: float
    """From its start to its end."""
    points: list[tuple[float, int]]
    """Seconds since the start, and bytes."""

    @property
    def most(self) -> int:
        """The largest number of bytes."""
        return max(held for _, held in self.points)


def watch(name: str, command: Sequence[str], *, seconds: float | None = None) -> Curve:
    """Run a command and look at its memory every second.

    What counts is what cannot be dropped: private memory and shared memory, each page once, but not
    the pages of mapped files, which the kernel takes back when it needs them.

    Args:
        name: Of the curve.
        command: To run; its output goes to standard error.
        seconds: End it with TERM after so long.

    Raises:
        InputError: If it fails, or ends by itself before ``seconds``.
    """
    started, points = time.monotonic(), []
    process = subprocess.Popen(command, stdout=sys.stderr)
    while process.poll() is None:
        moment = time.monotonic() - started
        points.append((moment, _held(process.pid)))
        if seconds is not None and moment > seconds:
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EVERY)
    took = time.monotonic() - started
    if process.returncode if seconds is None else took < seconds:
        raise InputError(f"{shlex.join(command)} ended with status {process.returncode}; see above")
    return Curve(name=name, seconds=took, points=points)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draw curves one after another, with the name and the most of each."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    ends = [0.0, *itertools.accumulate(curve.seconds for curve in curves)]
    with rc_context({"svg.hashsalt": "memory", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        for curve, start in zip(curves, ends, strict=False):
            minutes = [(start + moment) / 60 for moment, _ in curve.points]
            held = [held / (1 << 30) for _, held in curve.points]
            label = f"{curve.name}: {curve.most / (1 << 30):.1f} GiB at most"
            axes.fill_between(minutes, held, alpha=0.3)
            axes.plot(minutes, held, linewidth=1, label=label)
        axes.set(xlabel="minutes", ylabel="GiB", xlim=(0, ends[-1] / 60), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
        figure.savefig(path, metadata={"Date": None})


def _held(root: int) -> int:
    held = 0
    for pid in _tree(root):
        with contextlib.suppress(OSError):  # It has ended.
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:", "SwapPss:")):
                    held += int(line.split()[1]) * 1024
    return held


def _tree(root: int) -> Iterator[int]:
    yield root
    for children in Path(f"/proc/{root}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from _tree(int(child))
