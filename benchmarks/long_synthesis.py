"""Whether the memory of synthesis grows.

    python -m benchmarks.long_synthesis --load CKPT --corpus PREFIX --output DIR [--minutes 60]

Runs tools/synthesize.py, one rank per core, for so long, and prints the most memory that all
processes held together in every tenth of the time, and what a straight line through the second half
says of an hour. DIR gets the documents, curve.json and memory.svg.
"""

import json
import os
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.commands import mpiexec, tool
from benchmarks.memory import Curve, draw, watch
from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write

_ENDLESS = 10_000_000
_PARTS = 10


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the run."""

    load: str = field(metadata={"metavar": "CKPT"})
    """A tuned synthesizer."""
    corpus: list[str] = field(metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus that seeds are drawn from."""
    output: str = field(metadata={"metavar": "DIR"})
    """Where documents and curve go."""
    minutes: float = 60.0
    """How long."""
    documents_per_shard: int = 256
    """Documents of a shard; after each one results are written."""

    def __post_init__(self) -> None:
        if self.minutes < 1:
            raise InputError(f"--minutes {self.minutes}: must be at least 1")


def growth(curve: Curve) -> float:
    """Bytes per hour that the second half of a curve grows by, by least squares."""
    seconds, held = np.array(curve.points).T
    later = seconds > curve.seconds / 2
    return float(np.polyfit(seconds[later], held[later], 1)[0]) * 3600


def run(options: Options) -> Curve:
    """Synthesize for so many minutes."""
    ranks = len(os.sched_getaffinity(0))
    command = [
        *mpiexec(ranks), *tool("synthesize"), "--load", options.load,
        "--corpus", *options.corpus, "--output-prefix", f"{options.output}/synthetic/synthetic",
        "--num-documents", str(_ENDLESS), "--documents-per-shard", str(options.documents_per_shard),
    ]  # fmt: skip
    return watch(f"synthesize, {ranks} ranks", command, seconds=options.minutes * 60)


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    curve, directory = run(options), Path(options.output)
    with atomic_write(directory / "curve.json") as temporary:
        temporary.write_text(json.dumps(asdict(curve)))
    draw([curve], directory / "memory.svg")
    bounds = np.linspace(0, len(curve.points), _PARTS + 1).astype(int).tolist()
    rows = {}
    for part in (curve.points[first:last] for first, last in pairwise(bounds)):
        minutes = f"minute {part[0][0] / 60:.1f} to {part[-1][0] / 60:.1f}"
        rows[minutes] = f"{max(held for _, held in part) / (1 << 20):,.0f} MiB"
    rows["growth in the second half"] = f"{growth(curve) / (1 << 20):+,.0f} MiB per hour"
    cli.summary(curve.name, rows)


if __name__ == "__main__":
    cli.run(main)
