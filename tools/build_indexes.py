"""Build every index of a training run before it starts, so that no rank waits for another.

Takes the arguments of `python -m megatron_sbp.pretrain`, the same as the run, and writes into its
--data-cache-path what the run would build at its start. One process, no GPU.
"""

import sys
from dataclasses import dataclass

from megatron_sbp import cli
from megatron_sbp.training.indexes import build


@dataclass
class BuildOptions:
    """All arguments are those of the run."""


def main() -> None:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        cli.parse(BuildOptions, __doc__ or "", ["--help"])
    built = build(arguments)
    cli.summary(
        "indexes are in the cache",
        {
            "files there before": built.present,
            "files written": len(built.written),
            "size": f"{built.bytes / 2**20:,.1f} MiB",
            "time": cli.clock(built.seconds),
            "peak memory": f"{built.peak_memory_bytes / 2**20:,.0f} MiB",
        },
    )


if __name__ == "__main__":
    cli.run(main)
