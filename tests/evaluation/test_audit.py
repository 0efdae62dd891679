import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.audit import AuditOptions, Row, audit
from tests.conftest import ROOT, run_command, write_pairs
from tests.synthesis.planted import sentence, write_real, write_synthetic

TOOL = ROOT / "tools" / "audit_synthetic.py"
COUNT = 200


@pytest.fixture(scope="module")
def real(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """A tenth of the documents occurs twice."""
    source = random.Random(21)
    texts = [sentence(source) for _ in range(COUNT)]
    texts[:20] = texts[100:120]
    prefix = tmp_path_factory.mktemp("real") / "box" / "real"
    return write_real(prefix, texts, words_corpus.tokenizer.directory)


@pytest.fixture(scope="module")
def options(real: Corpus, tmp_path_factory: pytest.TempPathFactory) -> AuditOptions:
    """A tenth repetitive, a fifth copies of the seed, a tenth copies of another real document.

    The others have half of their words from the seed, so that they are relevant to it.
    """
    source = random.Random(22)
    seeds = [20 + number % 180 for number in range(COUNT)]
    texts = []
    for number, seed in enumerate(seeds):
        words = real.text(seed).split()
        text = " ".join([*source.sample(words, 30), *sentence(source, 30).split()])
        if number < 20:
            text = f"word{number} " * 30
        elif number < 60:
            text = real.text(seed)
        elif number < 80:
            text = real.text(seed + 1)
        texts.append(text)
    prefix = tmp_path_factory.mktemp("synthetic") / "box" / "new"
    write_synthetic(prefix, real, texts, seeds)
    # Near pairs of which a quarter are copies: documents 0..19 are 100..119 again.
    rows = [(number, number + 100, 0.9) for number in range(20)]
    rows += [(number, number + 30, 0.8) for number in range(20, 80)]
    write_pairs(prefix.parent.parent / "pairs", real, rows)
    return AuditOptions(
        synthetic=str(prefix),
        corpus=[str(real.prefixes[0])],
        output="",
        pairs=str(prefix.parent.parent / "pairs"),
        encoder="lexical",
        encoded=COUNT,
    )


@pytest.fixture(scope="module")
def rows(options: AuditOptions, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    output = tmp_path_factory.mktemp("audit") / "box"
    return {row.name: row for row in audit(replace(options, output=str(output)))[1]}


@pytest.mark.parametrize(
    ("name", "synthetic", "real_value"),
    [
        ("repetition", 0.1, 0.0),
        # Numbers 20 to 59 have the seeds 40 to 79; 60 to 79 copy the documents 81 to 100.
        ("pair copying, equal", 0.2, 0.25),
        ("pair copying, 80% of shingles", 0.2, 0.25),
        ("copied from the corpus", 0.3, 0.2),
        ("duplicates", 0.0, 0.1),
        ("length, median", 60, 60),
    ],
)
def test_planted_defects_are_found(
    rows: dict[str, Row], name: str, synthetic: float, real_value: float
) -> None:
    assert rows[name].synthetic == pytest.approx(synthetic, abs=0.01)
    assert rows[name].real == pytest.approx(real_value, abs=0.01)


def test_relevance_tells_pairs_from_mixed_pairs(rows: dict[str, Row]) -> None:
    matched, mixed = rows["relevance"], rows["relevance, pairs mixed"]
    assert matched.synthetic is not None and mixed.synthetic is not None
    assert matched.synthetic > mixed.synthetic + 0.2
    assert matched.real is not None and mixed.real is not None
    assert matched.real > mixed.real


def test_what_needs_a_judge_is_named(rows: dict[str, Row]) -> None:
    for name in ("non-factual", "pair irrelevance"):
        row = rows[name]
        assert (row.synthetic, row.real, row.note) == (None, None, "no judge")


def test_the_output_is_json_and_recognised(options: AuditOptions, tmp_path: Path) -> None:
    given = replace(options, output=str(tmp_path / "audit"), encoder="none", sample=50)
    manifest, rows = audit(given)
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert content["sample"] == 50
    assert [row["name"] for row in content["measures"]] == [row.name for row in rows]
    assert audit(given) == (manifest, rows)
    without = [row.name for row in rows if row.synthetic is None]
    assert without == ["relevance", "relevance, pairs mixed", "non-factual", "pair irrelevance"]


def test_the_command_prints_the_table(options: AuditOptions, tmp_path: Path) -> None:
    line = ["--synthetic", options.synthetic, "--corpus", *options.corpus, "--encoder", "none"]
    process = run_command(TOOL, *line, "--output", tmp_path / "audit")
    assert process.returncode == 0, process.stderr
    assert "repetition" in process.stdout
    assert "not measured: no judge" in process.stdout
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


def test_samples_are_drawn_without_replacement(rows: dict[str, Row]) -> None:
    """With a sample as large as the corpus, duplicates are those of the corpus: 20 of 200."""
    assert rows["duplicates"].note.startswith("in 200 documents")
    assert rows["duplicates"].real is not None
    assert np.isclose(rows["duplicates"].real, 0.1, atol=0.001)
