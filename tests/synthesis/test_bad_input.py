"""What a user can do wrong, through the command line: one line, status 2, nothing left behind."""

import shutil
from pathlib import Path

import pytest

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.tokenizer import Tokenizer
from tests.conftest import ROOT, run_command
from tests.synthesis.planted import write_real

TOOL = ROOT / "tools" / "synthesize.py"


@pytest.fixture(scope="module")
def other_corpus(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus with a tokenizer of another vocabulary."""
    directory = tmp_path_factory.mktemp("other")
    texts = list(words_corpus.texts(range(20)))
    tokenizers.train(texts, 300, directory / "tokenizer")
    return write_real(directory / "box" / "other", texts, directory / "tokenizer").prefixes[0]


@pytest.fixture(scope="module")
def larger_corpus(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose tokenizer has more ids than the model, which brings no tokenizer."""
    directory = tmp_path_factory.mktemp("larger")
    texts = [f"word{number} and {number * 7919}" for number in range(900)]
    tokenizers.train(texts, 900, directory / "tokenizer")
    assert Tokenizer(directory / "tokenizer").vocab_size > 512
    return write_real(directory / "box" / "larger", texts, directory / "tokenizer").prefixes[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus", "{corpus}"], "give either --num-tokens or --num-documents"),
        (["--corpus", "{corpus}", "--num-tokens", "0"], "--num-tokens 0: must be at least 1"),
        (["--corpus", "{corpus}", "--num-tokens", "9", "--top-p", "0"], "--top-p 0.0: must be"),
        (["--corpus", "{corpus}x", "--num-tokens", "9"], "No such file or directory"),
        (["--corpus", "{other}", "--num-tokens", "9"], "is not the tokenizer that the model was"),
        (
            ["--corpus", "{larger}", "--num-tokens", "9", "--load", "{bare}"],
            "ids, but the model in {bare} knows 512",
        ),
        (["--corpus", "{corpus}", "--num-tokens", "9", "--load", "{corpus}"], "holds no model"),
        (
            ["--corpus", "{corpus}", "--num-tokens", "9", "--max-seed-tokens", "500"],
            "the model's context of 128 tokens has room for 126 of seed and document",
        ),
        (
            ["--corpus", "{corpus}", "--num-tokens", "9", "--part", "9"],
            "--part 9: must be from 1/N",
        ),
        (
            ["--corpus", "{corpus}", "--num-tokens", "9", "--context-documents", "2"],
            "--context-documents 2, --pairs None: a context of several documents needs",
        ),
        (
            ["--corpus", "{corpus}", "--num-tokens", "9", "--seed-weights", "{corpus}.idx"],
            "--seed-weights {corpus}.idx: cannot be read",
        ),
        (
            ["--corpus", "{corpus}", "--num-tokens", "9", "--seed-corpus", "{corpus}x"],
            "{corpus}x.idx: No such file",
        ),
        (
            ["--corpus", "{corpus}", "--num-tokens", "9", "--separator", ""],
            "separator '': has no tokens",
        ),
    ],
)
def test_bad_input_is_one_line(
    flags: list[str],
    message: str,
    tiny_model: Path,
    words_corpus: Corpus,
    other_corpus: Path,
    larger_corpus: Path,
    tmp_path: Path,
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    names = {
        "corpus": words_corpus.prefixes[0],
        "other": other_corpus,
        "larger": larger_corpus,
        "bare": bare,
    }
    load = [] if "--load" in flags else ["--load", str(tiny_model)]
    line = [flag.format(**names) for flag in flags]
    process = run_command(TOOL, *load, *line, "--output-prefix", tmp_path / "box" / "new")
    assert process.returncode == 2, process.stderr
    assert message.format(**names) in process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    assert not (tmp_path / "box").exists() and not (tmp_path / "box.partial").exists()


def test_a_wrong_corpus_ends_all_ranks(
    tiny_model: Path, other_corpus: Path, tmp_path: Path
) -> None:
    process = run_command(
        TOOL,
        *("--load", tiny_model, "--corpus", other_corpus, "--num-tokens", "9"),
        *("--output-prefix", tmp_path / "box" / "new"),
        ranks=2,
    )
    assert process.returncode != 0
    assert process.stderr.count("is not the tokenizer") == 1
    assert not (tmp_path / "box").exists()
