"""What documents and file names contain stays text: on pages, in plots, on the terminal."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp.evaluation import pages
from megatron_sbp.evaluation.figures import svg
from tests.hostile.fuzz import fuzzed

TEXTS = [
    "<script>alert(1)</script>",
    "</pre></body><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "' autofocus onfocus='alert(1)",
    "</style><svg onload=alert(1)>",
    "<!--",
    "]]>",
    "&lt;b&gt; &#60;script&#62;",
    "{{ 7 * 7 }}{% include 'report.css' %}",
    "\x00\x1b[31m\x7f\x9b31m",
    "\u202egnirts\u2066x\u2069",
    "\ud800",
    "zero\u200bwidth\ufeff",
]


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[Any] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, sorted(name for name, _ in attrs)))

    def handle_comment(self, data: str) -> None:
        self.tags.append("comment")

    def handle_data(self, data: str) -> None:
        self.text += data


def page(text: str) -> str:
    """An audit that shows a text wherever one from outside can stand."""
    document = {"document": 3, "tokens": 1, "characters": len(text), "text": text}
    row = {"name": text, "synthetic": 0.5, "real": None, "unit": text, "note": text}
    row |= {"synthetic_interval": None, "real_interval": None}
    pair = {"seed": document, "synthetic": document, "score": text}
    return pages.render(
        "audit.html.jinja",
        {},
        sample=1,
        documents={"synthetic": 1, "real": 1},
        measures=[row],
        judge=None,
        worst=[{"measure": text, "documents": [pair]}],
        options={text: text},
    )


PLAIN = Tags(page("plain")).tags


@fuzzed(30)
@given(text=st.sampled_from(TEXTS) | st.text(alphabet="<>&\"'/=!-a \u202e\x00\ud800", max_size=30))
def test_texts_make_no_tags(text: str) -> None:
    made = page(text)
    found = Tags(made)
    assert found.tags == PLAIN
    made.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", made)
    printable = "".join(re.findall(r"[<>&\"'/=!a-z]", text))
    assert printable in "".join(re.findall(r"[<>&\"'/=!a-z]", found.text))


@pytest.mark.parametrize(
    "text", ["$x^2$", "$\\frac{", "a $ b $ c", "<b>&", "\\alpha", "#1 url(#x)"]
)
def test_labels_of_plots_stay_text(text: str) -> None:
    """Neither markup, nor a formula of Matplotlib's, nor one that is wrong and ends the drawing."""

    def plot(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], label=text)
        axes.set_xlabel(text)
        axes.legend()

    drawn = Tags(svg("name", plot))
    assert drawn.text.count(text) == 2
    known = set("svg g path defs use text clippath rect metadata".split())
    assert {tag for tag, _ in drawn.tags if ":" not in tag} <= known  # but for the metadata's


def test_an_error_is_one_line_that_cannot_steer_the_terminal() -> None:
    program = (
        "from megatron_sbp.cli import run\n"
        "from megatron_sbp.errors import InputError\n"
        "def main(): raise InputError('a\\nb\\x1b[31m\\x9b\\u202e\\ud800 ä\\u2028c')\n"
        "run(main)"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr == "error: a b\\x1b[31m\\x9b\\u202e\\ud800 ä c\n"
