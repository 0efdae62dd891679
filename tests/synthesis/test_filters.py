import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.synthesis.filters import FILTERS, FilterOptions, filter_synthetic
from megatron_sbp.synthesis.store import COLUMNS, ORIGIN, SyntheticCorpus, column_path
from tests.conftest import ROOT, run_command
from tests.synthesis.planted import sentence, write_real, write_synthetic

TOOL = ROOT / "tools" / "filter_synthetic.py"
REAL = 40
# What each synthetic document fails, by number; all others are good.
PLANTED = {
    3: "no_end_of_document",
    5: "too_short",
    8: "repetition",
    11: "copy_of_seed",
    12: "copy_of_seed",
    17: "near_duplicate_of_synthetic",
    21: "near_duplicate_of_real",
    # Two failures each: the filter that comes first counts.
    22: "near_duplicate_of_synthetic",
    25: "no_end_of_document",
    26: "repetition",
}


def change_words(text: str, *places: int) -> str:
    words = text.split()
    for place in places:
        words[place] = "other"
    return " ".join(words)


@pytest.fixture(scope="module")
def real(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    source = random.Random(1)
    texts = [sentence(source) for _ in range(REAL)]
    prefix = tmp_path_factory.mktemp("real") / "box" / "real"
    return write_real(prefix, texts, words_corpus.tokenizer.directory)


@pytest.fixture(scope="module")
def synthetic(real: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = random.Random(2)
    texts = [sentence(source) for _ in range(30)]
    seeds = [source.randrange(REAL) for _ in texts]
    reasons = [0] * 30
    reasons[3] = reasons[25] = 1
    texts[5] = "word1 word2"
    texts[8] = "word1 word2 word3 word4 word5 " * 12
    texts[11] = real.text(seeds[11]).replace(" ", ",\n").upper()
    texts[12] = change_words(real.text(seeds[12]), 59)
    texts[17] = change_words(texts[2], 0, 59)
    texts[21] = change_words(real.text((seeds[21] + 1) % REAL), 0, 59)
    texts[22] = texts[21]
    texts[25] = texts[26] = texts[8]
    prefix = tmp_path_factory.mktemp("synthetic") / "box" / "new"
    write_synthetic(prefix, real, texts, seeds, reasons)
    return prefix


@pytest.fixture
def options(synthetic: Path, real: Corpus, tmp_path: Path) -> FilterOptions:
    return FilterOptions(
        synthetic=str(synthetic),
        corpus=[str(real.prefixes[0])],
        output_prefix=str(tmp_path / "kept" / "new"),
    )


def test_every_filter_takes_what_was_planted(options: FilterOptions, synthetic: Path) -> None:
    found = filter_synthetic(options)
    failed = list(PLANTED.values())
    assert found.counts["removed"] == {name: failed.count(name) for name in FILTERS}
    given, kept = SyntheticCorpus(synthetic), SyntheticCorpus(str(options.output_prefix))
    origin = np.load(column_path(kept.prefix, ORIGIN))
    assert origin.tolist() == [number for number in range(30) if number not in PLANTED]
    for row, number in enumerate(origin):
        assert np.array_equal(kept.documents.tokens(row), given.documents.tokens(int(number)))
    for name in COLUMNS:
        assert np.array_equal(kept.columns[name], given.columns[name][origin])
    manifest = Manifest.read(kept.prefix.parent)
    assert manifest.stage == "filter"
    assert manifest.counts["tokens"] == kept.documents.num_tokens
    assert manifest.counts["corpus"] == given.manifest.counts["corpus"]
    # The examples that --dry-run shows are what was left out.
    assert {n: name for name, some in found.examples.items() for n, _ in some} == PLANTED


def test_a_dry_run_says_the_same_and_writes_nothing(options: FilterOptions) -> None:
    dry = filter_synthetic(replace(options, output_prefix=None, dry_run=True))
    assert not Path(str(options.output_prefix)).parent.exists()
    assert dry.counts == filter_synthetic(options).counts


def test_thresholds_and_switches(options: FilterOptions) -> None:
    loose = replace(options, dry_run=True, min_tokens=0, repetition=False, max_containment=1.0)
    removed = filter_synthetic(loose).counts["removed"]
    assert removed["too_short"] == removed["repetition"] == 0
    # Of the two copies one is exact; the other one is now a near duplicate of a real document.
    assert removed["copy_of_seed"] == 1
    assert removed["near_duplicate_of_real"] == 2


def test_nothing_left_is_an_error(options: FilterOptions) -> None:
    with pytest.raises(InputError, match="no document passes the filters"):
        filter_synthetic(replace(options, min_tokens=10_000))
    assert not Path(str(options.output_prefix)).parent.exists()


def test_the_command_prints_what_would_go(options: FilterOptions) -> None:
    arguments = ["--synthetic", options.synthetic, "--corpus", *options.corpus, "--dry-run"]
    process = run_command(TOOL, *arguments)
    assert process.returncode == 0, process.stderr
    assert "too_short: document 5: word1 word2" in process.stdout
    assert "dry run, nothing written" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--synthetic", "{S}", "--corpus", "{C}"], "give --output-prefix F"),
        (["--synthetic", "{C}", "--corpus", "{C}", "--dry-run"], "no such manifest"),
        (["--synthetic", "{S}", "--corpus", "{S}", "--dry-run"], "add it to --corpus"),
        (
            ["--synthetic", "{S}", "--corpus", "{C}", "--dry-run", "--max-containment", "0"],
            "--max-containment 0.0: must be above 0",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, options: FilterOptions) -> None:
    line = [one.format(S=options.synthetic, C=options.corpus[0]) for one in arguments]
    process = run_command(TOOL, *line)
    assert process.returncode == 2
    assert message in process.stderr and process.stderr.count("\n") == 1
