"""The page of a comparison: report.html, self-contained, and report.json, what it says."""

import json
from pathlib import Path
from typing import Any

from megatron_sbp.comparison.differences import BASES, REFERENCES
from megatron_sbp.comparison.plots import draw
from megatron_sbp.comparison.reading import percent
from megatron_sbp.evaluation import pages
from megatron_sbp.evaluation.report import DATA, PAGE
from megatron_sbp.evaluation.report_content import ledger_entry
from megatron_sbp.planning.units import si


def write(directory: str | Path, content: dict[str, Any]) -> None:
    """Write both files.

    Args:
        directory: An existing one.
        content: Of ``summarise``.
    """
    text = json.dumps(content, indent=1, allow_nan=False)
    (Path(directory) / DATA).write_text(text + "\n")
    (Path(directory) / PAGE).write_text(render(content), encoding="utf-8")


def render(content: dict[str, Any]) -> str:
    """The page for the content of report.json alone; every text in it is escaped."""
    differences = {(row["arm"], row["reference"]): row for row in content["differences"]}
    recovered = {(row["arm"], row["base"]): row for row in content["recovered"]}
    ledger = [
        ledger_entry(f"{arm['arm']}, seed {run['seed']}", run["sources"])
        for arm in content["arms"]
        for run in arm["ledgers"]
    ]
    # Tables by pairs of names, which JSON's keys cannot be.
    tables = {"by_arms": differences, "shares": recovered, "ledger": ledger}
    names = {"references": REFERENCES, "bases": BASES, "si": si, "percent": percent}
    return pages.render("comparison.html.jinja", draw(content), **tables, **names, **content)
