"""``audit.html``: the table, plots of the distributions, the judge, the worst documents."""

from typing import Any

from megatron_sbp.evaluation import pages
from megatron_sbp.evaluation.figures import COLOURS, legend, svg

_KINDS = {
    "generated": ("joint", "generated pairs"),
    "true": ("pairs", "true pairs"),
    "random": ("control", "random pairs"),
    "synthetic": ("joint", "synthetic"),
    "real": ("pairs", "real"),
}
"""Kind of documents or pairs -> its colour, how the legend calls it."""
_AXES = {
    "similarity": ("cosine of d1 and d2", "pairs"),
    "true_d2": ("cosine with a true d2", "documents"),
    "length": ("words", "documents"),
    "containment": ("share of d2's 5-word shingles that are in d1", "pairs"),
    "copied": ("share of 13-grams in another document of the corpus", "documents"),
}
"""Distribution -> what is on its axis, what is counted."""
_LOGARITHMIC = ("containment", "copied")  # nearly all lies at 0, what matters does not
_LEAST = 0.02  # per cent, where a logarithmic axis begins


def render(content: dict[str, Any]) -> str:
    """The page for the content of ``audit.json`` and the options of the stage."""
    distributions = content["distributions"]
    figures = {
        name: _draw(name, distributions[name], *axes)
        for name, axes in _AXES.items()
        if any(distributions.get(name, {}).get(kind) for kind in _KINDS)
    }
    return pages.render("audit.html.jinja", figures, **content)


def _draw(name: str, distribution: dict[str, Any], label: str, unit: str) -> str:
    """The histograms of one distribution over each other."""

    def plot(axes: Any) -> None:
        edges, shown = distribution["bins"], []
        for kind, (colour, called) in _KINDS.items():
            if not distribution.get(kind):
                continue
            shares = [100 * share for share in distribution[kind]["share"]]
            filled = [place for place, share in enumerate(shares) if share]
            shown += [edges[filled[0]], edges[filled[-1] + 1]]
            axes.stairs(shares, edges, fill=True, color=COLOURS[colour], alpha=0.25)
            axes.stairs(shares, edges, color=COLOURS[colour], linewidth=1.4, label=called)
        margin = 0.03 * (max(shown) - min(shown))
        axes.set_xlim(min(shown) - margin, max(shown) + margin)
        if name in _LOGARITHMIC:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
        axes.set_ylim(bottom=_LEAST if name in _LOGARITHMIC else 0)
        axes.set_xlabel(label)
        axes.set_ylabel(f"share of {unit}, % per bin")
        legend(axes)

    return svg(name, plot)
