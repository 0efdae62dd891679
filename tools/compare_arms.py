"""Train repetition, SBP, its controls and the oracle side by side, and say how much SBP gains.

Every stage runs through its own command, those that do not need each other at the same time, and
what arms share is made once. Run again after an interruption, the command continues.
"""

import sys

from megatron_sbp import cli
from megatron_sbp.comparison.options import parse
from megatron_sbp.comparison.run import compare


def main() -> None:
    compare(parse(__doc__ or "", sys.argv[1:]))


if __name__ == "__main__":
    cli.run(main)
