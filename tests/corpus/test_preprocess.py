"""The command: files in, Megatron corpus out; bad input in, one line and nothing else out."""

import gzip
import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import bin_path, idx_path
from megatron_sbp.manifest import Manifest

SCRIPT = Path(__file__).parents[2] / "tools" / "preprocess_documents.py"
SEED = 20260919


def command(*arguments: object) -> int:
    """Run the command in this process; its exit status."""
    spec = importlib.util.spec_from_file_location("preprocess_documents", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
        try:
            cli.run(module.main)
        except SystemExit as end:
            assert isinstance(end.code, int)
            return end.code
    return 0


def write_json_lines(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def random_texts(count: int) -> list[str]:
    rng = random.Random(SEED)
    words = [
        "alpha",
        "beta",
        "gamma",
        "äöü",
        "🎉",
        "<|endoftext|>",
        "<|sep|>",
        "\n",
        "\t",
        ",",
        "(",
    ]
    return [f"{i} " + " ".join(rng.choices(words, k=rng.randint(1, 60))) for i in range(count)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    return write_json_lines(tmp_path / "in.jsonl", random_texts(300))


def both(prefix: Path) -> tuple[list[str], list[str]]:
    """Training and held-out texts of a corpus."""
    training, heldout = Corpus([prefix]), Corpus([f"{prefix}-heldout"])
    return list(training.texts(range(len(training)))), list(heldout.texts(range(len(heldout))))


def test_text_round_trip_and_counts(tmp_path: Path, texts: Path) -> None:
    prefix = tmp_path / "box" / "c"
    arguments = ("--input", texts, "--output-prefix", prefix, "--train-tokenizer", 400)
    assert command(*arguments, "--heldout-share", 0.2, "--workers", 1) == 0
    training, heldout = both(prefix)
    given_texts = random_texts(300)
    place = {text: number for number, text in enumerate(given_texts)}
    # Every document once, in the order of the input in each prefix.
    assert sorted(training + heldout, key=place.__getitem__) == given_texts
    assert training == sorted(training, key=place.__getitem__)
    assert heldout == sorted(heldout, key=place.__getitem__)
    assert 30 < len(heldout) < 90  # binomial: 60 expected, standard deviation 7
    corpus, other = Corpus([prefix]), Corpus([f"{prefix}-heldout"])
    eod = corpus.tokenizer.eod
    for document in range(len(corpus)):
        tokens = corpus.tokens(document)
        assert tokens[-1] == eod and eod not in tokens[:-1]
    assert corpus.tokens(0).dtype == "uint16"
    counts = Manifest.read(prefix.parent).counts
    assert counts == {
        "documents": len(training),
        "tokens": int(corpus.lengths.sum()),
        "heldout_documents": len(heldout),
        "heldout_tokens": int(other.lengths.sum()),
        "characters": sum(map(len, given_texts)),
        "skipped": {},
        "vocabulary": 400,
        "median_document": counts["median_document"],
        "longest_document": max(corpus.lengths.max(), other.lengths.max()),
        "prefix": "c",
        "heldout_prefix": "c-heldout",
    }


@settings(deadline=None, max_examples=10)
@given(documents=st.lists(st.text(min_size=1), min_size=1, max_size=9))
def test_any_text_comes_back(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_directory: Path, documents: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    source = write_json_lines(folder / "in.jsonl", documents)
    usable = [text for text in documents if not text.isspace()]
    arguments = ["--input", source, "--output-prefix", folder / "box/c", "--heldout-share", 0]
    arguments += ["--tokenizer", tokenizer_directory, "--workers", 1, "--on-error", "skip"]
    assert command(*arguments) == (0 if usable else 2)
    if usable:
        corpus = Corpus([folder / "box/c"])
        assert list(corpus.texts(range(len(corpus)))) == usable
        assert not bin_path(folder / "box/c-heldout").exists()


def test_bytes_do_not_depend_on_the_workers(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_sbp.corpus.encoding._BATCH_DOCUMENTS", 7)
    for workers in (1, 3):
        prefix = tmp_path / f"box{workers}" / "c"
        arguments = ("--input", texts, "--output-prefix", prefix, "--train-tokenizer", 400)
        assert command(*arguments, "--workers", workers) == 0
    for path in (bin_path("c"), idx_path("c"), bin_path("c-heldout"), "tokenizer/tokenizer.json"):
        assert (tmp_path / "box1" / path).read_bytes() == (tmp_path / "box3" / path).read_bytes()


def test_finished_output_is_recognised_and_another_refused(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", texts, "--output-prefix", tmp_path / "box/c", "--train-tokenizer", 400]
    assert command(*arguments, "--workers", 1) == 0
    summary = capsys.readouterr().out
    stamp = bin_path(tmp_path / "box/c").stat().st_mtime_ns
    assert command(*arguments, "--workers", 2) == 0
    assert capsys.readouterr().out == summary
    assert bin_path(tmp_path / "box/c").stat().st_mtime_ns == stamp
    assert command(*arguments, "--seed", 1) == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err
    write_json_lines(texts, ["other"])
    assert command(*arguments) == 2
    assert "in.jsonl" in capsys.readouterr().err


def test_options_choose_documents(tmp_path: Path, tokenizer_directory: Path) -> None:
    long, copy = "a b c d e f g h i j k l", "a b  c d e f\ng h i j k l"
    near = long + " " + " ".join("mnopqrstuvw") + " x"
    source = write_json_lines(tmp_path / "in.jsonl", [near, "short", long, copy, near + " y", "zz"])
    prefix = tmp_path / "box" / "c"
    arguments = ["--input", source, "--output-prefix", prefix, "--tokenizer", tokenizer_directory]
    arguments += ["--heldout-share", 0, "--workers", 1, "--no-append-eod", "--min-characters", 3]
    arguments += ["--deduplicate", "near", "--max-documents", 3]
    assert command(*arguments) == 0
    corpus = Corpus([prefix])
    assert list(corpus.texts(range(len(corpus)))) == [near, "short", long]
    assert corpus.tokenizer.eod not in [corpus.tokens(i)[-1] for i in range(3)]
    more = ["--output-prefix", tmp_path / "more/c", "--max-documents", 9]
    assert command(*arguments, *more) == 0
    counts = Manifest.read(tmp_path / "more").counts
    assert counts["skipped"] == {"exact duplicate": 1, "near duplicate": 1, "too short": 1}


def test_skipped_documents_are_counted(tmp_path: Path, tokenizer_directory: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'{"text": "good"}\n{"text": \n{"text": "\xff"}\n{"text": " "}\n{"body": "x"}\n{}\n'
        b'{"text": "also good"}\n'
    )
    arguments = ["--input", source, "--output-prefix", tmp_path / "box/c", "--heldout-share", 0]
    arguments += ["--tokenizer", tokenizer_directory, "--workers", 1, "--on-error", "skip"]
    assert command(*arguments) == 0
    assert list(Corpus([tmp_path / "box/c"]).texts([0, 1])) == ["good", "also good"]
    assert Manifest.read(tmp_path / "box").counts["skipped"] == {
        "broken JSON": 1,
        "invalid UTF-8": 1,
        "empty document": 1,
        "no text": 2,
    }


def test_document_without_tokens_is_a_fault(
    tmp_path: Path, tokenizer_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer that drops what it does not know can make nothing of a document."""
    from tokenizers import Tokenizer, normalizers

    folder = tmp_path / "dropping"
    folder.mkdir()
    backend = Tokenizer.from_file(str(tokenizer_directory / "tokenizer.json"))
    backend.normalizer = normalizers.Replace("x", "")
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    source = write_json_lines(tmp_path / "in.jsonl", ["a", "xx", "b"])
    arguments = ["--input", source, "--output-prefix", tmp_path / "box/c", "--heldout-share", 0]
    arguments += ["--tokenizer", folder, "--workers", 1]
    assert command(*arguments) == 2
    assert "in.jsonl:2: empty document: the tokenizer makes no tokens" in capsys.readouterr().err
    assert command(*arguments, "--on-error", "skip") == 0
    assert list(Corpus([tmp_path / "box/c"]).texts([0, 1])) == ["a", "b"]


INPUTS: dict[str, tuple[str, bytes, str]] = {
    "missing file": ("missing.jsonl", b"", r"missing\.jsonl: no such file; check"),
    "unknown format": ("in.xml", b"<a/>", r"in\.xml: the ending names no known format; use"),
    "empty corpus": ("in.jsonl", b"", r"in\.jsonl: no documents to train on .*empty"),
    "empty document": ("in.jsonl", b'{"text": ""}', r"in\.jsonl:1: empty document: .*remove"),
    "invalid UTF-8": ("in.jsonl", b'{"text": "\xe4"}', r"in\.jsonl:1: invalid UTF-8: b'\\xe4"),
    "text not UTF-8": ("in.txt", b"a\n\xe4", r"in\.txt:2: invalid UTF-8: .*convert"),
    "surrogate": ("in.jsonl", b'{"text": "\\ud83d"}', r"in\.jsonl:1: invalid UTF-8: .*mend"),
    "broken JSON": ("in.jsonl", b'{"text": "a"}\n{"te', r"in\.jsonl:2: broken JSON: .*mend"),
    "missing key": ("in.jsonl", b'{"body": "a"}', r"in\.jsonl:1: no text: .*'body'.*--text-key"),
    "not a string": ("in.jsonl", b'{"text": [1]}', r"in\.jsonl:1: no text: .*list \(\[1\]\)"),
    "truncated archive": (
        "in.jsonl.gz",
        gzip.compress(b'{"text": "a"}')[:-9],
        r"in\.jsonl\.gz: cannot be read to its end .*repair",
    ),
    "no Parquet": ("in.parquet", b"PAR1", r"in\.parquet: cannot be read to its end .*repair"),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("train", [True, False], ids=["training", "given tokenizer"])
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    tokenizer_directory: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    train: bool,
) -> None:
    name, raw, message = INPUTS[case]
    if case != "missing file":
        (tmp_path / name).write_bytes(raw)
    arguments = ["--input", tmp_path / name, "--output-prefix", tmp_path / "box/c"]
    tokenizer = ["--train-tokenizer", 400] if train else ["--tokenizer", tokenizer_directory]
    assert command(*arguments, *tokenizer, "--workers", 1) == 2
    assert_one_line(capsys, message)
    assert not list(tmp_path.glob("box*"))


def assert_one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error


OPTIONS: dict[str, tuple[list[object], str]] = {
    "no directory": (["--output-prefix", "corpus"], "--output-prefix corpus: .*use corpus/corpus"),
    "no name": (["--output-prefix", "corpus/"], "use corpus/corpus"),
    "no tokenizer": ([], "give one of --tokenizer and --train-tokenizer"),
    "both": (["--tokenizer", "a", "--train-tokenizer", 400], "give one of"),
    "tiny vocabulary": (["--train-tokenizer", 258], "--train-tokenizer 258: needs at least 259"),
    "share": (["--train-tokenizer", 400, "--heldout-share", 1], "--heldout-share 1.0: must be"),
    "workers": (["--train-tokenizer", 400, "--workers", 0], "--workers 0: must be at least 1"),
    "lengths": (
        ["--train-tokenizer", 400, "--min-characters", 9, "--max-characters", 8],
        "--max-characters 8: must be at least 9",
    ),
    "python-docs and a file": (
        ["--train-tokenizer", 400, "--input", "python-docs", "a.txt"],
        "python-docs stands alone",
    ),
    "no such tokenizer": (["--tokenizer", "/no/such"], "--tokenizer /no/such: cannot be loaded"),
    "all held out": (
        ["--train-tokenizer", 400, "--heldout-share", 0.999999, "--workers", 1],
        "no documents to train on .300 held out.; give more",
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_bad_options(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, message = OPTIONS[case]
    base = ["--input", texts, "--output-prefix", tmp_path / "box/c"]
    assert command(*base, *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not list(tmp_path.glob("box*"))


def test_directory_that_holds_other_files(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--input", texts, "--output-prefix", tmp_path / "c", "--train-tokenizer", 400]
    assert command(*arguments) == 2
    assert_one_line(capsys, "holds files that no stage wrote")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


def test_as_a_process_with_workers(tmp_path: Path) -> None:
    """Started as a user starts it: a fault deep in a large file ends all processes at once."""
    table = pa.table({"body": [*random_texts(3000), None]})
    pq.write_table(table, tmp_path / "in.parquet")
    arguments = ["--input", tmp_path / "in.parquet", "--text-key", "body", "--workers", "2"]
    arguments += ["--output-prefix", tmp_path / "box/c", "--train-tokenizer", "400"]
    run = [sys.executable, str(SCRIPT), *map(str, arguments)]
    failed = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 2
    assert "in.parquet:row 3000: no text: 'body' is null" in failed.stderr
    assert failed.stderr.count("\n") == 1 and not list(tmp_path.glob("box*"))
    run += ["--on-error", "skip"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    training, heldout = both(tmp_path / "box/c")
    assert sorted(training + heldout) == sorted(random_texts(3000))
    assert "left out: no text" in done.stdout
