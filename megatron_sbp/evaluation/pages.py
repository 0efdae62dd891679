"""Pages from templates: one self-contained file each, every text in it escaped."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def render(template: str, figures: Mapping[str, str], **content: Any) -> str:
    """Fill in a template of this directory.

    Args:
        template: Its file name.
        figures: Name -> SVG element, which is not escaped.
        content: What the template shows.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "measure": measure, "mib": _mib, "nats": nats}
    drawn = {name: Markup(svg) for name, svg in figures.items()}
    return _printable(environment.get_template(template).render(content, figures=drawn))


def _count(value: Any) -> str:
    """A whole number with thousands marked, anything else as it is."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def measure(value: float | None, unit: str) -> str:
    """A measure of the audit; shares in per cent."""
    if value is None:
        return "–"
    if unit == "share":
        return f"{100 * value:.1f} %"
    size = abs(value)
    return f"{value:,.{3 if size < 1 else 2 if size < 10 else 0}f}"


def nats(value: float | None, signed: bool = False) -> str:
    """A loss with three decimals, a minus sign instead of a hyphen."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.3f}".replace("-", "−")


def _mib(value: int) -> str:
    return f"{value / 2**20:,.0f}"


def _printable(page: str) -> str:
    """The page with what HTML does not allow, or what turns the text after it, made visible.

    Control characters become their pictures or numbers, as do halves of surrogate pairs, which file
    names may have, and the marks that reverse the direction of writing.
    """
    shown = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
    for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)):
        shown[code] = f"[U+{code:04X}]"
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page.translate(shown))
