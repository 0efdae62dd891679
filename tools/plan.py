"""What the loop of a recipe will cost on some machines, stage by stage, before it is started."""

from megatron_sbp import cli
from megatron_sbp.planning.measured import Measured
from megatron_sbp.planning.plan import Plan, PlanOptions
from megatron_sbp.planning.show import show


def main() -> None:
    options = cli.parse(PlanOptions, __doc__)
    show(Plan(options), Measured.read(options.measured) if options.measured else None)


if __name__ == "__main__":
    cli.run(main)
