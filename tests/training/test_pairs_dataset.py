"""Rows of p(d2|d1), against pairs written out one by one."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from tests.conftest import write_pairs
from tests.training.paired import (
    PAD,
    Expected,
    body,
    build,
    contents,
    epoch,
    rows_of,
    segments_of,
)

# Of about 100 pairs of documents of 10 to 150 tokens some are cut in 96 positions, most in 40.
OPTIONS: list[dict[str, Any]] = [
    {},
    {"sequence_length": 40},
    {"sequence_length": 512},
    {"sequence_length": 48, "d1_share": 0.0, "truncate_d1": "head"},
    {"sequence_length": 48, "d1_share": 0.9, "min_d2": 12},
    {"sequence_length": 48, "d1_share": 1.0},
    {"overflow": "skip"},
    {"multiple": 4},
    {"sequence_length": 64, "multiple": 8, "truncate_d1": "head"},
    {"before": (), "between": (7, 8, 9), "after": ()},
    {"before": (3, 4), "between": (), "after": (5, 6, 0), "sequence_length": 60},
]


def of_training(corpus: Corpus, store: Path) -> list[tuple[int, int]]:
    return [pair for pair in rows_of(store) if max(pair) < corpus.counts[0]]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_an_epoch_holds_every_pair_once(
    words_corpus: Corpus, words_pairs: Path, options: dict[str, Any], packing: bool
) -> None:
    options = {**options, "packing": packing} | ({} if packing else {"multiple": 1})
    train, _, _ = build(words_corpus, words_pairs, **options)
    expected = Expected(words_corpus, of_training(words_corpus, words_pairs), **options)
    samples = epoch(train)
    length = len(samples[0]["tokens"])
    if packing:
        assert contents(samples) == sorted(expected.segments)
    else:
        padded = [
            tuple((*column, *[filling] * (length - len(column))) for column, filling in columns)
            for columns in (zip(segment, (PAD, 0, 0), strict=True) for segment in expected.segments)
        ]
        assert contents(samples) == sorted(padded)
    expected.counts["rows"] = len(samples)
    assert Counter(train.counts()) == expected.counts
    assert all(int(sample["control"]) == 0 for sample in samples)


@pytest.mark.parametrize("direction", ["backward", "both", "random"])
def test_direction(words_corpus: Corpus, words_pairs: Path, tmp_path: Path, direction: str) -> None:
    # Each pair is stored one way only, so that the other way is not another pair's.
    forward = [pair for pair in of_training(words_corpus, words_pairs) if pair[0] < pair[1]]
    inside = range(words_corpus.counts[0], len(words_corpus))
    write_pairs(
        tmp_path / "pairs", words_corpus, [(*p, 0.5) for p in [*forward, (inside[0], inside[1])]]
    )
    ways = [
        Expected(words_corpus, pairs).segments
        for pairs in (forward, [(second, first) for first, second in forward])
    ]
    train, _, _ = build(words_corpus, tmp_path / "pairs", direction=direction)
    found = contents(epoch(train))
    if direction == "random":
        taken = [segment in found for segment in ways[0]]
        assert 0.4 < np.mean(taken) < 0.6
        both = zip(taken, *ways, strict=True)
        expected = [one if way else other for way, one, other in both]
    else:
        expected = ways[1] if direction == "backward" else ways[0] + ways[1]
    assert found == sorted(expected)


@pytest.mark.parametrize("multiple", [1, 4])
def test_boundaries_cover_the_row(words_corpus: Corpus, words_pairs: Path, multiple: int) -> None:
    length = 512
    train, _, _ = build(words_corpus, words_pairs, sequence_length=length, multiple=multiple)
    several = 0
    for sample in epoch(train):
        bounds = sample["cu_seqlens"].tolist()
        assert len(bounds) == length + 1 and bounds[0] == 0 and bounds[-1] == length
        sizes = np.diff(bounds)
        assert (sizes >= 0).all() and (sizes % multiple == 0).all()
        assert sorted(sizes > 0, reverse=True) == (sizes > 0).tolist()
        assert int(sample["max_seqlen"]) == sizes.max()
        assert sample["position_ids"].tolist() == [at for size in sizes for at in range(size)]
        several += len(segments_of(sample)) > 1
    assert several > 5


def test_types_are_those_of_the_docs(words_corpus: Corpus, words_pairs: Path) -> None:
    for packing in (True, False):
        (sample, *_) = epoch(build(words_corpus, words_pairs, packing=packing)[0])
        types = {name: str(value.dtype).split(".")[1] for name, value in sample.items()}
        both = dict.fromkeys(("tokens", "labels", "position_ids", "control"), "int64")
        both["loss_mask"] = "float32"
        assert types == both | ({"cu_seqlens": "int32", "max_seqlen": "int64"} if packing else {})
        assert sample["control"].shape == ()
    assert sample["position_ids"].tolist() == list(range(96))


def test_no_pair_crosses_the_splits(words_corpus: Corpus, words_pairs: Path) -> None:
    train, valid, test = build(words_corpus, words_pairs)
    rows = rows_of(words_pairs)
    boundary = words_corpus.counts[0]
    inside = sum(max(pair) < boundary for pair in rows)
    outside = sum(min(pair) >= boundary for pair in rows)
    assert inside + outside < len(rows), "the fixture has no pair that crosses: test nothing"
    assert (train.counts()["pairs"], valid.counts()["pairs"], test) == (inside, outside, None)


def test_megatrons_split_divides_documents(words_corpus: Corpus, words_pairs: Path) -> None:
    prefix = str(words_corpus.prefixes[0])
    train, valid, _ = build(words_corpus, words_pairs, blend=([prefix], None), split="70,30,0")
    count = int(words_corpus.counts[0])
    boundary = round(0.7 * count)
    rows = [pair for pair in rows_of(words_pairs) if max(pair) < count]
    assert train.counts()["pairs"] == sum(max(pair) < boundary for pair in rows)
    assert valid.counts()["pairs"] == sum(min(pair) >= boundary for pair in rows)


def test_every_row_once_an_epoch_in_a_new_order(words_corpus: Corpus, words_pairs: Path) -> None:
    train, _, _ = build(words_corpus, words_pairs)
    rows = len(train)
    again, _, _ = build(words_corpus, words_pairs, sizes=(3 * rows, None, None))
    key = lambda sample: sample["tokens"].numpy().tobytes()  # noqa: E731
    epochs = [[key(again[number * rows + index]) for index in range(rows)] for number in range(3)]
    assert len(again) == 3 * rows
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [key(sample) for sample in epoch(train)]
    other, _, _ = build(words_corpus, words_pairs, random_seed=6)
    assert epochs[0] != [key(sample) for sample in epoch(other)]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("truncate", ["head", "tail"])
def test_controls_change_nothing_but_d1(
    words_corpus: Corpus, words_pairs: Path, packing: bool, truncate: str
) -> None:
    options: dict[str, Any] = {"packing": packing, "truncate_d1": truncate}
    _, valid, _ = build(words_corpus, words_pairs, **options)
    documents = [body(words_corpus, document) for document in range(len(words_corpus))]
    shorter = 0
    assert len(valid) == 2 * valid.counts()["rows"]
    for index in range(0, len(valid), 2):
        own, control = valid[index], valid[index + 1]
        assert (int(own["control"]), int(control["control"])) == (0, 1)
        for name in ("position_ids", *(["cu_seqlens", "max_seqlen"] if packing else [])):
            assert own[name].tolist() == control[name].tolist()
        for mine, other in zip(segments_of(own), segments_of(control), strict=True):
            supervised = [
                [label for label, one in zip(labels, mask, strict=True) if one]
                for _, labels, mask in (mine, other)
            ]
            assert supervised[0] == supervised[1]
            # bos, d1 and sep stand before the first supervised label.
            d1, another = (list(tokens[1 : mask.index(1)]) for tokens, _, mask in (mine, other))
            assert len(another) <= len(d1) and another != d1
            shorter += len(another) < len(d1)
            ends = [
                (text[: len(another)] if truncate == "tail" else text[len(text) - len(another) :])
                for text in documents
                if len(another) == min(len(text), len(d1))
            ]
            assert another in ends
    assert shorter > 0
