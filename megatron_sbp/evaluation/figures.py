"""Plots as SVG to be set inside a page, in the page's own colours and font."""

import io
import re
from collections.abc import Callable
from typing import Any

# Matplotlib draws in these; in the page they become variables, so that a plot follows the page
# from light to dark.
COLOURS = {
    "ink": "#010101",
    "faint": "#020202",
    "grid": "#030303",
    "baseline": "#040404",
    "joint": "#050505",
    "pairs": "#060606",
    "control": "#070707",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a label is one
    "font.size": 10,
    "axes.edgecolor": COLOURS["faint"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["faint"],
    "ytick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "legend.frameon": False,
    "legend.labelcolor": COLOURS["ink"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_SIZE = (5.6, 3.4)  # inches at 72 points


def legend(axes: Any) -> None:
    """Above the frame, where no data can be."""
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=3, fontsize=9, borderpad=0.2)


def svg(name: str, plot: Callable[[Any], None], size: tuple[float, float] = _SIZE) -> str:
    """Draw one pair of axes, so many inches large, and make it an SVG element for the page."""
    import matplotlib
    from matplotlib.figure import Figure

    # A salt of its own makes the element ids those of this figure, and the same in every run.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return for_page(file.getvalue(), name)


def for_page(svg: str, name: str) -> str:
    """The ``<svg>`` element alone, its ids unique in the page and its colours the page's."""
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<defs>\s*<style.*?</defs>", "", element, flags=re.DOTALL)
    element = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', element)

    def adapt(tag: re.Match[str]) -> str:
        own = re.sub(r'(\bid="|"#|url\(#)', rf"\g<1>{name}-", tag[0])
        for variable, colour in COLOURS.items():
            own = own.replace(colour, f"var(--{variable})")
        return own

    return re.sub("<[^>]*>", adapt, element)  # what stands between the tags is text
