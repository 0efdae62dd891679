"""What changing one flag of a comparison does to SBP: docs/sensitivity.svg and its table.

    python tools/compare_arms.py --recipe concepts_cpu --output comparison --sensitivity
    python -m benchmarks.sensitivity --report comparison/report/report.json

Prints the loss for every value of every flag, the recipe's in brackets, and what was measured of
pairs and documents; --publish draws the figure of docs/.
"""

import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import megatron_sbp
from megatron_sbp import cli
from megatron_sbp.comparison.plots import draw_knob
from megatron_sbp.comparison.sensitivity import GIVEN
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.figures import COLOURS

_FIGURE = Path(__file__).parents[1] / "docs" / "sensitivity.svg"
_SHEET = Path(megatron_sbp.__file__).parent / "evaluation" / "report.css"
_COLUMNS = 3
_ARMS = ("repetition", "repetition-tuned", "oracle", "sbp")


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the figure."""

    report: str = field(metadata={"metavar": "FILE"})
    """report.json of a comparison with --sensitivity."""
    publish: bool = False
    """Also replace docs/sensitivity.svg."""


def read(path: str) -> list[dict[str, Any]]:
    """What the report has about every flag, its truth at the recipe's own values, too.

    Raises:
        InputError: If that is nothing.
    """
    report = json.loads(Path(path).read_text())
    flags: list[dict[str, Any]] = report["sensitivity"]
    if not flags:
        raise InputError(f"{path}: has no sensitivity; run tools/compare_arms.py --sensitivity")
    own = {
        row["measure"]: row["of"][what]["value"]
        for row in report["truth"] or []
        for what in ("mined pairs", "sbp")
        if what in row["of"]
    }
    for flag in flags:
        for point in flag["points"]:
            if point["value"] == flag["recipe_value"] and not point["truth"]:
                point["truth"] = own
    return flags


def show(flag: dict[str, Any]) -> None:
    """Print a flag's values side by side, with the losses and what else was measured of each."""
    points = flag["points"]
    rows = {"sbp": [point["loss"] for point in points]}
    rows |= {arm: [loss] * len(points) for arm, loss in flag["lines"].items()}
    rows |= {arm: [point[arm] for point in points] for arm in GIVEN if arm not in rows}
    for measure in dict.fromkeys(name for point in points for name in point["truth"]):
        rows[measure] = [point["truth"].get(measure) for point in points]
    heads = [_head(flag, point["value"]) for point in points]
    print(f"\n{flag['knob']:42}" + "".join(f"{head:>9}" for head in heads))
    for name, figures in rows.items():
        cells = ["–" if figure is None else f"{figure:.3f}" for figure in figures]
        print(f"  {name:40}" + "".join(f"{cell:>9}" for cell in cells))


def _head(flag: dict[str, Any], value: Any) -> str:
    return f"[{value}]" if value == flag["recipe_value"] else str(value)


def draw(flags: list[dict[str, Any]], path: Path) -> None:
    """Draw the losses of every flag; those of other arms give the scale."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    height = -(-len(flags) // _COLUMNS)
    with rc_context({"svg.hashsalt": "sensitivity", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(10, 2.6 * height + 0.4), layout="constrained")
        all_axes = figure.subplots(height, _COLUMNS, squeeze=False)
        for axes in all_axes.flat[len(flags) :]:
            axes.remove()
        for axes, flag in zip(all_axes.flat, flags, strict=False):
            axes.grid(alpha=0.3)
            draw_knob(axes, flag)
        for axes in all_axes[:, 0]:
            axes.set_ylabel("held-out loss")
        lines = {str(line.get_label()): line for axes in all_axes.flat for line in axes.get_lines()}
        arms = [arm for arm in _ARMS if arm in lines]
        figure.legend([lines[arm] for arm in arms], arms, loc="outside upper left", ncols=len(arms))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    drawn, light = file.getvalue(), _light()
    for name, colour in COLOURS.items():
        drawn = drawn.replace(colour, light[name])
    path.write_text(drawn)


def _light() -> dict[str, str]:
    """The colours of the page by day, which a figure that stands alone has, too."""
    sheet = _SHEET.read_text()
    return dict(re.findall(r"--(\w+): (#\w{6})", sheet[: sheet.index("@media")]))


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    flags = read(options.report)
    for flag in flags:
        show(flag)
    if options.publish:
        draw(flags, _FIGURE)


if __name__ == "__main__":
    cli.run(main)
