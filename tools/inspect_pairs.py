"""Show mined pairs as text, side by side, with their score and how much they overlap."""

from megatron_sbp import cli
from megatron_sbp.mining.inspect import InspectOptions, inspect


def main() -> None:
    options = cli.parse(InspectOptions, __doc__)
    for line in inspect(options):
        print(line)


if __name__ == "__main__":
    cli.run(main)
