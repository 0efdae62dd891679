"""Leave out synthetic documents that are unended, short, repetitive, copies or duplicates.

Several processes share the work:  mpiexec -n 4 python tools/filter_synthetic.py ...
"""

from megatron_sbp import cli
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.filter_options import FilterOptions
from megatron_sbp.synthesis.filters import Filtered, filter_synthetic

_SHOWN = 100


def main() -> None:
    options = cli.parse(FilterOptions, __doc__)
    with Ranks.open() as ranks:
        found = filter_synthetic(options, ranks)
        if ranks.rank == 0:
            report(options, found)


def report(options: FilterOptions, found: Filtered) -> None:
    """Print what was left out."""
    counts = found.counts
    if options.dry_run:
        for name, examples in found.examples.items():
            for number, text in examples:
                print(f"{name}: document {number}: {' '.join(text.split())[:_SHOWN]}")
    rows = {"documents given": counts["given"]}
    rows |= {f"  {name.replace('_', ' ')}": count for name, count in counts["removed"].items()}
    rows |= {"documents kept": counts["documents"], "tokens kept": counts["tokens"]}
    title = "dry run, nothing written" if options.dry_run else f"filtered: {options.output_prefix}"
    cli.summary(title, rows)


if __name__ == "__main__":
    cli.run(main)
