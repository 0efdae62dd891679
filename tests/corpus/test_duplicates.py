"""Near-duplicate removal against sets of words, compared pair by pair."""

import random
import re
import tracemalloc

import numpy as np

from megatron_sbp.corpus.duplicates import (
    BYTES_PER_DOCUMENT,
    THRESHOLD,
    Duplicates,
    NearDuplicates,
    SignatureIndex,
    signatures,
)
from megatron_sbp.corpus.shingles import SHINGLE
from megatron_sbp.corpus.words import Words

SEED = 20260917


def word_sets(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    width = min(SHINGLE, len(words)) or 1
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)}


def jaccard(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b)


def sign(*texts: str) -> np.ndarray:
    return signatures(Words.of(texts))


def planted(rng: random.Random) -> list[str]:
    """Random documents, each followed at some distance by a copy with a few words replaced."""
    vocabulary = [f"w{i}" for i in range(5000)]
    documents = []
    for _ in range(250):
        words = rng.choices(vocabulary, k=rng.randint(30, 200))
        documents.append(" ".join(words))
        for position in rng.sample(range(len(words)), rng.choice([0, 1, 2, 8])):
            words[position] = rng.choice(vocabulary)
        documents.append(rng.choice(["  ", "\n"]).join(words).title())
    rng.shuffle(documents)
    return documents


def in_batches(texts: list[str], size: int) -> list[str | None]:
    duplicates = Duplicates("near")
    return [
        reason
        for at in range(0, len(texts), size)
        for reason in duplicates.seen(texts[at : at + size])
    ]


def test_near_duplicates_are_those_of_brute_force() -> None:
    """Certain above Jaccard 0.9 and below 0.7; between them an estimate decides."""
    documents = planted(random.Random(SEED))
    kept: list[set[tuple[str, ...]]] = []
    above = below = 0
    for number, (text, verdict) in enumerate(
        zip(documents, in_batches(documents, 64), strict=True)
    ):
        shingled = word_sets(text)
        nearest = max((jaccard(shingled, other) for other in kept), default=0.0)
        if nearest >= 0.9:
            above += 1
            assert verdict is not None, (SEED, number, nearest)
        if nearest < 0.7:
            below += 1
            assert verdict is None, (SEED, number, nearest)
        if verdict is None:
            kept.append(shingled)
    assert above > 50 < below


def test_signatures_estimate_the_jaccard_index() -> None:
    rng = random.Random(SEED)
    errors = []
    for _ in range(300):
        words = [f"w{rng.randrange(10**6)}" for _ in range(150)]
        other = words.copy()
        for position in rng.sample(range(150), rng.choice([1, 2, 4, 8])):
            other[position] = "x"
        one, two = sign(" ".join(words), " ".join(other))
        true = jaccard(word_sets(" ".join(words)), word_sets(" ".join(other)))
        errors.append(((one == two).mean() - true) / np.sqrt(true * (1 - true) / 128))
    # Binomial: mean 0, deviation 1, each to within four of its standard errors.
    assert abs(np.mean(errors)) < 4 / 300**0.5, SEED
    assert abs(np.std(errors) - 1) < 4 / 600**0.5, SEED


def plain(signed: np.ndarray) -> list[bool]:
    """Every document beside all kept ones: equal in a band of 8 values, and in 80% of all."""
    kept: list[np.ndarray] = []
    found = []
    for one in signed:
        equal = [one == other for other in kept]
        near = any(e.reshape(16, 8).all(1).any() and e.mean() >= THRESHOLD for e in equal)
        found.append(near)
        if not near:
            kept.append(one)
    return found


def test_seen_is_the_plain_loop_whatever_the_batches() -> None:
    """On chains of ever more changed signatures, where a removed one would take others along."""
    rng = np.random.default_rng(SEED)
    rows = []
    for _ in range(12):
        row = rng.integers(1, 1 << 16, 128, dtype=np.uint16)
        for _ in range(25):
            row = row.copy()
            row[rng.choice(128, 6, replace=False)] = rng.integers(1, 1 << 16, 6)
            rows.append(row)
    signed = np.stack(rows)[rng.permutation(len(rows))]
    expected = plain(signed)
    assert 0 < sum(expected) < len(expected)
    for size in (1, 7, 50, len(signed)):
        known = NearDuplicates()
        found = [known.seen(signed[at : at + size]) for at in range(0, len(signed), size)]
        assert np.concatenate(found).tolist() == expected, (SEED, size)
        assert len(known.index) == expected.count(False)


def test_one_that_was_left_out_leaves_out_no_other() -> None:
    """c is like b alone, and b is left out for the sake of a."""
    words = [f"w{number}" for number in range(200)]
    a, b, c = (" ".join(words[start : start + 160]) for start in (0, 14, 28))
    assert jaccard(word_sets(a), word_sets(b)) > 0.82 < jaccard(word_sets(b), word_sets(c))
    assert jaccard(word_sets(a), word_sets(c)) < 0.72
    assert NearDuplicates().seen(sign(a, b, c)).tolist() == [False, True, False]
    assert NearDuplicates().seen(sign(b, a, c)).tolist() == [False, True, True]


def test_what_is_settled_is_not_looked_at_again() -> None:
    index = SignatureIndex()
    one, two = "a b c d e f g", "h i j k l m n"
    index.add(sign(one, two))
    settled = np.array([True, False])
    pairs = [
        (int(given), int(row))
        for some in index.matches(sign(two, one, two), settled_rows=settled)
        for given, row in zip(*some, strict=True)
    ]
    assert set(pairs) == {(0, 1), (2, 1)}
    assert index.has(sign("", one, "other words here")).tolist() == [False, True, False]


def test_memory_is_what_is_said_whatever_the_duplicates() -> None:
    """Of arrays, counted by tracemalloc: documents all different, all alike, in large groups."""
    rng = np.random.default_rng(SEED)
    count = 10_000
    different = rng.integers(1, 1 << 16, (count, 128), dtype=np.uint16)
    # Alike in one band only: every pair is a candidate, no pair is near.
    banded = different.copy()
    banded[:, :8] = 7
    for name, signed in {
        "different": different,
        "alike": np.repeat(different[:1], count, axis=0),
        "in groups": np.repeat(different[: count // 100], 100, axis=0),
        "candidates": banded[:1000],
    }.items():
        tracemalloc.start()
        known = NearDuplicates()
        for at in range(0, len(signed), 1000):
            known.seen(signed[at : at + 1000])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        # Besides the index, some megabytes for what is compared at a time.
        assert peak < BYTES_PER_DOCUMENT * len(known.index) + (64 << 20), (name, peak)


def test_exact_duplicates_differ_in_white_space_only() -> None:
    texts = ["One two\n three", " One  two three\n", "one two three", "One two three."]
    expected = [None, "exact duplicate", None, None]
    assert Duplicates("exact").seen(texts) == expected
    duplicates = Duplicates("exact")
    assert [duplicates.seen([text])[0] for text in texts] == expected


def test_near_finds_exact_ones_of_any_length() -> None:
    texts = ["a", "a b c", "...", "???", "one two three four five six"]
    again = [text + "\n" for text in texts]
    assert in_batches(texts + again, 3) == [None] * 5 + ["exact duplicate"] * 5
    assert in_batches(texts + again, 10) == [None] * 5 + ["exact duplicate"] * 5


def test_a_copy_of_a_near_duplicate_is_one() -> None:
    words = [f"w{number}" for number in range(100)]
    one, two = " ".join(words), " ".join([*words[:-1], "other"])
    for size in (1, 2, 4):
        found = in_batches([one, two, two, one], size)
        assert found == [None, "near duplicate", "near duplicate", "exact duplicate"]
