import random
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus import tokenizer
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.mining.filters import Overlap, PairFilters, identical
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import Pairs

SEED = 5


def texts() -> list[str]:
    """Documents, copies with a few words changed, parts of documents, equal ones, odd ones."""
    source = random.Random(SEED)
    words = [f"w{number}" for number in range(30)] + ["É", "naïve", "Straße", "x_1"]
    made = [" ".join(source.choices(words, k=source.randint(0, 60))) for _ in range(12)]
    for text in made[:8]:
        parts = text.split()
        made.append(" ".join(source.choice(words) if source.random() < 0.1 else w for w in parts))
        made.append(" ".join(parts[: len(parts) // 2]).upper())
    return [*made, made[0], made[3], "", "?! ...", "one two", "One, two!"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    directory = tmp_path_factory.mktemp("filters")
    made = tokenizer.train(texts(), 400, directory / "tokenizer")
    with IndexedWriter(directory / "c", np.uint16) as writer:
        for text in texts():
            writer.append([*made.encode(text), made.eod])
        writer.append(made.encode(texts()[0]))  # the first one again, without its end
    return Corpus([directory / "c"])


def all_pairs(documents: int) -> Pairs:
    anchor, neighbor = np.nonzero(~np.eye(documents, dtype=bool))
    return Pairs(anchor, neighbor, np.ones(len(anchor), np.float32))


def shingles(text: str, words: int) -> set[tuple[str, ...]]:
    """Plain Python, without hashes."""
    found = re.findall(r"\w+", text.lower())
    size = min(words, len(found))
    return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)} if size else set()


@pytest.mark.parametrize("batch", [4096, 7])
@pytest.mark.parametrize("words", [1, 3, 5])
def test_overlap_is_that_of_word_sets(
    corpus: Corpus, words: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_sbp.corpus.words._BATCH_DOCUMENTS", batch)
    pairs = all_pairs(len(corpus))
    jaccard, containment = Overlap(corpus, words).compare(pairs)
    sets = [shingles(text, words) for text in corpus.texts(range(len(corpus)))]
    for row in range(len(pairs)):
        left, right = sets[pairs.anchor[row]], sets[pairs.neighbor[row]]
        common, smaller = len(left & right), min(len(left), len(right))
        expected = common / len(left | right) if left | right else 0.0
        assert jaccard[row] == pytest.approx(expected), f"seed {SEED}"
        assert containment[row] == pytest.approx(common / smaller if smaller else 0.0)


def test_identical_looks_at_tokens_without_the_last(corpus: Corpus) -> None:
    pairs = all_pairs(len(corpus))
    documents = [*texts(), texts()[0]]
    expected = [
        documents[anchor] == documents[neighbor]
        for anchor, neighbor in zip(pairs.anchor, pairs.neighbor, strict=True)
    ]
    eod = corpus.tokenizer.eod
    lengths = np.stack([corpus.body_lengths(ids, eod) for ids in (pairs.anchor, pairs.neighbor)])
    assert any(expected) and identical(corpus, pairs, lengths).tolist() == expected


def test_documents_outside_the_limits_of_tokens_are_in_no_pair(corpus: Corpus) -> None:
    pairs = all_pairs(len(corpus))
    tokens = np.array([len(corpus.body(document)) for document in range(len(corpus))])
    low, high = (int(limit) for limit in np.quantile(tokens, (0.3, 0.7)))
    options = MineOptions(
        embeddings="",
        output="",
        corpus=["c"],
        neighbors=10**6,
        min_tokens=low,
        max_tokens=high,
        max_jaccard=2,
        max_containment=2,
    )
    kept, removed = PairFilters(options, corpus).apply(pairs)
    inside = (tokens >= low) & (tokens <= high)
    both = inside[pairs.anchor] & inside[pairs.neighbor]
    assert removed["outside_token_limits"] == np.sum(~both) > 0
    assert len(kept) + removed["identical"] == both.sum()
    assert inside[kept.anchor].all() and inside[kept.neighbor].all()


def test_every_candidate_is_kept_or_counted_once(corpus: Corpus) -> None:
    options = MineOptions(
        embeddings="", output="", corpus=["c"], neighbors=3, max_jaccard=0.5, shingle_words=3
    )
    pairs = all_pairs(len(corpus))
    kept, removed = PairFilters(options, corpus).apply(pairs)
    assert len(kept) + sum(removed.values()) == len(pairs)
    assert all(removed[name] for name in ("identical", "near_copies", "beyond_neighbors"))
    assert np.bincount(kept.anchor).max() == 3
    jaccard, containment = Overlap(corpus, 3).compare(kept)
    assert jaccard.max() < 0.5 and containment.max() < options.max_containment


def test_without_a_corpus_only_the_cap_is_left(corpus: Corpus) -> None:
    options = MineOptions(embeddings="", output="", neighbors=4)
    kept, removed = PairFilters(options, None).apply(all_pairs(6))
    assert len(kept) == 24 and removed == {"beyond_neighbors": 6}


def test_empty_input(corpus: Corpus, tmp_path: Path) -> None:
    options = MineOptions(embeddings="", output="", corpus=["c"])
    kept, removed = PairFilters(options, corpus).apply(Pairs.none())
    assert len(kept) == 0 and not sum(removed.values())
