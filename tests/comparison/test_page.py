"""The page of a comparison shows its content, needs nothing else and keeps text text."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp.comparison import page
from megatron_sbp.comparison.results import summarise
from tests.comparison.simulated import FLOOR, simulate
from tests.evaluation.boxes import HOSTILE
from tests.evaluation.test_report import Page

SECTIONS = "result differences curves parts truth sensitivity cost setting limits".split()


def everything(**fields: Any) -> dict[str, Any]:
    """A comparison with all that a page can show."""
    runs = simulate(heldout={"towns": 70, "hills": 50}, **fields)
    for run in runs:
        run.parts = {"value": (run.loss / 2, run.tokens // 3)}
    return summarise(
        runs,
        floor=FLOOR,
        truth=[{"measure": "true", "of": "sbp", "value": 0.43, "interval": [0.40, 0.46]}],
        sweep=[{"settings": {"weight-decay": 0.8}, "seed": 1, "loss": 2.1}],
        varied=[
            {"knob": "sbp-synthetic-share", "value": 0.2, "seed": 1, "loss": 2.01},
            {"knob": "size", "value": 5, "seed": 1, "loss": 1.9, "repetition": 2.4, "oracle": 1.8},
        ],
        recipe_values={"sbp-synthetic-share": 0.375, "size": 3},
        setting={
            "commands": [{"stage": "compare", "command": "python tools/compare_arms.py"}],
            "recipe": "train: {}",
            "versions": {"torch": "2.15.0"},
            "machine": "2 cores",
        },
    )


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return everything()


@pytest.fixture(scope="module")
def html(content: dict[str, Any]) -> str:
    return page.render(content)


def section(html: str, name: str) -> str:
    return html.split(f'<section id="{name}">')[1].split("</section>")[0]


def cells(part: str) -> list[list[str]]:
    """The text of every row of a section's tables, cell by cell."""
    return [
        [
            " ".join("".join(Page(cell).text).split())
            for cell in re.findall(r"<t[hd].*?</t[hd]>", line, re.DOTALL)
        ]
        for line in re.findall(r"<tr>.*?</tr>", part, re.DOTALL)
    ]


def test_both_files_have_the_same_content(
    content: dict[str, Any], html: str, tmp_path: Path
) -> None:
    page.write(tmp_path, content)
    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert data == content
    assert (tmp_path / "report.html").read_text() == html


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    read = Page(html)
    assert read.open == []
    assert all(source.startswith("#") for source in read.sources)
    assert {source[1:] for source in read.sources} <= set(read.ids)
    assert len(read.ids) == len(set(read.ids))
    assert "@import" not in html
    assert "url(http" not in html
    for svg in re.findall(r"<svg .*?</svg>", html, re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", svg)  # the colours are the page's


def test_every_part_is_in_the_page(html: str) -> None:
    assert re.findall(r'<section id="(\w+)">', html) == SECTIONS
    assert html.count("<svg ") == 1 + 2 + 2


def test_tables_hold_the_figures(content: dict[str, Any], html: str) -> None:
    rows = {line[0].split(" ")[0]: line for line in cells(section(html, "result"))}
    (sbp,) = [arm for arm in content["arms"] if arm["arm"] == "sbp"]
    apart = content["differences"][3]
    assert (apart["arm"], apart["reference"]) == ("sbp", "repetition")
    low, high = sbp["interval"]
    assert rows["sbp"][1] == f"{sbp['loss']:.3f} {low:.3f} to {high:.3f}"
    assert rows["sbp"][2].startswith(f"\u2212{-apart['difference']:.3f}")
    assert rows["sbp"][3] == "better"
    share = next(row["share"] for row in content["recovered"] if row["arm"] == "sbp")
    assert rows["sbp"][4].startswith(f"{100 * share:.0f} %")
    differences = cells(section(html, "differences"))
    assert len(differences) == 1 + len(content["differences"])
    cost = {line[0]: line for line in cells(section(html, "cost"))}
    assert cost["sbp"][1:6] == ["2,200,000", "110,000", "12.50", "825,000", "1.00"]
    assert content["headline"] in "".join(Page(html).text)


def test_names_and_texts_stay_text() -> None:
    """An arm, a knob, a source or a flag may have any name, formulas of Matplotlib included."""
    named = HOSTILE + "$\\frac{$"
    runs = simulate(
        {"repetition": 2.6, named: 2.0}, heldout={named: 70, "b": 50}, settings={named: named}
    )
    content = summarise(
        runs,
        truth=[{"measure": named, "of": named, "value": 0.5}],
        sweep=[{"settings": {named: named}, "seed": 1, "loss": 2.0}],
        varied=[{"knob": named, "value": named, "seed": 1, "loss": 2.0, "truth": {named: 0.1}}],
        setting={
            "commands": [{"stage": named, "command": named}],
            "recipe": named,
            "versions": {named: named},
            "machine": named,
        },
    )
    html = page.render(content)
    read = Page(html)  # refuses a script element
    assert read.open == []
    shown = "".join(read.text)
    assert "\\$" not in shown
    assert shown.count("</pre><script>alert('x')</script> & \u2400\u241b[31m$\\frac{$") > 20
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", html)


def test_repetition_and_sbp_alone_are_a_page() -> None:
    content = summarise(simulate({"repetition": 2.6, "sbp": 2.0}, curve=(), training_curve=()))
    html = page.render(content)
    assert re.findall(r'<section id="(\w+)">', html) == [
        "result",
        "differences",
        "cost",
        "setting",
        "limits",
    ]
    links = {source[1:] for source in Page(html).sources if source[1:] in SECTIONS}
    assert links == {"result", "differences", "cost", "setting", "limits"}
    assert "recovered over" not in html
    assert "Arms that were not run: repetition-tuned, equal-compute, random-pairs" in html


@pytest.mark.parametrize("arm", ["sbp", "oracle", "repetition"])
def test_one_arm_alone_is_a_page(arm: str) -> None:
    content = summarise(simulate({arm: 2.0}))
    assert content["differences"] == content["recovered"] == []
    Page(page.render(content))


def test_one_seed_is_said_in_the_page() -> None:
    content = everything(seeds=[7])
    html = page.render(content)
    assert "one seed: 7" in html
    assert "of which there are none with one seed" in html
    assert {line[3] for line in cells(section(html, "differences"))[1:]} == {"none"}
    assert {line[-1] for line in cells(section(html, "differences"))[1:]} == {"cannot be told"}


def test_alarms_stand_on_top() -> None:
    runs = simulate()
    runs[-1].training_tokens = 10
    html = page.render(summarise(runs))
    assert re.search(r'role="alert">oracle was trained on', html.split("<nav>")[0])
