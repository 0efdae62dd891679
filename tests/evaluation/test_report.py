"""The report says what the boxes say, in a page that needs nothing but itself."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.report_figures import loss_frame
from megatron_sbp.evaluation.report_pairs import random_cosines, rank_by_similarity
from megatron_sbp.metrics import read_metrics
from megatron_sbp.mining.pairs import PairStore
from tests.evaluation.boxes import HOSTILE, STEPS, make, source, write_run

TOOL = Path(__file__).parents[2] / "tools" / "report.py"


class Page(HTMLParser):
    """What a browser would fetch, and whether tags are closed in order."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "link", "img"})

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.sources: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.sources.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        assert tag not in ("script", "iframe", "object", "link")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


# The page


def test_the_page_needs_nothing_but_itself(content: dict[str, Any]) -> None:
    page = Page(content["page"])
    assert page.open == []
    assert all(source.startswith("#") for source in page.sources)
    assert {source[1:] for source in page.sources} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "@import" not in content["page"]
    assert "url(http" not in content["page"]


def test_document_text_stays_text(run: Path, tmp_path: Path) -> None:
    make(tmp_path / "report", run=str(run), examples=30)
    page = (tmp_path / "report" / "report.html").read_text()
    # Page refuses a script element; the hostile text is there to be read, twice.
    shown = "".join(Page(page).text)
    assert shown.count("</pre><script>alert('x')</script> & \u2400\u241b[31m") == 2
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)


@pytest.mark.parametrize(
    "part",
    "result losses pairs examples audit filters ledger cost setting reading".split(),
)
def test_every_part_is_in_the_page(content: dict[str, Any], part: str) -> None:
    assert f'<section id="{part}">' in content["page"]
    section = content["page"].split(f'<section id="{part}">')[1].split("</section>")[0]
    assert "Not shown" not in section
    assert len(section) > 300


def test_plots_follow_the_colours_of_the_page(content: dict[str, Any]) -> None:
    assert content["page"].count("<svg ") == 5
    for svg in re.findall(r"<svg .*?</svg>", content["page"], re.DOTALL):
        assert not re.search(r"#[0-9a-f]{6}\b", svg)
        assert "nats per token" in svg or "cosine" in svg


# What it says


def test_the_headline_is_what_the_runs_measured(content: dict[str, Any]) -> None:
    headline = content["headline"]
    assert (headline["baseline"], headline["joint"]) == (4.25, 4.125)
    assert headline["difference"] == -0.125
    assert (headline["true_d1"], headline["random_d1"], headline["gain"]) == (3.5, 3.75, 0.25)
    for figure in ("4.250", "4.125", "\u22120.125", "3.500", "3.750", "+0.250"):
        assert figure in content["page"]


def test_curves_are_those_of_the_metrics_files(content: dict[str, Any]) -> None:
    curves = {(curve["run"], curve["loss"]): curve for curve in content["losses"]}
    assert len(curves) == 7
    training = curves["baseline", "training"]
    assert training["block"] == 1
    assert training["points"][9] == [10, pytest.approx(3 + 5 / math.e)]
    heldout = curves["synthesizer", "held-out, random d1"]["points"]
    assert [step for step, _ in heldout] == [STEPS // 2, STEPS]


def test_long_curves_are_block_means(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(size=1003)
    write_run(tmp_path / "run", "lm", [])
    with open(tmp_path / "run" / "metrics.jsonl", "w") as file:
        for step, value in enumerate(values, start=1):
            file.write(json.dumps({"iteration": step, "metric": "lm loss", "value": value}) + "\n")
    content = make(tmp_path / "report", baseline=str(tmp_path / "run"))
    (curve,) = content["losses"]
    assert curve["block"] == 3
    assert len(curve["points"]) == 335
    assert curve["points"][7] == [24, pytest.approx(values[21:24].mean())]
    assert curve["points"][-1] == [1003, pytest.approx(values[1002])]


def test_the_histogram_of_kept_pairs_counts_the_store(
    content: dict[str, Any], words_pairs: Path
) -> None:
    scores = np.load(words_pairs / "score.npy")
    kept = content["similarity"]["kept"]
    assert kept["count"] == len(scores)
    assert kept["mean"] == pytest.approx(scores.mean(dtype=np.float64))
    bins = content["similarity"]["bins"]
    for low, high, share in zip(bins[:-1], bins[1:], kept["share"], strict=True):
        inside = sum(low <= score < high or score == high == 1 for score in scores.tolist())
        assert share == pytest.approx(inside / len(scores))


def test_random_pairs_are_those_of_all_documents(content: dict[str, Any], run: Path) -> None:
    embeddings = Embeddings(run / "embeddings")
    rows = embeddings.take(np.arange(len(embeddings))).astype(np.float64)
    cosines = (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    drawn = random_cosines(embeddings, 20_000, seed=0)
    # Five standard errors of a mean and of a standard deviation.
    assert abs(drawn.mean() - cosines.mean()) < 5 * cosines.std() / math.sqrt(len(drawn))
    assert abs(drawn.std() - cosines.std()) < 5 * cosines.std() / math.sqrt(2 * len(drawn))
    assert drawn.max() < 0.999  # a document beside itself
    assert content["similarity"]["random"]["mean"] == pytest.approx(float(drawn.mean()), abs=1e-6)
    assert (random_cosines(embeddings, 100, seed=1) != drawn[:100]).any()


def test_examples_are_true_triples(
    content: dict[str, Any], words_corpus: Corpus, words_pairs: Path
) -> None:
    anchors, neighbors, scores = (
        np.load(words_pairs / f"{name}.npy").tolist() for name in ("anchor", "neighbor", "score")
    )
    triples = content["examples"]["triples"]
    assert len(triples) == 5
    assert content["examples"]["eligible"] == len(set(range(30)) & set(anchors))
    for triple in triples:
        seed = triple["seed"]["document"]
        assert triple["seed"]["text"] == words_corpus.text(seed)[:1000]
        assert triple["seed"]["tokens"] == len(words_corpus.tokens(seed))
        best = max(
            (score, -neighbor)
            for anchor, neighbor, score in zip(anchors, neighbors, scores, strict=True)
            if anchor == seed
        )
        assert (triple["similarity"], -triple["neighbor"]["document"]) == best
        # The fixture's document number n was written from seed n.
        assert triple["synthetic"]["document"] == seed
        written = HOSTILE if seed == 0 else f"written from {seed}: " + "word1 " * seed
        assert triple["synthetic"]["text"] == written
        assert triple["synthetic"]["characters"] == len(written)
    similarities = [triple["similarity"] for triple in triples]
    assert similarities == sorted(similarities)


def test_examples_stand_at_the_middles_of_equal_parts(words_pairs: Path) -> None:
    pairs = PairStore(words_pairs)
    seeds = np.array([7, 3, 7, 10**9, 5, 3, 11])
    documents, rows = rank_by_similarity(seeds, pairs)
    known = [number for number in (1, 4, 0, 6) if seeds[number] in pairs.anchor]
    assert sorted(documents.tolist()) == sorted(known)  # each seed once, the unknown one not
    assert (pairs.anchor[rows] == seeds[documents]).all()
    assert (np.diff(pairs.score[rows]) >= 0).all()
    for document, row in zip(documents, rows, strict=True):
        assert pairs.score[row] == pairs.score[pairs.anchor == seeds[document]].max()


def test_long_documents_are_cut_and_say_so(run: Path, tmp_path: Path) -> None:
    content = make(tmp_path / "report", run=str(run), example_characters=20, examples=2)
    texts = [triple["seed"]["text"] for triple in content["examples"]["triples"]]
    assert [len(text) for text in texts] == [20, 20]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("the first 20 characters are shown") >= 2


def test_the_ledger_is_that_of_the_runs(content: dict[str, Any]) -> None:
    arms = {arm["arm"]: arm for arm in content["ledger"]}
    assert list(arms) == ["baseline", "synthesizer", "joint"]
    assert arms["joint"]["tokens_seen"] == 30_000
    assert arms["joint"]["synthetic_share"] == pytest.approx(11 / 30)
    assert content["warnings"] == []
    assert 'role="alert"' not in content["page"]


def test_repeated_synthetic_documents_are_an_alarm(tmp_path: Path) -> None:
    twice = source("filtered/new", "synthetic", 12_000, 24_000)
    write_run(tmp_path / "joint", "lm", [twice])
    content = make(tmp_path / "report", joint=str(tmp_path / "joint"))
    (warning,) = content["warnings"]
    assert "filtered/new were read 2.00 times" in warning
    page = (tmp_path / "report" / "report.html").read_text()
    assert 'class="alarm" role="alert"' in page
    assert '<td class="alarm">2.00</td>' in page


def test_unequal_budgets_are_an_alarm(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "lm", [source("p", "real", 1000, 3000)])
    write_run(tmp_path / "b", "lm", [source("p", "real", 1000, 2000)])
    content = make(tmp_path / "report", baseline=str(tmp_path / "a"), joint=str(tmp_path / "b"))
    assert ["3,000" in warning and "2,000" in warning for warning in content["warnings"]] == [True]


def test_filters_add_up(content: dict[str, Any]) -> None:
    tables = {table["stage"]: table for table in content["filters"]}
    assert tables["filter"] == {
        "stage": "filter",
        "title": "synthetic documents",
        "given": 40,
        "removed": {"copies of seed": 10},
        "kept": 30,
    }
    assert tables["preprocess"]["kept"] == 260


def test_the_setting_names_shape_versions_and_commands(content: dict[str, Any]) -> None:
    setting = content["setting"]
    assert setting["models"]["layers"] == dict.fromkeys(("baseline", "synthesizer", "joint"), "4")
    assert setting["models"]["parameters"]["joint"] == 2_345_678
    assert setting["versions"]["torch"]
    commands = {entry["stage"]: entry["command"] for entry in setting["commands"]}
    assert commands["tune"].startswith("python -m megatron_sbp.pretrain --num-layers 4")
    assert "2,345,678" in content["page"]


def test_the_audit_stands_beside_real_documents(content: dict[str, Any]) -> None:
    section = content["page"].split('<section id="audit">')[1].split("</section>")[0]
    assert "40 synthetic and as many real documents" in section
    assert re.search(r"repetition.*4\.3 %.*3\.1 % – 5\.9 %.*1\.8 %", section, re.DOTALL)
    assert re.search(r"non-factual.*\s.*not measured.*\s.*needs a judge", section)


@pytest.mark.parametrize("text", ["{", "[]", '{"measures": 3}', '{"measures": [{}], "sample": 1}'])
def test_what_is_no_audit_is_named(run: Path, tmp_path: Path, text: str) -> None:
    box = tmp_path / "audit"
    box.mkdir()
    (box / "manifest.json").write_bytes((run / "audit" / "manifest.json").read_bytes())
    (box / "audit.json").write_text(text)
    with pytest.raises(InputError, match=r"audit\.json: not an audit"):
        make(tmp_path / "report", audit=str(box))


# Partial runs, and what is broken


def test_a_partial_run_names_what_is_missing(run: Path, tmp_path: Path) -> None:
    content = make(tmp_path / "report", baseline=str(run / "first"))
    missing = {part["role"] for part in content["missing"]}
    assert missing == set(
        "corpus embeddings pairs synthesizer synthetic filtered audit joint".split()
    )
    assert content["headline"]["baseline"] == 4.25
    assert content["headline"]["joint"] is None
    page = (tmp_path / "report" / "report.html").read_text()
    assert "This report is partial" in page
    assert page.count("Not shown: it needs") == 4  # pairs, examples, audit, filters


@pytest.mark.parametrize(
    "roles", [["pairs"], ["embeddings"], ["audit"], ["synthesizer"], ["pairs", "joint"]]
)
def test_any_part_alone_is_a_report(run: Path, tmp_path: Path, roles: list[str]) -> None:
    places = {"synthesizer": "tuned", "joint": "last"}
    given = {role: str(run / places.get(role, role)) for role in roles}
    content = make(tmp_path / "report", **given)
    assert len(content["missing"]) == 9 - len(roles)
    Page((tmp_path / "report" / "report.html").read_text())


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "line 2: not a metric"),
        ('{"iteration": 1, "metric": "lm loss"}', "line 2: not a metric"),
        ('{"iteration": 1, "metric": "lm loss", "value": "high"}', "line 2: not a metric"),
        ("[1]", "line 2: not a metric"),
    ],
)
def test_a_broken_metrics_line_is_named(tmp_path: Path, line: str, named: str) -> None:
    good = json.dumps({"iteration": 1, "metric": "lm loss", "value": 2.5})
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(InputError, match=named):
        read_metrics(tmp_path)


def test_a_resumed_run_counts_by_its_later_lines(tmp_path: Path) -> None:
    lines = [(1, 5.0), (2, 4.0), (3, 3.0), (2, 4.5), (3, 3.5)]
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step, value in lines:
            file.write(json.dumps({"iteration": step, "metric": "lm loss", "value": value}) + "\n")
    assert read_metrics(tmp_path) == {"lm loss": [(1, 5.0), (2, 4.5), (3, 3.5)]}


def test_losses_that_are_not_finite_leave_valid_json(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "lm", [], **{"lm loss validation": math.nan})
    content = make(tmp_path / "report", baseline=str(tmp_path / "run"))
    assert content["headline"]["baseline"] is None


def test_the_frame_leaves_out_the_warm_up() -> None:
    points = [[step, 100.0 if step < 5 else 2 + step / 100] for step in range(1, 101)]
    low, high = loss_frame([{"points": points}])
    assert 1.9 < low < 2.05
    assert 3 < high < 3.2
    assert loss_frame([{"points": [[10, 2.0]]}]) == (pytest.approx(1.9), pytest.approx(2.1))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "nothing to report on"),
        (["--baseline", "absent"], "--baseline absent: absent/manifest.json: no such manifest"),
        (["--run", "absent"], "--run absent: no such directory"),
        (["--run", "."], "holds no box"),
        (["--run", ".", "--examples", "-1"], "--examples -1: give at least 0"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(tmp_path: Path, argv: list[str], named: str) -> None:
    finished = subprocess.run(
        [sys.executable, TOOL, "--output", "report", *argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 2
    assert named in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_finished_report_is_recognised(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(TOOL), "--output", "report", "--audit", str(run / "audit")]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    written = (tmp_path / "report" / "report.html").stat().st_mtime_ns
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == again.returncode == 0
    assert first.stdout == again.stdout
    assert (tmp_path / "report" / "report.html").stat().st_mtime_ns == written
