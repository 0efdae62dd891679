"""Show mined pairs as text, side by side, with their score and how much they overlap.

Then say how many pairs there are at which scores, and how many an anchor has; also as a plot.
"""

from megatron_sbp import cli
from megatron_sbp.mining.inspect import InspectOptions, inspect


def main() -> None:
    options = cli.parse(InspectOptions, __doc__)
    for line in inspect(options):
        print(line)


if __name__ == "__main__":
    cli.run(main)
