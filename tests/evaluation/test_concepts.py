"""tools/check_concepts.py over a small corpus with known pairs and synthetic documents."""

import re
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.concepts.make import MakeOptions, make_concepts
from megatron_sbp.corpus.concepts.truth import concepts_of
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.concepts import (
    CheckOptions,
    check,
    check_oracle,
    check_pairs,
    check_synthetic,
    figures,
)
from tests.conftest import ROOT, run_command, write_pairs
from tests.synthesis.planted import write_synthetic

TOOL = ROOT / "tools" / "check_concepts.py"
NAME = re.compile(r"\b(?!Everybody)[A-Z][a-z]{8}\b")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("concepts") / "concepts"
    options = MakeOptions(
        output=str(directory),
        concepts=20,
        attributes=10,
        values=32,
        told=5,
        name_tokens=3,
        documents_per_concept=3,
        heldout_per_concept=1,
        oracle_factor=2,
    )
    make_concepts(options)
    return directory


@pytest.fixture(scope="module")
def real(directory: Path) -> Corpus:
    return Corpus([directory / "real"])


@pytest.fixture(scope="module")
def pairs(real: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half of the pairs that share a concept at 0.81, all of them and as many others at 0.55."""
    concepts = concepts_of(real)
    every = [(a, b) for a, b in np.ndindex(60, 60) if a < b]
    true = [pair for pair in every if concepts[pair[0]] == concepts[pair[1]]]
    false = [pair for pair in every if pair not in true][: len(true)]
    scores = [0.81, 0.55] * (len(true) // 2) + [0.55] * len(false)
    rows = [
        (*ids, score)
        for (a, b), score in zip(true + false, scores, strict=True)
        for ids in ((a, b), (b, a))
    ]
    directory = tmp_path_factory.mktemp("pairs") / "pairs"
    write_pairs(directory, real, rows)
    return directory


@pytest.fixture(scope="module")
def synthetic(directory: Path, real: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each held-out document two: as it is, and with the name of the next one's concept."""
    heldout = Corpus([directory / "real-heldout"])
    held_out = list(heldout.texts(range(20)))
    (names,) = zip(*(NAME.findall(text) for text in held_out), strict=True)
    texts = [
        text.replace(name, new)
        for text, name, new in zip(held_out, names, (*names[1:], names[0]), strict=True)
    ]
    seeds = [int(np.flatnonzero(concepts_of(real) == one)[0]) for one in concepts_of(heldout)]
    prefix = tmp_path_factory.mktemp("synthetic") / "box" / "new"
    write_synthetic(prefix, real, held_out + texts, seeds + seeds)
    return prefix


def test_precision_and_recall(directory: Path, pairs: Path) -> None:
    found = {round(row.similarity, 2): row for row in check_pairs(directory, pairs)}
    assert sorted(found) == [0.55, 0.6, 0.65, 0.7, 0.75, 0.8]
    low, high = found[0.55], found[0.8]
    assert (low.pairs, low.precision, low.recall) == (120, 0.5, 1.0)
    assert (high.pairs, high.precision, high.recall) == (30, 1.0, 0.5)


def test_figures_of_synthetic_documents(directory: Path, synthetic: Path) -> None:
    documents = check_synthetic(directory, [str(synthetic)])
    found = figures(documents, 1 / 32)
    values = {name: figure.value for name, figure in found.items()}
    assert values["documents that are whole"] == 1
    assert values["documents that name a concept"] == 1
    assert values["documents that name the seed's"] == 0.5
    assert values["statements that are well formed"] == 1
    # Of the other half only what is true of both concepts by chance.
    truth = values["statements that are true (chance 0.031)"]
    assert truth is not None and 0.5 <= truth < 0.6
    assert truth == documents.true.sum() / 200
    assert (documents.true[:20] == 5).all()


def test_the_oracle_is_true(directory: Path) -> None:
    documents = check_oracle(directory)
    assert len(documents.true) == 120
    assert documents.whole.all() and (documents.true == 5).all()


def test_the_command(directory: Path, pairs: Path, synthetic: Path) -> None:
    finished = run_command(
        TOOL, "--concepts", directory, "--pairs", pairs, "--synthetic", synthetic
    )
    assert finished.returncode == 0, finished.stderr
    assert re.search(r"0\.55 +120 +0\.500 +1\.000 ", finished.stdout)
    assert re.search(r"documents that name the seed's +0\.500 \[", finished.stdout)


def test_what_cannot_be_checked(directory: Path, pairs: Path, words_corpus: Corpus) -> None:
    real, other = directory / "real", words_corpus.prefixes[0].parent
    with pytest.raises(InputError, match="give --pairs, --synthetic or both"):
        CheckOptions(concepts=str(directory))
    with pytest.raises(InputError, match=r"seed\.npy: cannot be read"):
        check_synthetic(directory, [str(real)])
    with pytest.raises(InputError, match="is no corpus with known concepts"):
        list(check(CheckOptions(concepts=str(other), pairs=str(pairs))))
