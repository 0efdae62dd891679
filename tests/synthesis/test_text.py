"""Overlap and repetition of batches against plain readings of their definitions."""

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.words import Characters, Words, read
from megatron_sbp.synthesis.text import containment, is_repetitive, same_words
from tests.synthesis.planted import sentence

TEXT = st.lists(st.sampled_from("a b cc Dd e, f. \n \n\n".split(" ")), max_size=60).map(" ".join)
PAIRS = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8)


@given(PAIRS)
@settings(deadline=None)
def test_containment_is_the_share_of_common_shingles(pairs: list[tuple[str, str]]) -> None:
    def brute(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        size = min(5, len(words))
        return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} - {()}

    sets = [(brute(text), brute(other)) for text, other in pairs]
    expected = [len(own & others) / len(own) if own else 0.0 for own, others in sets]
    texts, others = zip(*pairs, strict=True)
    assert containment(Words.of(texts), Words.of(others)) == pytest.approx(expected)


@given(PAIRS)
@settings(deadline=None)
def test_same_words_are_equal_lists(pairs: list[tuple[str, str]]) -> None:
    pairs = [*pairs, *((text, text.upper()) for text, _ in pairs)]
    found = same_words(*(Words.of(side) for side in zip(*pairs, strict=True)))
    lists = [[re.findall(r"\w+", text.lower()) for text in pair] for pair in pairs]
    assert found.tolist() == [one == other for one, other in lists]


def test_same_words_ignores_space_case_and_punctuation() -> None:
    texts = ["One, two;\n three!", "one two three", "one two three"]
    others = ["one two THREE", "one two four", "two one three"]
    assert same_words(Words.of(texts), Words.of(others)).tolist() == [True, False, False]


def breaks_a_rule(text: str) -> bool:
    """MassiveText's rules, written down plainly (Rae et al., 2021, table A1)."""
    for separator in ("\n", "\n\n"):
        parts = [part.strip() for part in text.split(separator) if part.strip()]
        again = [part for at, part in enumerate(parts) if part in parts[:at]]
        if len(again) > 0.3 * len(parts) or sum(map(len, again)) > 0.2 * sum(map(len, parts)):
            return True
    words = re.findall(r"\w+", text)
    whole = sum(map(len, words))
    for size, limit in {2: 0.20, 3: 0.18, 4: 0.16}.items():
        counts = Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1))
        times = max(counts.values(), default=0)
        longest = max((sum(map(len, g)) for g in counts if counts[g] == times), default=0)
        if times > 1 and times * longest > limit * whole:
            return True
    limits = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
    for size, limit in limits.items():
        grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
        counts = Counter(grams)
        inside = {
            at + offset
            for at, gram in enumerate(grams)
            if counts[gram] > 1
            for offset in range(size)
        }
        if sum(len(words[at]) for at in inside) > limit * whole:
            return True
    return False


def repetitive(texts: list[str]) -> list[bool]:
    return is_repetitive(Characters.of(texts)).tolist()


def text_around_the_thresholds(source: random.Random) -> str:
    """Some lines and runs of words said again, in either case, with odd spaces around them."""
    lines = [sentence(source, source.randint(1, 12)) for _ in range(source.randint(1, 15))]
    for _ in range(source.randint(0, 5)):
        again = source.choice(lines)
        lines.insert(source.randrange(len(lines)), source.choice(["", " ", "\t"]) + again)
    if source.random() < 0.3:
        lines[0] = lines[0].title()
    separators = ["\n", "\n\n", " ", "\n \n", "\n\n\n", "\u2028", "\r\n"]
    return "".join(line + source.choice(separators[: source.randint(1, 7)]) for line in lines)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_repetition_follows_the_rules(seed: int) -> None:
    source = random.Random(seed)
    texts = [text_around_the_thresholds(source) for _ in range(5)]
    texts.insert(source.randrange(5), "")
    assert repetitive(texts) == [breaks_a_rule(text) for text in texts]


def test_repetition_of_real_text(words_corpus: Corpus) -> None:
    """The tests' own documents, and this file cut at random places, which has lines and blocks."""
    source = random.Random(4)
    whole = Path(__file__).read_text(encoding="utf-8")
    places = [source.randrange(len(whole)) for _ in range(200)]
    texts = [whole[place : place + source.randint(1, 1500)] for place in places]
    expected = [breaks_a_rule(text) for text in texts]
    assert repetitive(texts) == expected
    assert 0 < sum(expected) < len(expected)
    documents = range(len(words_corpus))
    found = np.concatenate([is_repetitive(batch) for batch in read(words_corpus, documents)])
    assert found.tolist() == [breaks_a_rule(text) for text in words_corpus.texts(documents)]


def test_the_rules_are_met_by_both_kinds_of_text() -> None:
    source = random.Random(3)
    good = [sentence(source) for _ in range(50)]
    assert repetitive([sentence(source, 200), "to be or not to be " * 10, ""]) == [0, 1, 0]
    assert not any(map(breaks_a_rule, good)) and not any(repetitive(good))
