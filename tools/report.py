"""Make one HTML page, and the same as JSON, of what a run of the loop did and measured."""

from megatron_sbp import cli
from megatron_sbp.evaluation.report import ReportOptions, report


def main() -> None:
    report(cli.parse(ReportOptions, __doc__ or ""))


if __name__ == "__main__":
    cli.run(main)
