"""The plots of a report."""

from collections.abc import Sequence
from typing import Any

from megatron_sbp.evaluation.figures import COLOURS, legend, svg

_LABELS = {"held-out, true d1": "true d1", "held-out, random d1": "random d1"}
_LINES = {
    "baseline": "baseline",
    "joint": "joint",
    "synthesizer": "pairs",
    "true d1": "pairs",
    "random d1": "control",
}
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
                color=COLOURS[_LINES[label]],
                linewidth=1.3,
                markersize=4.5,
                label=label,
            )
        axes.set_xlabel("step")
        axes.set_ylabel(f"{'training' if training else 'held-out'} loss, nats per token")
        axes.set_xlim(left=0)
        axes.set_ylim(*loss_frame(curves))
        legend(axes)

    return svg(name, plot)


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
            axes.stairs(shares, edges, fill=True, color=COLOURS[colour], alpha=0.35)
            axes.stairs(shares, edges, color=COLOURS[colour], linewidth=1.4, label=label)
        if histograms["min_similarity"] is not None:
            least = histograms["min_similarity"]
            axes.axvline(
                least,
                color=COLOURS["ink"],
                linewidth=1,
                linestyle=(0, (4, 3)),
                label=f"least similarity kept, {least:g}",
            )
        axes.set_xlim(min(shown) - 0.03, max(shown) + 0.03)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("cosine of the two documents' embeddings")
        axes.set_ylabel("share of pairs, % per 0.01")
        legend(axes)

    return svg("similarity", plot)
