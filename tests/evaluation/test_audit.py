"""The audit of corpora with known shares of defects is right within a point on every measure."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.audit import AuditOptions, audit
from megatron_sbp.evaluation.audit_samples import Samples
from megatron_sbp.evaluation.findings import MEASURES, Row
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.store import SyntheticCorpus
from tests.conftest import ROOT, run_command, write_pairs
from tests.evaluation.test_report import Page
from tests.evaluation.test_similarity import plain_bleu, plain_fragments
from tests.synthesis.planted import sentence, write_real, write_synthetic

TOOL = ROOT / "tools" / "audit_synthetic.py"
COUNT = 200
POINT = 0.01
SELF_BLEU = 20


@pytest.fixture(scope="module")
def real(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A tenth of the documents occurs twice."""
    source = random.Random(21)
    texts = [sentence(source) for _ in range(COUNT)]
    texts[:20] = texts[100:120]
    prefix = tmp_path_factory.mktemp("real") / "box" / "real"
    return write_real(prefix, texts, words_corpus.tokenizer.directory)


SEEDS = [20 + number % 180 for number in range(COUNT - 10)]


@pytest.fixture(scope="module")
def texts(real: Corpus) -> list[str]:
    """What the synthetic documents say.

    0 to 19 repeat a word of the seed, 20 to 59 copy the seed, 60 to 79 copy another real document,
    80 to 99 have no word of the corpus, 190 to 199 are 180 to 189 with another last word; the
    others have half of their words from the seed.
    """
    source = random.Random(22)
    texts = []
    for number, seed in enumerate(SEEDS):
        words = real.text(seed).split()
        text = " ".join([*source.sample(words, 30), *sentence(source, 30).split()])
        if number < 20:
            text = f"{words[number]} " * 30
        elif number < 60:
            text = real.text(seed)
        elif number < 80:
            text = real.text(seed + 1)
        elif number < 100:
            text = " ".join(f"foreign{source.randrange(400)}" for _ in range(60))
        texts.append(text)
    return texts + [text.rsplit(" ", 1)[0] + " word0" for text in texts[-10:]]


@pytest.fixture(scope="module")
def options(
    real: Corpus, texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> AuditOptions:
    """Two parts of a synthetic corpus, and near pairs of which a quarter are copies."""
    directory = tmp_path_factory.mktemp("synthetic")
    seeds = SEEDS + SEEDS[-10:]
    write_synthetic(directory / "one" / "new", real, texts[:70], seeds[:70])
    write_synthetic(directory / "two" / "new", real, texts[70:], seeds[70:])
    # Documents 0 to 19 are 100 to 119 again.
    rows = [(number, number + 100, 0.9) for number in range(20)]
    rows += [(number, number + 30, 0.8) for number in range(20, 80)]
    rows += [(number, number + 31, 0.7) for number in range(50, 80)]
    write_pairs(directory / "pairs", real, rows)
    return AuditOptions(
        synthetic=[str(directory / "one" / "new"), str(directory / "two" / "new")],
        corpus=[str(real.prefixes[0])],
        output="",
        pairs=str(directory / "pairs"),
        encoder="lexical",
        encoded=COUNT,
        self_bleu=SELF_BLEU,
    )


@pytest.fixture(scope="module")
def output(options: AuditOptions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("audit") / "box"
    audit(replace(options, output=str(output)))
    return output


@pytest.fixture(scope="module")
def content(output: Path) -> dict[str, Any]:
    return json.loads((output / "audit.json").read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def rows(content: dict[str, Any]) -> dict[str, Row]:
    return {row["name"]: Row(**row) for row in content["measures"]}


# Shares of the 130 pairs: 20 are copies.
@pytest.mark.parametrize(
    ("name", "synthetic", "real_value"),
    [
        ("repetition", 0.1, 0.0),
        ("duplicates", 0.05, 0.1),
        ("pair copying, equal", 0.2, 20 / 110),
        ("pair copying, 80% of shingles", 0.2, 20 / 110),
        ("copied from the corpus", 0.3, 0.2),
        ("13-grams in the corpus", 60 * 48 / (180 * 48 + 20 * 18), 0.2),
        ("novel 5-grams", 1 - 60 * 56 / (180 * 56 + 20 * 26), 0.8),
        ("length, median", 60, 60),
        ("length, 10%", 57, 60),
    ],
)
def test_planted_defects_are_found(
    rows: dict[str, Row], name: str, synthetic: float, real_value: float
) -> None:
    assert rows[name].synthetic == pytest.approx(synthetic, abs=POINT)
    assert rows[name].real == pytest.approx(real_value, abs=POINT)


def test_coverage_and_density_are_means_over_documents(
    rows: dict[str, Row], real: Corpus, texts: list[str]
) -> None:
    coverage, density = [], []
    for text, seed in zip(texts, SEEDS + SEEDS[-10:], strict=True):
        fragments = plain_fragments(real.text(seed).split(), text.split())
        coverage.append(sum(fragments) / len(text.split()))
        density.append(sum(size**2 for size in fragments) / len(text.split()))
    assert rows["coverage by the seed"].synthetic == pytest.approx(np.mean(coverage))
    assert rows["density by the seed"].synthetic == pytest.approx(np.mean(density))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_distinct_ngrams_are_counted_among_equally_many(
    rows: dict[str, Row], real: Corpus, texts: list[str], size: int
) -> None:
    sides = []
    for side in (texts, list(real.texts(range(COUNT)))):
        split = [text.split() for text in side]
        grams = [tuple(one[n : n + size]) for one in split for n in range(len(one) - size + 1)]
        sides.append(grams)
    most = min(map(len, sides))
    expected = [len(set(grams[:most])) / most for grams in sides]
    row = rows[f"distinct-{size}"]
    assert [row.synthetic, row.real] == pytest.approx(expected)


def test_self_bleu_is_that_of_evenly_spaced_documents(
    rows: dict[str, Row], texts: list[str]
) -> None:
    chosen = [texts[int(n)].split() for n in np.linspace(0, COUNT - 1, SELF_BLEU)]
    expected = [plain_bleu(one, chosen[:n] + chosen[n + 1 :]) for n, one in enumerate(chosen)]
    assert rows["self-BLEU"].synthetic == pytest.approx(np.mean(expected))


def test_relevance_tells_pairs_from_mixed_pairs(
    rows: dict[str, Row], content: dict[str, Any]
) -> None:
    matched, mixed = rows["relevance"], rows["relevance, pairs mixed"]
    assert matched.synthetic is not None and mixed.synthetic is not None
    assert matched.synthetic > mixed.synthetic + 0.2
    assert matched.real is not None and mixed.real is not None
    assert matched.real > mixed.real
    # The tenth that has nothing to do with the corpus lies at 0, and copies of the seed at 1.
    similarity = content["distributions"]["similarity"]
    share = np.array(similarity["generated"]["share"])
    edges = np.array(similarity["bins"])
    zero = np.searchsorted(edges, 0, side="right") - 1
    assert share[zero] == pytest.approx(0.1, abs=POINT)
    assert share[-1] == pytest.approx(0.2, abs=POINT)


def test_intervals_hold_their_values(rows: dict[str, Row]) -> None:
    for row in rows.values():
        for value, interval in (
            (row.synthetic, row.synthetic_interval),
            (row.real, row.real_interval),
        ):
            if interval is not None:
                assert value is not None
                assert interval[0] <= value <= interval[1]
    assert rows["repetition"].synthetic_interval == pytest.approx((0.0657, 0.1494), abs=1e-4)


def test_the_worst_documents_are_those_with_the_defect(
    content: dict[str, Any], texts: list[str]
) -> None:
    worst = {group["measure"]: group["documents"] for group in content["worst"]}
    numbers = {
        name: {pair["synthetic"]["document"] for pair in pairs} for name, pairs in worst.items()
    }
    assert all(len(found) == 3 for found in numbers.values())
    assert numbers["repetition"] <= set(range(20))
    assert numbers["duplicates"] <= set(range(190, 200))
    assert numbers["pair copying, 80% of shingles"] <= set(range(20, 60))
    assert numbers["density by the seed"] <= set(range(20, 60))
    assert numbers["copied from the corpus"] <= set(range(20, 80))
    assert numbers["novel 5-grams"] <= set(range(20, 80))
    assert numbers["relevance"] <= set(range(80, 100))
    for pair in worst["pair copying, 80% of shingles"]:
        assert pair["synthetic"]["text"] == pair["seed"]["text"] in texts


def test_what_needs_a_judge_is_named(rows: dict[str, Row]) -> None:
    for name in ("non-factual", "pair irrelevance"):
        row = rows[name]
        assert (row.synthetic, row.real, row.note) == (None, None, "no --judge-model")


def test_the_page_needs_nothing_but_itself(output: Path, texts: list[str]) -> None:
    text = (output / "audit.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(source.startswith("#") for source in page.sources)
    assert {source[1:] for source in page.sources} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert text.count("<svg ") == 5
    shown = "".join(page.text)
    assert all(name in shown for name in MEASURES)
    assert texts[0] in shown


def test_the_output_is_json_and_recognised(options: AuditOptions, tmp_path: Path) -> None:
    given = replace(options, output=str(tmp_path / "audit"), encoder="none", sample=50)
    manifest, rows = audit(given)
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert content["sample"] == 50
    assert tuple(row.name for row in rows) == MEASURES
    again, same = audit(given)
    assert again == manifest
    assert [row.synthetic for row in same] == [row.synthetic for row in rows]
    without = {row.name for row in rows if row.synthetic is None}
    assert without == {
        "relevance",
        "relevance, pairs mixed",
        "d2 beside true d2, cosine",
        "non-factual",
        "pair irrelevance",
    }


def test_the_command_prints_the_table(options: AuditOptions, tmp_path: Path) -> None:
    line = ["--synthetic", *options.synthetic, "--corpus", *options.corpus, "--encoder", "none"]
    process = run_command(TOOL, *line, "--output", tmp_path / "audit")
    assert process.returncode == 0, process.stderr
    for name in MEASURES:
        assert f"\n  {name} " in process.stdout
    assert "0.100 [0.066, 0.149]" in process.stdout
    assert "not measured: no --judge-model" in process.stdout
    assert "true pairs not measured: no --pairs" in process.stdout


def test_a_corpus_without_the_seeds_is_refused(
    options: AuditOptions, words_corpus: Corpus, tmp_path: Path
) -> None:
    other = replace(
        options,
        corpus=[str(words_corpus.prefixes[0])],
        pairs=None,
        encoder="none",
        output=str(tmp_path / "audit"),
    )
    with pytest.raises(InputError, match="add it to --corpus"):
        audit(other)
    assert not (tmp_path / "audit").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sample": 0}, "--sample 0: must be at least 1"),
        ({"judge_timeout": 0.5}, "--judge-timeout 0.5: must be at least 1"),
        ({"judge_key": "sk-1"}, "--judge-key: is the name of an environment variable"),
        ({"judge_url": "http://host/v1"}, "name its model with --judge-model"),
        ({"judge_url": "file:///etc", "judge_model": "x"}, "must begin with http"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AuditOptions(synthetic=["s"], corpus=["c"], output="o", **given)


def test_true_neighbours_are_those_of_the_seed(options: AuditOptions, real: Corpus) -> None:
    store = PairStore(options.pairs or "", real)
    samples = Samples(SyntheticCorpus(options.synthetic), real, store, size=COUNT, seed=3)
    places, one, another = samples.neighbors_of_seeds(np.arange(COUNT))
    seeds = samples.seeds[places]
    assert set(places) == {place for place, seed in enumerate(samples.seeds) if seed < 80}
    for seed, first, second in zip(seeds.tolist(), one.tolist(), another.tolist(), strict=True):
        if seed < 50:
            assert (first, second) == (seed + 30, -1)
        else:
            assert {first, second} == {seed + 30, seed + 31}
