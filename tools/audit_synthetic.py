"""Measure synthetic documents beside real ones: repetition, copying, novelty, relevance, truth."""

from pathlib import Path

from megatron_sbp import cli
from megatron_sbp.evaluation.audit import PAGE, AuditOptions, audit
from megatron_sbp.evaluation.findings import Row
from megatron_sbp.evaluation.intervals import Interval


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:,.0f}"


def _figure(value: float | None, interval: Interval | None) -> str:
    between = "" if interval is None else f" [{', '.join(map(_shown, interval))}]"
    return f"{_shown(value):>7}{between:<16}"


def _line(row: Row) -> str:
    if row.synthetic is None and row.real is None:
        return f"not measured: {row.note}"
    synthetic = _figure(row.synthetic, row.synthetic_interval)
    real = _figure(row.real, row.real_interval)
    return f"{synthetic} {real} {row.unit:<6} {row.note}".rstrip()


def main() -> None:
    options = cli.parse(AuditOptions, __doc__)
    manifest, rows = audit(options)
    header = {"measure [95% interval]": f"{'synthetic':<23} {'real':<23} unit"}
    lines = {row.name: _line(row) for row in rows}
    ending = {"page": Path(options.output) / PAGE, "time": cli.clock(manifest.seconds)}
    cli.summary(f"audit: {options.output}", header | lines | ending)


if __name__ == "__main__":
    cli.run(main)
