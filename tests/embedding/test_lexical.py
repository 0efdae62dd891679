from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus import tokenizer
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.embedding.lexical import LexicalSpec
from megatron_sbp.errors import InputError


def make_corpus(directory: Path, texts: list[str]) -> Corpus:
    made = tokenizer.train(texts, 300, directory / "tokenizer")
    with IndexedWriter(directory / "c", np.uint16) as writer:
        for text in texts:
            writer.append([*made.encode(text), made.eod])
    return Corpus([directory / "c"])


def spec(dimensions: int, fit_documents: int = 1000) -> LexicalSpec:
    return LexicalSpec(dimensions=dimensions, fit_documents=fit_documents, seed=0)


def test_all_dimensions_keep_the_cosines_of_tf_idf(words_corpus: Corpus) -> None:
    """With as many dimensions as the matrix has rank, the projection changes no inner product."""
    texts = list(words_corpus.texts(range(80)))
    words = sorted({word for text in texts for word in text.split()})
    counts = np.array([[text.split().count(word) for word in words] for text in texts])
    idf = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    tfidf = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * idf
    tfidf /= np.linalg.norm(tfidf, axis=1, keepdims=True)

    class Head(Corpus):
        def __len__(self) -> int:
            return 80

    corpus = Head(words_corpus.prefixes)
    vectors = spec(10_000).load(corpus).encode(texts).vectors
    assert vectors.shape == (80, 80)
    assert np.allclose(vectors @ vectors.T, tfidf @ tfidf.T, atol=1e-4)


def test_same_seed_same_vectors_whatever_is_encoded_with_them(words_corpus: Corpus) -> None:
    texts = list(words_corpus.texts(range(len(words_corpus))))
    first = spec(16, 100).load(words_corpus).encode(texts).vectors
    again = spec(16, 100).load(words_corpus)
    parts = [again.encode(texts[:77]).vectors, again.encode(texts[77:]).vectors]
    assert first.shape == (len(texts), 16)
    assert np.array_equal(first, np.concatenate(parts))


@pytest.mark.parametrize("texts", [["one"], ["same same"] * 5, ["a b", "c"], ["x y z"] * 2])
def test_fewer_documents_or_words_than_dimensions(texts: list[str], tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, texts)
    vectors = spec(256).load(corpus).encode(texts).vectors
    assert np.isfinite(vectors).all() and np.linalg.norm(vectors, axis=1).min() > 0


def test_a_text_of_unknown_words_is_zero(words_corpus: Corpus) -> None:
    vectors = spec(16).load(words_corpus).encode(["neverseen", "word1 word2"]).vectors
    assert not vectors[0].any() and vectors[1].any()


def test_a_corpus_without_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no document has a word"):
        spec(4).load(make_corpus(tmp_path, ["?", "!! --"]))
