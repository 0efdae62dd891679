"""Which documents are taken, and random decisions that depend on nothing but their number."""

import random

import numpy as np
import pytest

from megatron_sbp.corpus.readers import Document, Fault
from megatron_sbp.corpus.selection import Selection, draw, sample
from megatron_sbp.errors import InputError

BROKEN = Fault("c.jsonl:2", "broken JSON", "mend it")
RECORDS: list[Document | Fault] = [
    Document("1", "aaaa"),
    BROKEN,
    Document("3", "bb"),
    Document("4", "cccccccc"),
    Document("5", "aaaa"),
    Document("6", "dddd"),
]


def test_reasons_are_counted() -> None:
    selection = Selection(
        RECORDS, min_characters=3, max_characters=7, deduplicate="exact", on_error="skip"
    )
    assert [document.place for document in selection] == ["1", "6"]
    assert selection.taken == 2
    assert selection.skipped == {
        "broken JSON": 1,
        "too short": 1,
        "too long": 1,
        "exact duplicate": 1,
    }


def test_lengths_that_are_just_allowed_are_taken() -> None:
    selection = Selection(RECORDS, min_characters=2, max_characters=8, on_error="skip")
    assert [document.place for document in selection] == ["1", "3", "4", "5", "6"]


def test_stops_at_the_fault_or_before_it() -> None:
    selection = Selection(RECORDS)
    with pytest.raises(InputError, match=r"^c\.jsonl:2: broken JSON"):
        list(selection)
    assert [d.place for d in Selection(RECORDS, max_documents=1)] == ["1"]


def test_draws_are_uniform_and_independent() -> None:
    draws = {
        name: np.array([draw(purpose, seed, i) for i in range(20_000)])
        for name, purpose, seed in (("a", "heldout", 0), ("b", "heldout", 1), ("c", "sample", 0))
    }
    for values in draws.values():
        assert ((values >= 0) & (values < 1)).all()
        # Twenty bins of 1,000 expected: six standard deviations are 185.
        assert np.abs(np.histogram(values, 20, (0, 1))[0] - 1000).max() < 185
    assert np.abs(np.corrcoef(list(draws.values())) - np.eye(3)).max() < 0.04
    assert draw("heldout", 0, 7) == draws["a"][7]


def test_sample_holds_the_smallest_draws() -> None:
    rng = random.Random(20260918)
    texts = [str(i) + "x" * rng.randint(0, 50) for i in range(500)]
    documents = [Document(str(i), text) for i, text in enumerate(texts)]
    order = sorted(range(500), key=lambda i: draw("sample", 3, i))
    for budget in (100, 5000, 10**6):
        kept = sample(documents, budget, seed=3)
        assert sum(map(len, kept)) <= budget
        assert set(kept) == {texts[i] for i in order[: len(kept)]}
        if len(kept) < 500:  # and the next would not have gone in
            assert sum(map(len, kept)) + len(texts[order[len(kept)]]) > budget
    assert len(sample(documents, 1, seed=3)) == 1
    assert sample([], 1, seed=3) == []
