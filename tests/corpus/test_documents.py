"""The corpus as other rooms see it."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, idx_path
from megatron_sbp.corpus.tokenizer import Tokenizer, train
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Stage

TEXTS = [["first", "", "third <|endoftext|>"], ["alone"], ["x äöü\n", "🎉 last"]]


def write(prefix: Path, texts: list[str], tokenizer: Tokenizer, eod: bool = True) -> Path:
    with IndexedWriter(prefix, np.uint16) as writer:
        for text in texts:
            writer.append(tokenizer.encode(text) + [tokenizer.eod] * eod)
    return prefix


@pytest.fixture
def prefixes(tmp_path: Path, tokenizer_directory: Path) -> list[Path]:
    shutil.copytree(tokenizer_directory, tmp_path / "tokenizer")
    tokenizer = Tokenizer(tokenizer_directory)
    return [write(tmp_path / f"part{i}", texts, tokenizer) for i, texts in enumerate(TEXTS)]


def test_flat_ids_run_over_the_prefixes(prefixes: list[Path]) -> None:
    corpus = Corpus(prefixes)
    tokenizer = corpus.tokenizer
    flat = [(p, i, text) for p, texts in enumerate(TEXTS) for i, text in enumerate(texts)]
    assert len(corpus) == len(flat) == 6
    assert corpus.counts.tolist() == [3, 1, 2]
    assert corpus.offsets.tolist() == [0, 3, 4, 6]
    for document, (prefix, index, text) in enumerate(flat):
        ids = tokenizer.encode(text)
        assert corpus.locate(document) == (prefix, index)
        assert corpus.tokens(document).tolist() == [*ids, tokenizer.eod]
        assert corpus.body(document).tolist() == ids
        assert corpus.lengths[document] == len(ids) + 1
        assert corpus.text(document) == text
    assert corpus.num_tokens == corpus.lengths.sum()


def test_texts_keep_the_order_asked_for(
    prefixes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_sbp.corpus.documents._DECODE_BATCH", 2)
    flat = [text for texts in TEXTS for text in texts]
    order = [5, 0, 3, 3, 2, 1, 4]
    assert list(Corpus(prefixes).texts(order)) == [flat[i] for i in order]


def test_body_without_eod_is_the_document(prefixes: list[Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    corpus = Corpus([write(tmp_path / "bare", ["no end"], tokenizer, eod=False)])
    assert corpus.body(0).tolist() == corpus.tokens(0).tolist() == tokenizer.encode("no end")
    assert corpus.text(0) == "no end"


def test_pickled_corpus_is_opened_anew(prefixes: list[Path]) -> None:
    corpus = Corpus(prefixes)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 2000
    copy = pickle.loads(pickled)
    assert [copy.text(i) for i in range(6)] == [corpus.text(i) for i in range(6)]


def test_views_cannot_be_written_to(prefixes: list[Path]) -> None:
    with pytest.raises(ValueError, match="read-only"):
        Corpus(prefixes).tokens(0)[0] = 1


@pytest.mark.parametrize("document", [-1, 6])
def test_unknown_document_is_named(prefixes: list[Path], document: int) -> None:
    with pytest.raises(InputError, match=f"document {document}: the corpus has ids 0 to 5"):
        Corpus(prefixes).tokens(document)


def test_fingerprints_tell_content_not_path(prefixes: list[Path], tmp_path: Path) -> None:
    before = Corpus(prefixes).fingerprints
    assert [entry["documents"] for entry in before] == [3, 1, 2]
    assert [entry["tokens"] for entry in before] == [
        int(Corpus([prefix]).lengths.sum()) for prefix in prefixes
    ]
    assert before[1]["idx_sha256"] == hashlib.sha256(idx_path(prefixes[1]).read_bytes()).hexdigest()
    (tmp_path / "moved").mkdir()
    for path in Corpus(prefixes).files():
        os.rename(path, tmp_path / "moved" / path.name)
    after = Corpus([tmp_path / "moved" / prefix.name for prefix in prefixes]).fingerprints
    assert [entry | {"prefix": ""} for entry in after] == [
        entry | {"prefix": ""} for entry in before
    ]


def test_missing_tokenizer_is_named(prefixes: list[Path], tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "tokenizer")
    corpus = Corpus(prefixes)  # opens without one
    with pytest.raises(InputError, match=r"tokenizer/tokenizer\.json: no such file"):
        corpus.text(0)


def test_token_beyond_the_vocabulary_is_named(tmp_path: Path, tokenizer_directory: Path) -> None:
    tokenizer = Tokenizer(tokenizer_directory)
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        writer.append([tokenizer.vocab_size - 1, 0])
        writer.append([tokenizer.vocab_size, 0])
    corpus = Corpus([tmp_path / "c"], tokenizer=tokenizer_directory)
    corpus.text(0)
    with pytest.raises(InputError, match=f"document 1 has token {tokenizer.vocab_size}.*give"):
        corpus.text(1)


def test_tokenizer_of_another_corpus_is_refused(tmp_path: Path, tokenizer_directory: Path) -> None:
    """Of the same size, so that only the checksum in the manifest tells them apart."""
    with Stage.open(tmp_path / "box", "preprocess", options={}, inputs=[]) as stage:
        shutil.copytree(tokenizer_directory, stage.workspace / "tokenizer")
        write(stage.workspace / "c", ["text"], Tokenizer(tokenizer_directory))
        stage.finish(counts={})
    size = Tokenizer(tokenizer_directory).vocab_size
    other = train(["an entirely different text " * 9, "whatever it may say"], size, tmp_path / "o")
    assert Corpus([tmp_path / "box/c"]).text(0) == "text"
    assert Corpus([tmp_path / "box/c"], tokenizer=tokenizer_directory).text(0) == "text"
    with pytest.raises(InputError, match=r"is not the tokenizer that .*box/c was made with"):
        Corpus([tmp_path / "box/c"], tokenizer=other.directory).text(0)
    # A copy changed after the fact is another tokenizer too.
    path = tmp_path / "box/tokenizer/tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text())))
    with pytest.raises(InputError, match="is not the tokenizer"):
        Corpus([tmp_path / "box/c"]).text(0)


def test_no_prefix_is_refused() -> None:
    with pytest.raises(InputError, match="no corpus prefix"):
        Corpus([])
