"""Words, n-grams and shingles of batches against ``re`` and sets, and texts of tokens by table."""

import random
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp.corpus import tokenizer, words
from megatron_sbp.corpus.shingles import Grams, common, ngrams, shingles
from megatron_sbp.corpus.token_bytes import TokenBytes
from megatron_sbp.corpus.words import Characters, Words, batches

SEED = 20261121
# Every kind of character that a word may meet: cases, digits, marks, symbols, spaces, rare planes.
TEXTS = st.lists(
    st.text(
        st.one_of(
            st.sampled_from(
                "aAbB_9 \n.,-ß\u00a0\u2028\u3000éÉΣσςİıǅ日本語\u0301²½\U0001d7d8\U00010400"
            ),
            st.characters(),
        ),
        max_size=40,
    ),
    max_size=8,
)


def read(text: str) -> list[str]:
    """Words by the letter of the documentation."""
    return ["".join(c.lower()[0] for c in word) for word in re.findall(r"\w+", text)]


def parts(words: Words) -> list[list[int]]:
    return [words.hashes[b:e].tolist() for b, e in pairwise(words.starts.tolist())]


@given(TEXTS)
@settings(deadline=None)
def test_words_are_those_of_the_definition(texts: list[str]) -> None:
    found = Characters.of(texts).words()
    expected = [read(text) for text in texts]
    assert found.counts.tolist() == list(map(len, expected))
    assert found.characters.tolist() == [len(word) for text in expected for word in text]
    names = [word for text in expected for word in text]
    hashes = found.hashes.tolist()
    assert len(set(names)) == len(set(hashes)) == len(set(zip(names, hashes, strict=True)))


@given(TEXTS)
@settings(deadline=None)
def test_they_are_what_re_finds_but_for_two_letters(texts: list[str]) -> None:
    for text in texts:
        if not set("Σİ") & set(text):
            assert read(text) == re.findall(r"\w+", text.lower())


def test_a_word_has_one_hash_in_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(SEED)
    texts = [
        " ".join(source.choice(["a", "bc", "Bc", "naïve", "x" * 60]) for _ in range(n % 13))
        for n in range(60)
    ]
    whole = parts(Characters.of(texts).words())
    monkeypatch.setattr(words, "_BATCH_CHARACTERS", 100)
    small = list(batches(iter(texts)))
    assert len(small) > 10 and max(len(batch.codes) for batch in small) > 100
    assert parts(Words.concatenate([batch.words() for batch in small])) == whole
    assert parts(Words.of(texts)) == whole
    chosen = [7, 3, 3, 0]
    assert parts(Words.of(texts).take(np.array(chosen))) == [whole[n] for n in chosen]


def test_case_counts_if_asked() -> None:
    text = Characters.of(["bc Bc"])
    (low, also_low), (small, large) = text.words().hashes, text.words(lower=False).hashes
    assert low == also_low == small != large


def test_no_documents_no_words() -> None:
    for texts in ([], [""], ["", "?!", ""]):
        found = Words.of(texts)
        assert len(found) == len(texts) and not len(found.hashes)
        assert len(shingles(found)) == len(ngrams(found, 2)) == len(texts)


# N-grams and shingles

SIMPLE = st.lists(
    st.lists(st.sampled_from("a b cc Dd e, f. \n".split(" ")), max_size=30).map(" ".join),
    min_size=1,
    max_size=6,
)


def grams_of(text: str, size: int) -> list[tuple[str, ...]]:
    found = re.findall(r"\w+", text.lower())
    return [tuple(found[at : at + size]) for at in range(len(found) - size + 1)]


def check(found: Grams, expected: Sequence[Sequence[tuple[str, ...]]]) -> None:
    """Equal n-grams have equal hashes, others have not, and they are in order."""
    assert found.counts.tolist() == list(map(len, expected))
    names = [gram for grams in expected for gram in grams]
    hashes = found.hashes.tolist()
    assert len(set(names)) == len(set(hashes)) == len(set(zip(names, hashes, strict=True)))


@given(SIMPLE, st.integers(1, 6))
@settings(deadline=None)
def test_ngrams_are_equal_where_their_words_are(texts: list[str], size: int) -> None:
    found = Words.of(texts)
    check(ngrams(found, size), [grams_of(text, size) for text in texts])
    shorter = [min(size, len(grams_of(text, 1))) or 1 for text in texts]
    every = [grams_of(text, width) for text, width in zip(texts, shorter, strict=True)]
    check(shingles(found, size), every)
    distinct = shingles(found, size).distinct()
    assert distinct.counts.tolist() == [len(set(grams)) for grams in every]
    assert all(np.array_equal(part, np.unique(part)) for part in distinct.split())


@given(SIMPLE, st.integers(1, 3))
@settings(deadline=None)
def test_common_counts_what_sets_have_in_common(texts: list[str], size: int) -> None:
    others = texts[::-1]
    left, right = (ngrams(Words.of(side), size).distinct() for side in (texts, others))
    expected = [
        len(set(grams_of(one, size)) & set(grams_of(other, size)))
        for one, other in zip(texts, others, strict=True)
    ]
    assert common(left, right).tolist() == expected


# Texts of tokens by table


def test_a_table_gives_the_texts_of_the_tokenizer(tmp_path: Path) -> None:
    """Whatever the ids: most random ones are no UTF-8."""
    from tokenizers import AddedToken, Tokenizer

    texts = ["naïve café, 日本語 text \U0001f600\n\n"] * 20
    tokenizer.train(texts, 400, tmp_path)
    backend = Tokenizer.from_file(str(tmp_path / tokenizer.FILENAME))
    backend.add_tokens(["né", "two words", "\n\n", "日本語"])
    backend.add_special_tokens([AddedToken("<| x |>", special=True)])
    table = TokenBytes.of(backend)
    assert table is not None
    rng = np.random.default_rng(SEED)
    size = backend.get_vocab_size()
    documents = [rng.integers(0, size, rng.integers(0, 40)) for _ in range(2000)]
    expected = backend.decode_batch([ids.tolist() for ids in documents], skip_special_tokens=False)
    assert list(table.texts(documents)) == expected
    assert list(table.texts([])) == []


def test_there_is_no_table_of_another_kind_of_tokenizer() -> None:
    from tokenizers import Tokenizer, decoders, models

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    assert TokenBytes.of(backend) is None
