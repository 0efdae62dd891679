"""The plots of a report: SVG to be set inside its page, in the page's own colours and font."""

import io
import re
from collections.abc import Sequence
from typing import Any

# Matplotlib draws in these; in the page they become variables, so that a plot follows the page
# from light to dark.
_COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "grid": "#030303",
    "baseline": "#040404",
    "joint": "#050505",
    "pairs": "#060606",
    "control": "#070707",
}
_LABELS = {"held-out, true d1": "true d1", "held-out, random d1": "random d1"}
_LINES = {
    "baseline": "baseline",
    "joint": "joint",
    "synthesizer": "pairs",
    "true d1": "pairs",
    "random d1": "control",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.edgecolor": _COLOURS["faint"],
    "axes.labelcolor": _COLOURS["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": _COLOURS["faint"],
    "ytick.color": _COLOURS["faint"],
    "xtick.labelcolor": _COLOURS["ink"],
    "ytick.labelcolor": _COLOURS["ink"],
    "legend.frameon": False,
    "legend.labelcolor": _COLOURS["ink"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_SIZE = (5.6, 3.4)  # inches at 72 points
_WARM_UP = 0.05  # share of a run whose losses may lie above the frame


def draw(content: dict[str, Any]) -> dict[str, str]:
    """The figures of a report's content, name -> SVG element; what has no data is absent."""
    figures = {}
    for name, runs, training in (
        ("lm_training", ("baseline", "joint"), True),
        ("lm_heldout", ("baseline", "joint"), False),
        ("tuning_training", ("synthesizer",), True),
        ("tuning_heldout", ("synthesizer",), False),
    ):
        curves = [
            curve
            for curve in content["losses"]
            if curve["run"] in runs
            and (curve["loss"] == "training") == training
            and curve["points"]
        ]
        if curves:
            figures[name] = _losses(name, curves)
    if content["similarity"]:
        figures["similarity"] = _similarity(content["similarity"])
    return figures


def _losses(name: str, curves: Sequence[dict[str, Any]]) -> str:
    """Training losses as lines, held-out losses as points that are joined."""

    def plot(axes: Any) -> None:
        for curve in curves:
            training = curve["loss"] == "training"
            label = _LABELS.get(curve["loss"], curve["run"])
            axes.plot(
                *zip(*curve["points"], strict=True),
                "-" if training else "o-",
                color=_COLOURS[_LINES[label]],
                linewidth=1.3,
                markersize=4.5,
                label=label,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(f"{'training' if training else 'held-out'} loss, nats per token")
        axes.set_xlim(left=0)
        axes.set_ylim(*loss_frame(curves))
        _legend(axes)

    return _svg(name, plot)


def loss_frame(curves: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Least and greatest loss to show: all but the warm-up, with a margin."""
    last = max(step for curve in curves for step, _ in curve["points"])
    values = [
        value for curve in curves for step, value in curve["points"] if step >= _WARM_UP * last
    ]
    margin = 0.06 * (max(values) - min(values)) or 0.1
    return min(values) - margin, max(values) + margin


def _similarity(histograms: dict[str, Any]) -> str:
    def plot(axes: Any) -> None:
        edges = histograms["bins"]
        shown = []
        for name, colour, label in (
            ("random", "control", "random pairs"),
            ("kept", "pairs", "kept pairs"),
        ):
            if histograms[name] is None:
                continue
            shares = [100 * share for share in histograms[name]["share"]]
            shown += [edge for edge, share in zip(edges, shares, strict=False) if share]
            axes.stairs(shares, edges, fill=True, color=_COLOURS[colour], alpha=0.35)
            axes.stairs(shares, edges, color=_COLOURS[colour], linewidth=1.4, label=label)
        if histograms["min_similarity"] is not None:
            least = histograms["min_similarity"]
            axes.axvline(
                least,
                color=_COLOURS["ink"],
                linewidth=1,
                linestyle=(0, (4, 3)),
                label=f"least similarity kept, {least:g}",
            )
        axes.set_xlim(min(shown) - 0.03, max(shown) + 0.03)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("cosine of the two documents' embeddings")
        axes.set_ylabel("share of pairs, % per 0.01")
        _legend(axes)

    return _svg("similarity", plot)


def _legend(axes: Any) -> None:
    """Above the frame, where no data can be."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, fontsize=9, borderpad=0.2)


def _svg(name: str, plot: Any) -> str:
    """Draw one pair of axes and make it an SVG element for the page."""
    import matplotlib
    from matplotlib.figure import Figure

    # A salt of its own makes the element ids those of this figure, and the same in every run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=_SIZE, layout="constrained")
        plot(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return for_page(file.getvalue(), name)


def for_page(svg: str, name: str) -> str:
    """The ``<svg>`` element alone, its ids unique in the page and its colours the page's."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<defs>\s*<style.*?</defs>", "", element, flags=re.DOTALL)
    element = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", element)
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', element)
    for variable, colour in _COLOURS.items():
        element = element.replace(colour, f"var(--{variable})")
    return element
