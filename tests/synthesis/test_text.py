import random
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp.corpus.shingles import ngrams, shingles, word_hashes
from megatron_sbp.synthesis.text import containment, is_repetitive, same_words
from tests.synthesis.planted import sentence

TEXTS = st.lists(st.sampled_from("a b cc Dd e, f. \n \n\n".split(" ")), max_size=60).map(" ".join)


@given(TEXTS, st.integers(1, 6))
def test_ngrams_are_equal_where_their_words_are(text: str, size: int) -> None:
    words = re.findall(r"\w+", text.lower())
    expected = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    found = ngrams(word_hashes(text), size).tolist()
    assert len(found) == len(expected)
    assert len(set(found)) == len(set(expected)) == len(set(zip(found, expected, strict=True)))


@given(TEXTS, TEXTS)
def test_containment_is_the_share_of_common_shingles(text: str, other: str) -> None:
    def brute(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        size = min(5, len(words))
        return {tuple(words[at : at + size]) for at in range(len(words) - size + 1)} - {()}

    own, others = brute(text), brute(other)
    expected = len(own & others) / len(own) if own else 0.0
    assert containment(text, other) == pytest.approx(expected)
    assert len(shingles(text)) == len(own)


def test_same_words_ignores_space_case_and_punctuation() -> None:
    assert same_words("One, two;\n three!", "one two THREE")
    assert not same_words("one two three", "one two four")


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


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=300)
def test_repetition_follows_the_rules(seed: int) -> None:
    """On texts around the thresholds: some lines and runs of words said again."""
    source = random.Random(seed)
    lines = [sentence(source, source.randint(1, 12)) for _ in range(source.randint(1, 15))]
    for _ in range(source.randint(0, 5)):
        lines.insert(source.randrange(len(lines)), source.choice(lines))
    text = source.choice(["\n", "\n\n", " ", "\n \n"]).join(lines)
    assert is_repetitive(text) == breaks_a_rule(text)


def test_the_rules_are_met_by_both_kinds_of_text() -> None:
    source = random.Random(3)
    assert not is_repetitive(sentence(source, 200))
    assert is_repetitive("to be or not to be " * 10)
    assert not is_repetitive("")
    assert np.mean([breaks_a_rule(sentence(source)) for _ in range(50)]) == 0
