"""Say whether a training run would fail on its arguments or its data, and show rows of it.

Takes the arguments of `python -m megatron_sbp.pretrain` and the flags below. It needs no GPU and
starts no processes: a run of any layout is checked in one.
"""

import sys

from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.training.lint.check import Finding, LintOptions, lint, split_arguments


def main() -> None:
    own, run = split_arguments(sys.argv[1:])
    options = cli.parse(LintOptions, __doc__ or "", own)
    counts = {"ok": 0, "warning": 0, "error": 0}
    for found in lint(options, run):
        if isinstance(found, Finding):
            counts[found.status] += 1
        print(found.line(options.color) if isinstance(found, Finding) else found, flush=True)
    if counts["error"]:
        raise InputError(f"the run would fail: {counts['error']} of the lines above say why")
    cli.summary("no check found an error", {"warnings": counts["warning"]})


if __name__ == "__main__":
    cli.run(main)
