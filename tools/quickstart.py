"""The whole loop on this machine, from documents to a report."""

from megatron_sbp import cli
from megatron_sbp.quickstart import Quickstart, QuickstartOptions

DESCRIPTION = """
Run every stage of Synthetic Bootstrapped Pretraining on this machine, each through its own command:
preprocess, embed, mine, baseline, synthesizer, synthesize, filter, audit, joint run, report.
Run again after an interruption, it continues at the stage it was in.
"""


def main() -> None:
    Quickstart(cli.parse(QuickstartOptions, DESCRIPTION)).run()


if __name__ == "__main__":
    cli.run(main)
