import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp import cli
from megatron_sbp.corpus import tokenizer
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.embedding.embed import embed
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from tests.conftest import ROOT, flipped, run_command
from tests.embedding.test_huggingface import reference
from tests.test_ranks import TORCHRUN


def flags(corpus: Corpus, output: Path, *others: str | Path) -> list[str | Path]:
    return ["tools/embed_documents.py", "--output", output, "--corpus", *corpus.prefixes, *others]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.npy")}


def test_rows_are_the_models_in_document_order(
    tiny_bert: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    options = EmbedOptions(
        corpus=[str(prefix) for prefix in words_corpus.prefixes],
        output=str(tmp_path / "e"),
        encoder=str(tiny_bert),
        dtype="fp32",
        documents_per_shard=100,
        workers=1,
    )
    manifest = embed(options)
    embeddings = Embeddings(tmp_path / "e")
    assert [path.name for path in embeddings.paths] == [
        f"embeddings-0000{number}-of-00003.npy" for number in range(3)
    ]
    texts = list(words_corpus.texts(range(len(words_corpus))))
    rows = embeddings.rows(0, len(words_corpus)).astype(np.float32)
    assert (rows * reference(tiny_bert, texts, "cls", 40)).sum(1).min() > 1 - 1e-3
    assert manifest.counts["corpus"] == words_corpus.fingerprints
    words = words_corpus.tokenizer
    assert manifest.counts["cut"] == sum(len(words.encode(text)) > 40 for text in texts) > 0


def test_number_of_workers_does_not_matter(
    tiny_bert: Path,
    words_corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("megatron_sbp.embedding.embed._PIECE", 50)
    for workers in (1, 2):
        options = EmbedOptions(
            corpus=[str(prefix) for prefix in words_corpus.prefixes],
            output=str(tmp_path / str(workers)),
            encoder=str(tiny_bert),
            documents_per_shard=120,
            workers=workers,
        )
        embed(options)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


@pytest.mark.parametrize("launcher", ["mpiexec", "torchrun"])
def test_number_of_ranks_does_not_matter(
    launcher: str, tiny_bert: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    encoder = "lexical" if launcher == "mpiexec" else str(tiny_bert)
    one, two = tmp_path / "one", tmp_path / "two"
    embed(
        EmbedOptions(
            corpus=[str(prefix) for prefix in words_corpus.prefixes],
            output=str(one),
            encoder=encoder,
            documents_per_shard=60,
        )
    )
    command = flags(words_corpus, two, "--encoder", encoder, "--documents-per-shard", "60")
    if launcher == "mpiexec":
        done = run_command(*command, ranks=2)
    else:
        done = run_command(*TORCHRUN, *command)
    assert done.returncode == 0, done.stderr
    assert len(contents(one)) == 5 and contents(one) == contents(two)
    assert done.stdout.count("embeddings: ") == 1
    assert Manifest.read(one).counts == Manifest.read(two).counts


def test_an_error_on_one_rank_ends_all(tmp_path: Path) -> None:
    made = tokenizer.train(["some words", "???"], 300, tmp_path / "tokenizer")
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for text in ("some words", "???", "more words", "words"):
            writer.append(made.encode(text))
    others = ["--encoder", "lexical", "--documents-per-shard", "1"]
    done = run_command(*flags(Corpus([tmp_path / "c"]), tmp_path / "e", *others), ranks=2)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("error: rank 1: "), line
    assert "c: document 1 (id 1) got a zero vector" in line
    assert not (tmp_path / "e").exists()
    others[-1] = "4"
    done = run_command(*flags(Corpus([tmp_path / "c"]), tmp_path / "f", *others), ranks=2)
    said = done.stderr.splitlines()
    assert done.returncode == 2 and len(said) == 2, said
    assert said[0].startswith("1 shards for 2 ranks: ") and said[1].startswith("error: rank 0: ")
    assert not (tmp_path / "f").exists() and not (tmp_path / "f.partial").exists()


def test_killed_and_started_again_gives_the_same_bytes(
    words_corpus: Corpus, tmp_path: Path
) -> None:
    others = ["--encoder", "lexical", "--documents-per-shard", "2", "--dimensions", "16"]
    whole, output = tmp_path / "whole", tmp_path / "e"
    assert run_command(*flags(words_corpus, whole, *others)).returncode == 0
    workspace = tmp_path / "e.partial"
    command = [sys.executable, *map(str, flags(words_corpus, output, *others))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
        while process.poll() is None and not any(workspace.glob("embeddings-*.npy")):
            pass
        process.kill()
    done = {path: path.stat().st_mtime_ns for path in workspace.glob("embeddings-*.npy")}
    assert done and not output.exists(), "not killed in the middle"
    for piece in (min(done), next((workspace / "encoder").glob("*.np*"))):
        with flipped(piece):
            refused = run_command(*flags(words_corpus, output, *others))
            assert refused.returncode == 2 and f"error: {piece}: " in refused.stderr
    resumed = run_command(*flags(words_corpus, output, *others), ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert contents(output) == contents(whole)
    manifest = Manifest.read(output)
    assert manifest.counts == Manifest.read(whole).counts
    assert manifest.outputs.keys() == contents(output).keys()
    for path, written in done.items():
        assert manifest.outputs[path.name]["mtime_ns"] == written, "a finished shard was redone"
    again = run_command(*flags(words_corpus, output, *others))
    assert again.returncode == 0 and again.stdout == resumed.stdout
    other = run_command(*flags(words_corpus, output, *others, "--seed", "1"))
    assert other.returncode == 2 and "seed: 0 -> 1" in other.stderr


def test_bad_input_is_one_line(words_corpus: Corpus, tiny_bert: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    made = tokenizer.train(["some words", "???"], 300, odd / "tokenizer")
    with IndexedWriter(odd / "c", np.uint16) as writer:
        for text in ("some words", "more of the words", "???"):
            writer.append([*made.encode(text), made.eod])
    empty = tmp_path / "empty"
    empty.mkdir()
    corpus = Corpus([odd / "c"])
    cases: list[tuple[Corpus, list[str | Path], str]] = [
        (words_corpus, ["--encoder", empty], "has no config.json"),
        (words_corpus, ["--encoder", "no/such/model/here"], "no/such/model/here: cannot be loaded"),
        (words_corpus, ["--encoder", tiny_bert, "--max-length", "999"], "at most 128"),
        (words_corpus, ["--encoder", tiny_bert, "--dimensions", "33"], "--dimensions 33: "),
        (words_corpus, ["--encoder", tiny_bert, "--layer", "1"], "--layer 1: is not for --encoder"),
        (words_corpus, ["--encoder", tiny_bert, "--no-center"], "--no-center: is not for"),
        (words_corpus, ["--encoder", "lexical", "--max-windows", "2"], "--max-windows 2: is not"),
        (words_corpus, ["--workers", "-1"], "--workers -1: must be at least 0"),
        (words_corpus, ["--documents-per-shard", "0"], "--documents-per-shard 0: "),
        (corpus, ["--encoder", "lexical"], f"{odd / 'c'}: document 2 (id 2) got a zero vector"),
    ]
    for given, others, message in cases:
        _, *line = map(str, flags(given, tmp_path / "e", *others))
        with pytest.raises(InputError, match=re.escape(message)):
            embed(cli.parse(EmbedOptions, "", line))
        assert not (tmp_path / "e").exists() and not (tmp_path / "e.partial").exists()
    done = run_command("tools/embed_documents.py", "--corpus", odd / "x", "--output", odd / "e")
    assert done.returncode == 2 and f"{odd / 'x'}.idx" in done.stderr
