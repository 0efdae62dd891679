import random
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.embed import embed
from megatron_sbp.embedding.lexical import LexicalSpec
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.synthesis.engine import END_OF_DOCUMENT
from megatron_sbp.synthesis.filter_options import FilterOptions
from megatron_sbp.synthesis.filters import filter_synthetic
from megatron_sbp.synthesis.store import COLUMNS, ORIGIN, SyntheticCorpus, column_path
from megatron_sbp.synthesis.verdicts import FILTERS
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
    22: "near_duplicate_of_real",
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
        synthetic=[str(synthetic)],
        corpus=[str(real.prefixes[0])],
        output_prefix=str(tmp_path / "kept" / "new"),
    )


def test_every_filter_takes_what_was_planted(options: FilterOptions, synthetic: Path) -> None:
    found = filter_synthetic(options)
    failed = list(PLANTED.values())
    assert found.counts["removed"] == {name: failed.count(name) for name in FILTERS}
    given, kept = SyntheticCorpus(synthetic), SyntheticCorpus(str(options.output_prefix))
    origin = np.load(column_path(kept.prefixes[0], ORIGIN))
    assert origin.tolist() == [number for number in range(30) if number not in PLANTED]
    for row, number in enumerate(origin):
        assert np.array_equal(kept.documents.tokens(row), given.documents.tokens(int(number)))
    for name in COLUMNS:
        assert np.array_equal(kept.columns[name], given.columns[name][origin])
    manifest = Manifest.read(kept.prefixes[0].parent)
    assert manifest.stage == "filter"
    assert manifest.counts["tokens"] == kept.documents.num_tokens
    assert manifest.counts["corpus"] == given.manifests[0].counts["corpus"]
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
    assert removed["near_duplicate_of_real"] == 3


def test_too_short_is_without_the_end_of_the_document(
    options: FilterOptions, synthetic: Path
) -> None:
    given = SyntheticCorpus(synthetic)
    ended = given.columns["finish_reason"] == END_OF_DOCUMENT
    lengths = np.array([len(given.documents.body(number)) for number in range(30)])
    least = int(np.median(lengths))
    dry = replace(options, output_prefix=None, dry_run=True, min_tokens=least)
    removed = filter_synthetic(dry).counts["removed"]["too_short"]
    assert removed == np.count_nonzero(ended & (lengths < least))
    assert least in lengths[ended], "no document is just long enough"


def test_little_memory_reads_again_and_finds_the_same(options: FilterOptions) -> None:
    dry = replace(options, output_prefix=None, dry_run=True)
    expected = filter_synthetic(dry)
    for memory in ("3K", "8K"):  # a few documents at a time
        assert filter_synthetic(replace(dry, memory=memory)) == expected


def test_the_real_corpus_takes_no_memory(options: FilterOptions) -> None:
    """Counted by tracemalloc: five times the documents, the same arrays."""
    peaks = []
    for times in (1, 30, 150):  # the first time tables are made
        corpus = options.corpus * times  # 30 times 40 documents are more than one batch
        tracemalloc.start()
        filter_synthetic(replace(options, output_prefix=None, dry_run=True, corpus=corpus))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + (1 << 20), peaks


def test_one_that_was_left_out_leaves_out_no_other(real: Corpus, tmp_path: Path) -> None:
    """Of a chain of near duplicates every other one stays, unless a real one is like it."""
    source = random.Random(9)  # neighbours at a Jaccard index of 0.83, others below 0.71
    words = sentence(source, 300).split()
    chain = [" ".join(words[14 * link : 14 * link + 160]) for link in range(9)]
    near_real = write_real(tmp_path / "real" / "one", [chain[4]], real.tokenizer.directory)
    write_synthetic(tmp_path / "new" / "new", real, chain, [0] * 9)
    for memory in ("4G", "1K"):
        options = FilterOptions(
            synthetic=[str(tmp_path / "new" / "new")],
            corpus=[str(prefix) for prefix in (*real.prefixes, *near_real.prefixes)],
            output_prefix=str(tmp_path / memory / "kept"),
            memory=memory,
        )
        filter_synthetic(options)
        origin = np.load(column_path(str(options.output_prefix), ORIGIN)).tolist()
        # 3, 4 and 5 are like the real one; what is left of the chain begins anew after them.
        assert origin == [0, 2, 6, 8]


def test_parts_of_an_array_job_become_one_corpus(
    options: FilterOptions, real: Corpus, synthetic: Path, tmp_path: Path
) -> None:
    given = SyntheticCorpus(synthetic)
    texts = list(given.documents.texts(range(30)))
    parts = []
    for number, rows in enumerate((slice(0, 7), slice(7, 30))):
        prefix = tmp_path / f"part{number}" / "new"
        columns = (given.columns[name][rows].tolist() for name in ("seed", "finish_reason"))
        write_synthetic(prefix, real, texts[rows], *columns)
        parts.append(str(prefix))
    expected = filter_synthetic(options)
    prefix = tmp_path / "of parts" / "new"
    assert (
        filter_synthetic(replace(options, synthetic=parts, output_prefix=str(prefix))) == expected
    )
    whole, joined = SyntheticCorpus(str(options.output_prefix)), SyntheticCorpus(prefix)
    assert (
        joined.documents.fingerprints[0]["idx_sha256"]
        == (whole.documents.fingerprints[0]["idx_sha256"])
    )
    for name in ("seed", "finish_reason", "checkpoint", "generation"):
        assert np.array_equal(whole.columns[name], joined.columns[name])


def test_ranks_share_the_work(options: FilterOptions, tmp_path: Path) -> None:
    expected = filter_synthetic(options)
    prefix = tmp_path / "ranks" / "new"
    command: list[str | Path] = [
        TOOL,
        "--synthetic",
        *options.synthetic,
        "--corpus",
        *options.corpus,
    ]
    process = run_command(*command, "--output-prefix", prefix, ranks=3)
    assert process.returncode == 0, process.stderr
    assert Manifest.read(prefix.parent).counts == expected.counts
    for ending in (".bin", ".idx", ".seed.npy", f".{ORIGIN}.npy"):
        one, other = (Path(f"{path}{ending}") for path in (options.output_prefix, prefix))
        assert one.read_bytes() == other.read_bytes()


# Similarity to the seed


@pytest.fixture(scope="module")
def embeddings(real: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("embeddings") / "lexical"
    embed(EmbedOptions(corpus=[str(real.prefixes[0])], output=str(directory), encoder="lexical"))
    return directory


@pytest.mark.parametrize("given", [False, True], ids=["encoded", "given"])
def test_similarity_window(
    given: bool, options: FilterOptions, embeddings: Path, synthetic: Path, real: Corpus
) -> None:
    """Beside cosines of vectors made one by one; the seeds' as embedded before, or now."""
    dry = replace(options, output_prefix=None, dry_run=True)
    earlier = [n for n, name in PLANTED.items() if name != "near_duplicate_of_synthetic"]
    passed = np.setdiff1d(np.arange(30), earlier)
    model = LexicalSpec(dimensions=256, fit_documents=100_000, seed=0).load(real)
    corpus = SyntheticCorpus(synthetic)
    cosines = []
    for document in passed.tolist():
        texts = [corpus.documents.text(document), real.text(int(corpus.columns["seed"][document]))]
        one, other = model.encode(texts).vectors
        cosines.append(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
    low, high = (float(limit) for limit in np.quantile(cosines, [0.27, 0.81]))
    found = filter_synthetic(
        replace(
            dry,
            encoder="lexical",
            embeddings=str(embeddings) if given else None,
            min_similarity=low,
            max_similarity=high,
        )
    )
    outside = [c < low or c > high for c in cosines]
    assert found.counts["removed"]["outside_similarity"] == sum(outside) > 5
    shown = {number for number, _ in found.examples["outside_similarity"]}
    assert shown <= set(passed[outside].tolist())


def test_embeddings_must_be_those_of_encoder_and_corpus(
    options: FilterOptions, embeddings: Path, words_corpus: Corpus, synthetic: Path
) -> None:
    window = replace(options, encoder="lexical", embeddings=str(embeddings), min_similarity=0.1)
    with pytest.raises(InputError, match="give the embeddings of this corpus"):
        more = [*options.corpus, str(words_corpus.prefixes[0])]
        filter_synthetic(replace(window, corpus=more))
    manifest = Manifest.read(embeddings)
    manifest.options["dimensions"] = 3
    other = synthetic.parent.parent / "other"
    shutil.copytree(embeddings, other)
    manifest.write(other)
    with pytest.raises(InputError, match=r"dimensions: 3 -> 256.*leave --embeddings out"):
        filter_synthetic(replace(window, embeddings=str(other)))


def test_nothing_left_is_an_error(options: FilterOptions) -> None:
    with pytest.raises(InputError, match="no document passes the filters"):
        filter_synthetic(replace(options, min_tokens=10_000))
    assert not Path(str(options.output_prefix)).parent.exists()


def test_the_command_prints_what_would_go(options: FilterOptions) -> None:
    arguments = ["--synthetic", *options.synthetic, "--corpus", *options.corpus, "--dry-run"]
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
        (
            ["--synthetic", "{S}", "--corpus", "{C}", "--dry-run", "--min-similarity", "0.2"],
            "--min-similarity 0.2: needs --encoder",
        ),
        (
            ["--synthetic", "{S}", "--corpus", "{C}", "--dry-run", "--encoder", "lexical"],
            "--encoder lexical: give --min-similarity or --max-similarity",
        ),
        (
            ["--synthetic", "{S}", "--corpus", "{C}", "--dry-run", "--memory", "much"],
            "--memory much: is no size",
        ),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, options: FilterOptions) -> None:
    line = [one.format(S=options.synthetic[0], C=options.corpus[0]) for one in arguments]
    process = run_command(TOOL, *line)
    assert process.returncode == 2
    assert message in process.stderr and process.stderr.count("\n") == 1
