"""The data check: every fault gets its line, and a sound run is shown as it will be trained on."""

import io
import itertools
import re
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from megatron.training.global_vars import unset_global_variables

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.training.data import gpt_config
from megatron_sbp.training.lint.arguments import check_arguments, check_tokenizer, parse
from megatron_sbp.training.lint.check import Finding, LintOptions, lint, split_arguments
from tests.conftest import ROOT, write_pairs
from tests.training.runs import SMALL, data

WHOLE = LintOptions(lint_characters=0)
EOD = 0


@pytest.fixture(autouse=True)
def _no_global_variables() -> Iterator[None]:
    yield
    unset_global_variables()


def checked(*arguments: str, options: LintOptions = WHOLE) -> tuple[list[Finding], list[str]]:
    """Findings and preview of a run with the small model."""
    lines = list(lint(options, [*SMALL, "--train-iters", "20", *arguments]))
    findings = [line for line in lines if isinstance(line, Finding)]
    return findings, [line for line in lines if isinstance(line, str)]


def errors(findings: list[Finding]) -> list[str]:
    return [finding.line() for finding in findings if finding.status == "error"]


def synthesis(corpus: Corpus, *pairs: Path) -> list[str]:
    stores = [str(store) for store in pairs]
    return [*data(corpus), "--sbp-objective", "synthesis", "--sbp-pairs", *stores]


def write(prefix: Path, documents: list[list[int]], dtype: type = np.uint16) -> str:
    with IndexedWriter(prefix, dtype) as writer:
        for document in documents:
            writer.append(document)
    return str(prefix)


def documents(seed: int, count: int = 40, end: list[int] | None = None) -> list[list[int]]:
    """Random documents of ids that the fixture's tokenizer has."""
    random = np.random.default_rng(seed)
    end = [EOD] if end is None else end
    return [[*random.integers(3, 300, random.integers(1, 60)).tolist(), *end] for _ in range(count)]


def on(path: str, corpus: Corpus) -> list[str]:
    """Data arguments that train on another path with the corpus's tokenizer."""
    return ["--train-data-path", path, *data(corpus)[2:]]


# A sound run


def test_a_sound_run_is_shown_as_its_documents(words_corpus: Corpus) -> None:
    findings, lines = checked(*data(words_corpus))
    assert {finding.status for finding in findings} == {"ok"}
    texts = set(words_corpus.texts(range(words_corpus.counts[0])))
    shown = [line.strip() for line in lines if "[[" in line]
    assert len(shown) == WHOLE.lint_preview
    for line in shown:
        # All but the first token of a row have a loss.
        assert line.endswith("]]") and line.count("[[") == 1
        first, *inner, last = re.sub(r"\[\[|\]\]", "", line).split("<|endoftext|>")
        assert inner and all(text in texts for text in inner if text)
        assert any(text.endswith(first) for text in texts)
        assert any(text.startswith(last) for text in texts)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_pairs_are_shown_with_their_loss(
    words_corpus: Corpus, words_pairs: Path, packing: bool
) -> None:
    arguments = [*synthesis(words_corpus, words_pairs), "--seq-length", "1024"]
    arguments += ["--max-position-embeddings", "1024", *([] if packing else ["--no-sbp-packing"])]
    findings, lines = checked(*arguments)
    assert not errors(findings)
    columns = [np.load(words_pairs / f"{name}.npy") for name in ("anchor", "neighbor")]
    texts = list(words_corpus.texts(range(len(words_corpus))))
    inside = np.maximum(*columns) < words_corpus.counts[0]
    pairs = {(texts[first], texts[second]) for first, second in np.stack(columns).T[inside]}
    shown = [line.strip() for line in lines if "[[" in line]
    segments = [int(line.split(" segment")[0].split()[-1]) for line in lines if "segment" in line]
    assert len(shown) == sum(segments) and len(segments) == WHOLE.lint_preview
    assert (max(segments) > 1) == packing
    for line in shown:
        match = re.fullmatch(r"<\|endoftext\|>(.*)<\|sep\|>\[\[(.*)<\|endoftext\|>\]\]", line)
        assert match is not None
        assert match.groups() in pairs
    (told,) = (finding.text for finding in findings if "pairs," in finding.text)
    assert f"{inside.sum():,} in the train set" in told
    outside = np.minimum(*columns) >= words_corpus.counts[0]
    assert f"{outside.sum():,} in the valid set" in told
    assert f"{(~inside & ~outside).sum():,} left out" in told


def test_every_store_is_counted_for_itself(words_corpus: Corpus, tmp_path: Path) -> None:
    rows = [(0, 1, 0.9), (1, 0, 0.9), (2, 3, 0.9)]
    stores = []
    for name, prefix, some in zip(("a", "b"), words_corpus.prefixes, (rows, rows[:2]), strict=True):
        stores.append(tmp_path / name)
        write_pairs(stores[-1], Corpus([prefix]), some)
    findings, _ = checked(*synthesis(words_corpus, *stores))
    assert not errors(findings)
    told = [finding.text for finding in findings if finding.check == "pairs"]
    assert [text.split(", 0 left out")[0] for text in told] == [
        f"{stores[0]}: 3 pairs, 3 in the train set",
        f"{stores[1]}: 2 pairs, 2 in the valid set",
    ]


def test_rows_add_up(words_corpus: Corpus, words_pairs: Path) -> None:
    _, lines = checked(*synthesis(words_corpus, words_pairs))
    pattern = re.compile(r"([\d,]+) positions.*?([\d,]+) with a loss, ([\d,]+) of padding")
    found = filter(None, map(pattern.search, lines))
    rows = [list(map(int, match.groups())) for match in found if match.string.startswith("row")]
    assert len(rows) == WHOLE.lint_preview
    for positions, supervised, padding in rows:
        assert positions + padding == 128 and 0 < supervised < positions


def test_long_text_is_cut_in_its_middle_and_colour_takes_the_place_of_marks(
    words_corpus: Corpus,
) -> None:
    _, whole = checked(*data(words_corpus))
    options = LintOptions(lint_characters=50, lint_color="always")
    _, short = checked(*data(words_corpus), options=options)
    for long, line in zip(whole, short, strict=True):
        if "[[" not in long:
            continue
        _, text = long.split("[[")
        text = text.removesuffix("]]")
        _, colored = line.split("\033[32m")
        head, count, tail = colored.removesuffix("\033[0m").split(" ... ")
        assert text.startswith(head) and text.endswith(tail) and len(head + tail) == 50
        assert count == f"{len(text) - 50:,} characters"


def test_a_terminal_gets_colour(words_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for unset, colored in ((True, True), (False, False)):
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setenv("NO_COLOR", "1")
        if unset:
            monkeypatch.delenv("NO_COLOR")
        _, lines = checked(*data(words_corpus))
        assert any("\033[32m" in line for line in lines) == colored
        assert any("[[" in line for line in lines) != colored


def test_rows_of_a_blend_name_their_source(words_corpus: Corpus, tmp_path: Path) -> None:
    other = write(tmp_path / "other", [[7] * 60] * 40)
    line = on(other, words_corpus)
    line[1:2] = ["0.5", other, "0.5", str(words_corpus.prefixes[0])]
    _, lines = checked(*line, options=LintOptions(lint_preview=6))
    rows = [(place, text) for place, text in itertools.pairwise(lines) if "row " in place]
    assert len(rows) == 6
    for place, text in rows:
        assert (f" of {other}:" in place) == ("word" not in text)
    assert {f" of {other}:" in place for place, _ in rows} == {True, False}


def test_a_document_cannot_steer_the_terminal(words_corpus: Corpus, tmp_path: Path) -> None:
    encode = words_corpus.tokenizer.encode
    path = write(tmp_path / "evil", [[*encode("word1\n\033[2Jword2\r"), EOD]] * 40)
    _, lines = checked(*on(path, words_corpus))
    assert any("word1↵\N{REPLACEMENT CHARACTER}[2Jword2↵" in line for line in lines)
    assert not any(set(line) & {"\033", "\r", "\n"} for line in lines)


def test_a_run_of_many_processes_is_checked_in_one(words_corpus: Corpus) -> None:
    layout = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]
    layout += ["--global-batch-size", "1024", "--bf16", "--sequence-parallel"]
    layout += ["--eval-global-batch-size", "256"]
    findings, _ = checked(*data(words_corpus), *layout, options=LintOptions(lint_world_size=1024))
    assert "TP 2 x PP 2 x CP 1 x DP 256 = 1,024 processes" in findings[0].text
    assert not errors(findings)
    findings, _ = checked(*data(words_corpus), *layout)
    assert "DP 1 = 4 processes" in findings[0].text


# Faults

type Make = Callable[[Corpus, Path, Path], list[str]]


def _token_above(corpus: Corpus, _: Path, box: Path) -> list[str]:
    some = documents(1)
    some[3][2:3] = [corpus.tokenizer.vocab_size]
    return on(write(box / "above", some), corpus)


def _too_narrow(corpus: Corpus, _: Path, box: Path) -> list[str]:
    path = write(box / "narrow", documents(2))
    other = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "70000"]
    return [*on(path, corpus)[:2], *other]


def _other_tokenizer(corpus: Corpus, _: Path, box: Path) -> list[str]:
    shutil.copytree(corpus.prefixes[0].parent / "tokenizer", box / "other")
    path = box / "other" / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    return [*data(corpus)[:-1], str(box / "other")]


def _truncated(corpus: Corpus, _: Path, box: Path) -> list[str]:
    path = write(box / "cut", documents(3))
    with open(f"{path}.bin", "r+b") as file:
        file.truncate(101)
    return on(path, corpus)


def _several_sequences(corpus: Corpus, pairs: Path, box: Path) -> list[str]:
    builder = IndexedDatasetBuilder(str(box / "several.bin"), dtype=np.uint16)
    for document in documents(4):
        builder.add_document(np.array(document * 2), [len(document)] * 2)
    builder.finalize(str(box / "several.idx"))
    line = on(str(box / "several"), corpus)
    return [*line, "--sbp-objective", "synthesis", "--sbp-pairs", str(pairs)]


def _pairs_of_another_corpus(corpus: Corpus, _: Path, box: Path) -> list[str]:
    other = Corpus([write(box / "other", documents(5))])
    write_pairs(box / "pairs", other, [(0, 1, 0.9), (1, 0, 0.9)])
    return synthesis(corpus, box / "pairs")


def _a_path_without_pairs(corpus: Corpus, _: Path, box: Path) -> list[str]:
    write_pairs(box / "pairs", Corpus(corpus.prefixes[:1]), [(0, 1, 0.9), (1, 0, 0.9)])
    return synthesis(corpus, box / "pairs")


def _ids_out_of_range(corpus: Corpus, _: Path, box: Path) -> list[str]:
    write_pairs(box / "pairs", corpus, [(0, 1, 0.9), (1, len(corpus), 0.9)])
    return synthesis(corpus, box / "pairs")


def _columns_of_two_lengths(corpus: Corpus, pairs: Path, box: Path) -> list[str]:
    shutil.copytree(pairs, box / "pairs")
    np.save(box / "pairs" / "score.npy", np.load(pairs / "score.npy")[:-1])
    return synthesis(corpus, box / "pairs")


def _pairs_across_splits(corpus: Corpus, _: Path, box: Path) -> list[str]:
    write_pairs(box / "pairs", corpus, [(0, len(corpus) - 1, 0.9)])
    return synthesis(corpus, box / "pairs")


def _no_pairs_to_validate(corpus: Corpus, _: Path, box: Path) -> list[str]:
    write_pairs(box / "pairs", corpus, [(0, 1, 0.9), (1, 0, 0.9)])
    return synthesis(corpus, box / "pairs")


def _no_cache(corpus: Corpus, _: Path, box: Path) -> list[str]:
    (box / "file").write_text("")
    return [*data(corpus), "--data-cache-path", str(box / "file" / "cache")]


def _without_weights(corpus: Corpus, _: Path, box: Path) -> list[str]:
    line = data(corpus)
    line[1:2] = [write(box / name, documents(6)) for name in "abc"]
    return line


FAULTS: dict[str, tuple[Make, str]] = {
    "token above": (_token_above, "token ids: .*above: document 3 has id 512 at position 2"),
    "narrow dtype": (_too_narrow, "token ids: .*narrow: its ids are uint16, up to 65,535, but"),
    "tokenizer": (_other_tokenizer, "data path: .*other: is not the tokenizer that .*words"),
    "truncated": (_truncated, r"data path: .*cut.bin: 101 bytes"),
    "missing": (lambda c, p, b: on(str(b / "x"), c), "data path: .*x.idx: No such file"),
    "sequences": (_several_sequences, "data path: .*several.idx: 80 sequences in 40 documents"),
    "no data": (lambda c, p, b: data(c)[4:], "data paths: no data: give --data-path"),
    "other corpus": (_pairs_of_another_corpus, "pairs: .*pairs: was mined over .*other, and none"),
    "no pairs": (_a_path_without_pairs, "pairs: .*words-heldout: is not a corpus of the pairs"),
    "out of range": (_ids_out_of_range, "pairs: .*row 1 .* has an id outside the corpus"),
    "columns": (_columns_of_two_lengths, "pairs: .*columns of different lengths"),
    "crossing": (
        _pairs_across_splits,
        "pairs: .*no pair has both documents in the (train|valid) set",
    ),
    "validation": (_no_pairs_to_validate, "pairs: .*no pair has both documents in the valid set"),
    "cache": (_no_cache, "cache: .*cache: cannot be written"),
    "weights": (_without_weights, "sources: the training paths have no weights, .* needs 160"),
    "fp8": (
        lambda c, p, b: [*data(c), *"--fp8-format hybrid --seq-length 100".split()],
        "sequence length: --seq-length x --micro-batch-size gives each rank 200, and .* of 16",
    ),
    "context": (
        lambda c, p, b: [*data(c), *"--context-parallel-size 2 --seq-length 126".split()],
        "arguments: seq-length should be a multiple of 2 \\* context-parallel-size",
    ),
    "batch": (
        lambda c, p, b: [*data(c), *"--global-batch-size 7".split()],
        "arguments: --global-batch-size 7 is no multiple of 2",
    ),
    "objective": (
        lambda c, p, b: [*data(c), "--sbp-pairs", str(p)],
        "arguments: --sbp-pairs is given, but --sbp-objective is lm",
    ),
    "exit": (
        lambda c, p, b: [*data(c), "--checkpoint-activations"],
        "arguments: --checkpoint-activations is no longer valid",
    ),
    "spelling": (
        lambda c, p, b: [*data(c), "--sbp-synthetic-data", str(b / "synthetic")],
        "sources: --sbp-synthetic-data .*synthetic: is not spelled as any",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_has_its_line(
    fault: str, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    make, message = FAULTS[fault]
    findings, preview = checked(*make(words_corpus, words_pairs, tmp_path))
    found = errors(findings)
    assert found
    assert all(re.search(message, line) for line in found), found
    assert not preview


WARNINGS: dict[str, tuple[Make, str]] = {
    "empty": (
        lambda c, p, b: on(write(b / "empty", [*documents(7), [], []]), c),
        "data path: .*empty: 2 documents .4.76%. are empty",
    ),
    "no eod": (
        lambda c, p, b: on(write(b / "open", [*documents(8, 30), *documents(9, 10, [5])]), c),
        "token ids: .*40 documents drawn, .* 75.0% of them end with eod",
    ),
    "no manifest": (
        lambda c, p, b: on(write(b / "bare", documents(10)), c),
        "data path: .*bare: cannot tell whether it was made with the tokenizer of the run",
    ),
    "sequences, lm": (
        lambda c, p, b: _several_sequences(c, p, b)[:-4],
        "data path: .*several.idx: 80 sequences in 40 documents",
    ),
    "separator": (
        lambda c, p, b: [*synthesis(c, p), "--sbp-separator", "word1 word2"],
        "tokenizer: --sbp-separator 'word1 word2' is no token of the tokenizer, which splits it in",
    ),
    "both splits": (
        lambda c, p, b: on(data(c)[3], c),
        "sources: .*words-heldout: is in the training and in the valid set",
    ),
}


@pytest.mark.parametrize("doubt", WARNINGS)
def test_a_doubt_is_a_warning(
    doubt: str, words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    make, message = WARNINGS[doubt]
    findings, preview = checked(*make(words_corpus, words_pairs, tmp_path))
    assert not errors(findings)
    told = [finding.line() for finding in findings if finding.status == "warning"]
    assert any(re.search(message, line) for line in told), told
    assert preview


@pytest.mark.parametrize("iterations", [11, 12])
def test_repeated_synthetic_documents_are_those_that_megatron_builds(
    words_corpus: Corpus, tmp_path: Path, iterations: int
) -> None:
    synthetic = write(tmp_path / "synthetic", [[7] * 126 + [EOD]] * 40)
    line = [*SMALL, *data(words_corpus), "--train-iters", str(iterations)]
    place = line.index("--train-data-path") + 1
    line[place : place + 1] = ["0.6", line[place], "0.4", synthetic]
    line += ["--sbp-synthetic-data", synthetic, "--data-cache-path", str(tmp_path / "cache")]
    found = errors([line for line in lint(WHOLE, line) if isinstance(line, Finding)])
    run = parse(line, 0)
    list(check_arguments(run))
    list(check_tokenizer(run.args))
    sizes = (8 * iterations, None, None)
    config = gpt_config(run.args)
    train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    member = train.datasets[1]
    repeated = len(member.document_index) > len(member.indices)
    assert repeated == bool(found), found
    assert repeated == (iterations > 11), "the cases lie on one side: test nothing"


# The command


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Run the tool in this process, which has Megatron imported; gives its exit status."""
    tool = str(ROOT / "tools" / "lint_corpus.py")
    monkeypatch.setattr(sys, "argv", [tool, *SMALL, "--train-iters", "20", *arguments])
    try:
        runpy.run_path(tool, run_name="__main__")
    except SystemExit as exit:
        return exit.code
    return 0


def test_all_faults_are_told_at_once_and_the_status_is_2(
    words_corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = _token_above(words_corpus, tmp_path, tmp_path)
    line[3] = str(tmp_path / "missing")
    assert command(monkeypatch, *line, "--data-cache-path", "/dev/null/cache") == 2
    said = capsys.readouterr()
    told = [row.split()[1] for row in said.out.splitlines() if row.startswith("error")]
    assert told == ["token", "data", "cache:"]
    assert said.err == "error: the run would fail: 3 of the lines above say why\n"


def test_a_sound_run_has_status_0_and_leaves_nothing(
    words_corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    box = words_corpus.prefixes[0].parent
    before = sorted(box.rglob("*"))
    assert command(monkeypatch, *data(words_corpus), "--lint-preview=1") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.count("\nrow ") == 1 and said.out.endswith("warnings  0\n")
    assert sorted(box.rglob("*")) == before and not any(tmp_path.iterdir())


def test_own_arguments_are_parted_from_those_of_the_run() -> None:
    own, run = split_arguments("--a 1 --lint-preview 2 --b --lint-color=never -3".split())
    assert own == ["--lint-preview", "2", "--lint-color=never"]
    assert run == ["--a", "1", "--b", "-3"]
