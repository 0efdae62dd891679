"""The report of a run: report.html, one self-contained page, and report.json, what it says."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_sbp import cli, metrics
from megatron_sbp.corpus.indexed import idx_path
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation import pages, report_content, report_pairs
from megatron_sbp.evaluation.report_boxes import AUDIT, ROLES, Box, open_boxes
from megatron_sbp.evaluation.report_figures import draw
from megatron_sbp.manifest import FILENAME, Manifest, Stage

PAGE, DATA = "report.html", "report.json"
FORMAT = "megatron_sbp report 1"


@dataclass(kw_only=True, slots=True)
class ReportOptions:
    """Options of ``tools/report.py``: every box is optional, and what is absent is named."""

    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write report.html and report.json to."""
    run: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory that holds the boxes of one run; boxes not given below are found in it by what
    their manifests say."""
    corpus: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Megatron prefixes of the real documents: all that the pairs were mined from."""
    embeddings: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Embeddings box; random pairs for comparison are drawn from it."""
    pairs: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Pair store."""
    baseline: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Training run on the real documents."""
    synthesizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Training run on the pairs."""
    synthetic: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Megatron prefixes of the documents as they were generated: one, or those of all parts."""
    filtered: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Megatron prefixes of the documents that passed the filters."""
    audit: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Audit of the synthetic documents."""
    joint: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Training run on real and synthetic documents."""
    examples: int = 5
    """Number of example triples."""
    example_characters: int = 1000
    """Characters shown of each example document."""
    random_pairs: int = 20_000
    """Pairs drawn from the embeddings."""
    seed: int = 0
    """Seed of that draw."""

    def __post_init__(self) -> None:
        for name, least in (("examples", 0), ("example_characters", 1), ("random_pairs", 1)):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {getattr(self, name)}: give at least {least}")
        if self.run is None and not self.given():
            raise InputError("nothing to report on: give --run DIR or at least one box")

    def given(self) -> dict[str, list[str]]:
        """Role -> paths of the boxes that have a flag of their own."""
        paths = {role: getattr(self, role) for role in ROLES if getattr(self, role)}
        return {role: path if isinstance(path, list) else [path] for role, path in paths.items()}

    def deciding(self) -> dict[str, Any]:
        """What decides the content besides the boxes."""
        names = {entry.name for entry in fields(self)} - {"output", "run", *ROLES}
        return {name: getattr(self, name) for name in sorted(names)}


def report(options: ReportOptions) -> Manifest:
    """Write the report, or recognise it, and print where it is.

    Raises:
        InputError: If a box is none, or boxes do not belong together.
    """
    boxes = open_boxes(options.given(), options.run)
    if not boxes:
        raise InputError(f"--run {options.run}: holds no box; run a stage first")
    with Stage.open(
        options.output, "report", options=options.deciding(), inputs=_inputs(boxes)
    ) as stage:
        if not stage.complete:
            content = collect(options, boxes)
            text = json.dumps(content, indent=1, allow_nan=False)
            (stage.workspace / DATA).write_text(text + "\n")
            (stage.workspace / PAGE).write_text(render(content), encoding="utf-8")
            directories = sum(len(box.directories) for box in boxes.values())
            stage.finish(counts={"boxes": directories, "missing": len(content["missing"])})
    absent = [name for role, name in ROLES.items() if role not in boxes]
    rows = {"page": Path(options.output) / PAGE, "the same as JSON": Path(options.output) / DATA}
    cli.summary("report", rows | ({"without": ", ".join(absent)} if absent else {}))
    return stage.manifest


def _inputs(boxes: dict[str, Box]) -> list[Path]:
    """Manifests stand for their boxes; metrics and audit are named because they are read whole.

    The indexes stand for a corpus that another tool wrote.
    """
    paths = [
        directory / name
        for box in boxes.values()
        for directory in box.directories
        for name in (FILENAME, metrics.FILENAME, AUDIT)
    ]
    indexes = [
        idx_path(prefix)
        for box in boxes.values()
        for prefix in box.prefixes
        if not (prefix.parent / FILENAME).exists()
    ]
    return [path for path in paths if path.exists()] + indexes


def collect(options: ReportOptions, boxes: dict[str, Box]) -> dict[str, Any]:
    """The content of the report; parts for which boxes are absent are None or empty."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "missing": report_content.missing(boxes),
        "setting": report_content.setting(boxes),
        "headline": report_content.headline(boxes),
        "losses": report_content.losses(boxes),
        "similarity": report_pairs.similarity(boxes, options.random_pairs, options.seed),
        "examples": report_pairs.examples(boxes, options.examples, options.example_characters),
        "audit": report_content.audit(boxes),
        "filters": report_content.filters(boxes),
        "ledger": report_content.ledger(boxes),
        "cost": report_content.cost(boxes),
    }
    content["warnings"] = report_content.warnings(content)
    content["reading"] = report_content.reading(content)
    return content


def render(content: dict[str, Any]) -> str:
    """The page for a report's content; every text in it is escaped."""
    block = max((curve["block"] for curve in content["losses"]), default=1)
    return pages.render("report.html.jinja", draw(content), block=block, **content)
