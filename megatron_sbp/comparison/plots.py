"""The plots of a comparison."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_sbp.comparison.sensitivity import GIVEN
from megatron_sbp.evaluation.figures import COLOURS, legend, svg
from megatron_sbp.evaluation.report_figures import loss_frame
from megatron_sbp.planning.units import si

_SMALL = (3.9, 2.7)  # inches at 72 points
_DASHED, _DOTTED = (0, (5, 2.5)), (0, (1.2, 1.6))
_STYLES: dict[str, tuple[str, Any]] = {
    "repetition": ("baseline", "-"),
    "repetition-tuned": ("baseline", _DASHED),
    "equal-compute": ("baseline", _DOTTED),
    "random-pairs": ("control", "-"),
    "sbp": ("joint", "-"),
    "sbp-tuned": ("joint", _DASHED),
    "oracle": ("pairs", "-"),
}
"""Arm -> colour of what it reads, dashes of how it is trained."""
_UNKNOWN = ("ink", "-")


def draw(content: dict[str, Any]) -> dict[str, str]:
    """The figures of a comparison's content, name -> SVG element; what has no data is absent."""
    figures = {"arms": _arms(content)}
    for kind, label in (("heldout", "held-out"), ("training", "training")):
        if content["curves"][kind]:
            figures[kind] = _curves(kind, content["curves"][kind], label)
    for number, knob in enumerate(content["sensitivity"]):
        figures[f"knob-{number}"] = _knob(f"knob-{number}", knob)
    return figures


def _style(arm: str) -> dict[str, Any]:
    colour, dashes = _STYLES.get(arm, _UNKNOWN)
    return {"color": COLOURS[colour], "linestyle": dashes}


def _arms(content: dict[str, Any]) -> str:
    """Mean losses with their intervals, and below them those of single seeds."""

    def plot(axes: Any) -> None:
        arms = content["arms"][::-1]
        for place, arm in enumerate(arms):
            colour = _style(arm["arm"])["color"]
            if arm["interval"]:
                axes.plot(arm["interval"], [place] * 2, color=colour, linewidth=1.6, alpha=0.7)
            axes.plot(arm["loss"], place, "o", color=colour, markersize=6.5)
            seeds = [run["loss"] for run in arm["runs"]]
            axes.plot(seeds, [place - 0.25] * len(seeds), ".", color=colour, alpha=0.7)
        for reader, nats in (content["floor"] or {}).items():
            if reader != "none":
                axes.axvline(
                    nats["per_token"], color=COLOURS["ink"], linewidth=1, linestyle=_DOTTED
                )
        axes.set_yticks(range(len(arms)), [arm["arm"] for arm in arms])
        axes.grid(visible=False, axis="y")
        axes.set_ylim(-0.6, len(arms) - 0.5)
        axes.margins(x=0.07)
        axes.set_xlabel("held-out loss, nats per token")

    return svg("arms", plot)


def _curves(name: str, curves: Sequence[dict[str, Any]], label: str) -> str:
    """Mean over seeds as lines, least to greatest as bands."""

    def plot(axes: Any) -> None:
        for curve in curves:
            tokens, mean, low, high = zip(*curve["points"], strict=True)
            style = _style(curve["arm"])
            axes.plot(tokens, mean, linewidth=1.4, label=curve["arm"], **style)
            if len(tokens) == 1:
                axes.plot(tokens, mean, "o", color=style["color"])
            axes.fill_between(tokens, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.set_xlabel("tokens trained on")
        axes.xaxis.set_major_formatter(lambda tokens, _: si(tokens))
        axes.set_ylabel(f"{label} loss, nats per token")
        axes.set_xlim(left=0)
        bands = [
            {"points": [(tokens, loss) for tokens, _, *ends in curve["points"] for loss in ends]}
            for curve in curves
        ]
        axes.set_ylim(*loss_frame(bands))
        legend(axes)

    return svg(name, plot)


def _knob(name: str, knob: dict[str, Any]) -> str:
    def plot(axes: Any) -> None:
        draw_knob(axes, knob)
        axes.set_ylabel("nats per token")
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, fontsize=8.5, borderpad=0.2
        )

    return svg(name, plot, _SMALL)


def draw_knob(axes: Any, knob: dict[str, Any]) -> None:
    """Loss by value, at equal distances; other arms as lines, or by value where they are given.

    Args:
        axes: Of Matplotlib.
        knob: One of ``sensitivity`` in a comparison's content.
    """
    points = knob["points"]
    places = range(len(points))
    for arm, loss in knob["lines"].items():
        axes.axhline(loss, linewidth=1.2, label=arm, **_style(arm))
    for arm in GIVEN:
        losses = [point[arm] for point in points]
        if any(losses):  # where one is None, the line has a gap
            axes.plot(places, np.array(losses, float), linewidth=1.2, label=arm, **_style(arm))
    colour = COLOURS["joint"]
    means = [point["loss"] for point in points]
    axes.plot(places, means, "o-", color=colour, markersize=4, linewidth=1.2, label="sbp")
    lows, highs = ([point[end] for point in points] for end in ("low", "high"))
    axes.vlines(places, lows, highs, color=colour, linewidth=1.6, alpha=0.7)
    for place, point in enumerate(points):
        if point["value"] == knob["recipe_value"]:
            axes.plot(place, point["loss"], "o", color=colour, fillstyle="none", markersize=10)
    axes.set_xticks(places, [str(point["value"]) for point in points])
    axes.set_xlim(-0.4, len(points) - 0.6)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(knob["knob"])
