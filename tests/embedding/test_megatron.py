import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp import cli
from megatron_sbp.corpus import tokenizer
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.embedding.embed import embed
from megatron_sbp.embedding.megatron import MegatronSpec
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.embedding.transformer import Machine
from megatron_sbp.errors import InputError
from tests.conftest import ROOT, run_command

EXACT = Machine.resolve("fp32", "cpu")
DOCUMENTS, CONTEXT = 40, 64


class Reference:
    """Megatron's states of windows of 32 tokens, and vectors made from them in float64."""

    def __init__(self, directory: Path, owners: list[int], lengths: list[int]):
        self.directory, self.owners, self.lengths = directory, owners, lengths
        self.states = np.load(directory / "states.npz")

    def pooled(self, pool: Callable[[np.ndarray], np.ndarray], layer: str = "last") -> np.ndarray:
        """One vector per document: windows weighted by their tokens, without the first one."""
        sums: np.ndarray = np.zeros((DOCUMENTS, 64))
        for number, owner in enumerate(self.owners):
            states = self.states[f"{layer}-{number}"].astype(np.float64)
            sums[owner] += pool(states) * (len(states) - 1)
        return sums / np.array(self.lengths)[:, None]


def mean(states: np.ndarray) -> np.ndarray:
    return states[1:].mean(0)


@pytest.fixture(scope="module")
def reference(
    checkpoints: Path, words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Reference:
    """The qwen3 case, saved with TP=2 and with PP=2."""
    directory = tmp_path_factory.mktemp("states")
    windows, owners, lengths = [], [], []
    for document in range(DOCUMENTS):
        body = words_corpus.body(document)[: 3 * 31].tolist()
        lengths.append(len(body))
        for start in range(0, len(body), 31):
            windows.append([words_corpus.tokenizer.bos, *body[start : start + 31]])
            owners.append(document)
    assert len(windows) > DOCUMENTS  # some documents have several
    (directory / "windows.json").write_text(json.dumps(windows))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", str(ROOT / "tests/embedding/megatron_states.py")),
            *(str(checkpoints / "qwen3"), "qwen3", str(directory)),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Reference(directory, owners, lengths)


def vectors(saved: Path, corpus: Corpus, **options: Any) -> np.ndarray:
    windows: dict[str, Any] = {"max_length": 32, "long_documents": "mean", "max_windows": 3}
    spec = MegatronSpec.resolve(str(saved), machine=EXACT, **windows | options)
    return spec.load(corpus).encode_documents(corpus, range(DOCUMENTS)).vectors


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_vectors_are_megatrons_hidden_states(
    layout: str, reference: Reference, words_corpus: Corpus
) -> None:
    found = vectors(reference.directory / layout, words_corpus, center=False)
    np.testing.assert_allclose(found, reference.pooled(mean), atol=1e-4)


def test_a_layer_in_between_and_the_last_token(reference: Reference, words_corpus: Corpus) -> None:
    saved = reference.directory / "tp2"
    found = vectors(saved, words_corpus, center=False, layer=2)
    np.testing.assert_allclose(found, reference.pooled(mean, "layer2"), rtol=1e-4, atol=1e-4)
    found = vectors(saved, words_corpus, center=False, pooling="last")
    np.testing.assert_allclose(found, reference.pooled(lambda states: states[-1]), atol=1e-4)


def test_centred_vectors_and_texts(reference: Reference, words_corpus: Corpus) -> None:
    saved = reference.directory / "pp2"
    found = vectors(saved, words_corpus, dimensions=10)
    everything = vectors_of_all(saved, words_corpus)
    expected = reference.pooled(mean) - everything.mean(0)
    np.testing.assert_allclose(found, expected[:, :10], atol=1e-4)
    spec = MegatronSpec.resolve(str(saved), machine=EXACT)
    encoder = spec.load(words_corpus)
    texts = list(words_corpus.texts(range(9)))
    by_text = encoder.encode(texts).vectors
    assert np.allclose(by_text, encoder.encode_documents(words_corpus, range(9)).vectors, atol=1e-5)


def vectors_of_all(saved: Path, corpus: Corpus) -> np.ndarray:
    spec = MegatronSpec.resolve(
        str(saved),
        machine=EXACT,
        center=False,
        max_length=32,
        long_documents="mean",
        max_windows=3,
    )
    return spec.load(corpus).encode_documents(corpus, range(len(corpus))).vectors


def test_the_command_reads_heads_of_the_context(reference: Reference, words_corpus: Corpus) -> None:
    output = reference.directory / "e"
    options = EmbedOptions(
        corpus=[str(prefix) for prefix in words_corpus.prefixes],
        output=str(output),
        encoder=f"megatron:{reference.directory / 'tp2'}",
        dtype="fp32",
        center=False,
        workers=1,
    )
    manifest = embed(options)
    rows = Embeddings(output).rows(0, DOCUMENTS).astype(np.float32)
    short = [number for number, length in enumerate(reference.lengths) if length <= 31]
    expected = reference.pooled(mean)[short]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert short
    np.testing.assert_allclose(rows[short], expected, atol=1e-3)
    bodies = [len(words_corpus.body(document)) for document in range(len(words_corpus))]
    assert manifest.counts["cut"] == sum(length > CONTEXT - 1 for length in bodies) > 0
    assert sorted(path.name for path in output.iterdir()) == [
        "embeddings-00000-of-00001.npy",
        "manifest.json",
    ]


def test_what_does_not_fit_is_one_line(
    reference: Reference, words_corpus: Corpus, tmp_path: Path
) -> None:
    made = tokenizer.train(words_corpus.texts(range(50)), 300, tmp_path / "tokenizer")
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        writer.append(made.encode("some words"))
    saved = reference.directory / "tp2"
    damaged = shutil.copytree(saved, tmp_path / "damaged")
    (damaged / "latest_checkpointed_iteration.txt").write_text("8")
    output = ["--output", str(tmp_path / "e")]
    flags: list[tuple[str, str | Path, str]] = [
        ("--corpus", tmp_path / "c", f"{tmp_path / 'tokenizer'}: has 300 ids, but the embedding"),
        ("--layer", "5", "--layer 5: megatron:"),
        ("--dimensions", "65", "--dimensions 65: megatron:"),
        ("--max-length", "65", "reads at most 64 tokens"),
        ("--pooling", "cls", "--pooling cls: the first token of"),
        ("--prompt", "d: ", "--prompt d: : is not for --encoder megatron:"),
        ("--encoder", f"megatron:{damaged}", "iter_0000008: no such directory"),
        ("--encoder", f"megatron:{tmp_path}", "give the directory that Megatron saved to"),
    ]
    for flag, value, message in flags:
        given = {"--corpus": words_corpus.prefixes[0], "--encoder": f"megatron:{saved}"}
        line = [str(part) for pair in (given | {flag: value}).items() for part in pair]
        with pytest.raises(InputError, match=re.escape(message)):
            embed(cli.parse(EmbedOptions, "", line + output))
        assert not (tmp_path / "e").exists() and not (tmp_path / "e.partial").exists()


def test_two_ranks_write_the_bytes_of_one(reference: Reference, words_corpus: Corpus) -> None:
    corpus = [str(prefix) for prefix in words_corpus.prefixes]
    flags = [
        *("--corpus", *corpus, "--documents-per-shard", "60", "--fit-documents", "50"),
        *("--encoder", f"megatron:{reference.directory / 'tp2'}", "--output"),
    ]
    one, two = (reference.directory / f"{ranks}-ranks" for ranks in (1, 2))
    embed(cli.parse(EmbedOptions, "", [*flags, str(one)]))
    done = run_command("tools/embed_documents.py", *flags, two, ranks=2)
    assert done.returncode == 0, done.stderr
    first, second = (
        {path.name: path.read_bytes() for path in box.glob("*.npy")} for box in (one, two)
    )
    assert len(first) == 5 and first == second
