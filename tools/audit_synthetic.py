"""Measure synthetic documents beside real ones: repetition, duplicates, copying, relevance."""

from megatron_sbp import cli
from megatron_sbp.evaluation.audit import AuditOptions, Row, audit


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def _line(row: Row) -> str:
    if row.synthetic is None and row.real is None:
        return f"not measured: {row.note}"
    return f"{_shown(row.synthetic):>9} {_shown(row.real):>9}  {row.unit:<6} {row.note}"


def main() -> None:
    options = cli.parse(AuditOptions, __doc__)
    manifest, rows = audit(options)
    header = {"measure": f"{'synthetic':>9} {'real':>9}  unit"}
    lines = {row.name: _line(row) for row in rows}
    cli.summary(f"audit: {options.output}", header | lines | {"time": cli.clock(manifest.seconds)})


if __name__ == "__main__":
    cli.run(main)
