"""Samples of p(d2|d1), against a plain reading of docs/formats.md."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.utils import Split

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.training.paired_dataset import (
    PairedDocumentDataset,
    PairedDocumentDatasetConfig,
    fit,
)
from tests.conftest import write_pairs

BOS, SEP, EOD, PAD = 0, 1, 0, 2


def build(
    corpus: Corpus, pairs: Path, sizes: tuple[int | None, ...] = (None, None, None), **options: Any
) -> list[PairedDocumentDataset]:
    train, heldout = map(str, corpus.prefixes)
    blend: dict[str, Any] = {"blend_per_split": [([train], None), ([heldout], None), None]}
    settings = {"sequence_length": 96, "random_seed": 5} | (
        options if "blend" in options else blend | options
    )
    config = PairedDocumentDatasetConfig(
        pairs=str(pairs), bos=BOS, separator=(SEP,), eod=EOD, pad=PAD, **settings
    )
    return BlendedMegatronDatasetBuilder(PairedDocumentDataset, sizes, lambda: True, config).build()


def rows_of(pairs: Path) -> list[tuple[int, int]]:
    columns = (np.load(pairs / f"{name}.npy").tolist() for name in ("anchor", "neighbor"))
    return list(zip(*columns, strict=True))


def expected_row(corpus: Corpus, pair: tuple[int, int], length: int) -> dict[str, list[int]]:
    """The sample of a pair, in lists, for documents that fit together."""
    first, second = ([*map(int, corpus.tokens(document))][:-1] for document in pair)
    row = [BOS, *first, SEP, *second, EOD]
    assert len(row) <= length + 1
    mask = [0] * (len(first) + 1) + [1] * (len(second) + 1)
    padding = length + 1 - len(row)
    row += [PAD] * padding
    return {"tokens": row[:-1], "labels": row[1:], "loss_mask": mask + [0] * padding}


def test_row_is_the_layout_of_the_docs(words_corpus: Corpus, words_pairs: Path) -> None:
    train, _, _ = build(words_corpus, words_pairs, sequence_length=512)
    last = words_corpus.counts[0]
    want = [pair for pair in rows_of(words_pairs) if max(pair) < last]
    expected = [expected_row(words_corpus, pair, 512) for pair in want]
    got = [train[index] for index in range(len(train))]
    keys = ("tokens", "labels", "loss_mask")
    as_tuples = [tuple(tuple(sample[key].int().tolist()) for key in keys) for sample in got]
    assert sorted(as_tuples) == sorted(tuple(tuple(row[key]) for key in keys) for row in expected)
    assert all(int(sample["control"]) == 0 for sample in got)


def test_no_pair_crosses_the_splits(words_corpus: Corpus, words_pairs: Path) -> None:
    train, valid, test = build(words_corpus, words_pairs)
    rows = rows_of(words_pairs)
    boundary = words_corpus.counts[0]
    inside = sum(max(pair) < boundary for pair in rows)
    outside = sum(min(pair) >= boundary for pair in rows)
    assert inside + outside < len(rows), "the fixture has no pair that crosses: test nothing"
    assert (train.pairs, valid.pairs, test) == (inside, outside, None)


def test_megatrons_split_divides_documents(words_corpus: Corpus, words_pairs: Path) -> None:
    prefix = str(words_corpus.prefixes[0])
    train, valid, _ = build(words_corpus, words_pairs, blend=([prefix], None), split="70,30,0")
    count = int(words_corpus.counts[0])
    boundary = round(0.7 * count)
    rows = [pair for pair in rows_of(words_pairs) if max(pair) < count]
    assert train.pairs == sum(max(pair) < boundary for pair in rows)
    assert valid.pairs == sum(min(pair) >= boundary for pair in rows)


def test_every_pair_once_an_epoch_in_a_new_order(words_corpus: Corpus, words_pairs: Path) -> None:
    train, _, _ = build(words_corpus, words_pairs)
    again, _, _ = build(words_corpus, words_pairs, sizes=(3 * train.pairs, None, None))
    key = lambda sample: sample["tokens"].numpy().tobytes()  # noqa: E731
    epochs = [
        [key(again[epoch * train.pairs + index]) for index in range(train.pairs)]
        for epoch in range(3)
    ]
    assert len(again) == 3 * train.pairs
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] == [key(train[index]) for index in range(train.pairs)]


def test_documents_that_do_not_fit_are_cut(words_corpus: Corpus, words_pairs: Path) -> None:
    length = 48
    train, _, _ = build(words_corpus, words_pairs, sequence_length=length)
    bodies = [len(words_corpus.body(document)) for document in range(len(words_corpus))]
    last = words_corpus.counts[0]
    inside = [pair for pair in rows_of(words_pairs) if max(pair) < last]
    assert train.cut_pairs() == sum(bodies[a] + bodies[b] > length - 2 for a, b in inside)
    cut = 0
    for index in range(len(train)):
        sample = train[index]
        supervised = sample["labels"][sample["loss_mask"].bool()].tolist()
        assert len(supervised) > 0
        cut += supervised[-1] != EOD
        mask = sample["loss_mask"].tolist()
        start = mask.index(1.0)
        assert sample["tokens"][start] == SEP
        assert mask == [0.0] * start + [1.0] * len(supervised) + [0.0] * (
            length - start - len(supervised)
        )
    assert cut > 0, "no document was too long: test nothing"


@pytest.mark.parametrize("seed", range(3))
def test_fit_uses_all_of_the_room(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(500):
        first, second, room = (int(value) for value in random.integers(0, 60, 3))
        kept = [int(length) for length in fit(np.int64(first), np.int64(second), room)]
        assert kept[0] <= first and kept[1] <= second
        assert sum(kept) == min(first + second, room)
        assert kept[1] == second or kept[0] <= max(room - second, room // 2)


def test_supervised_tokens_of_an_epoch(words_corpus: Corpus, words_pairs: Path) -> None:
    for length in (48, 512):
        train, _, _ = build(words_corpus, words_pairs, sequence_length=length)
        rows = [int(train[index]["loss_mask"].sum()) for index in range(len(train))]
        assert train.supervised_tokens() == sum(rows)


def test_controls_supervise_the_same_tokens(words_corpus: Corpus, words_pairs: Path) -> None:
    _, valid, _ = build(words_corpus, words_pairs)
    assert len(valid) == 2 * valid.pairs
    for index in range(0, len(valid), 2):
        own, control = valid[index], valid[index + 1]
        assert (int(own["control"]), int(control["control"])) == (0, 1)
        supervised = [row["labels"][row["loss_mask"].bool()].tolist() for row in (own, control)]
        assert supervised[0] == supervised[1]
        assert own["tokens"].tolist() != control["tokens"].tolist()


def test_cache_key_names_the_pairs(words_corpus: Corpus, words_pairs: Path, tmp_path: Path) -> None:
    rows = [(*pair, 0.5) for pair in rows_of(words_pairs)]
    write_pairs(tmp_path / "other", words_corpus, rows[:-1])
    descriptions = {
        build(words_corpus, words_pairs)[0].unique_description_hash,
        build(words_corpus, tmp_path / "other")[0].unique_description_hash,
        build(words_corpus, words_pairs, sequence_length=97)[0].unique_description_hash,
        build(words_corpus, words_pairs, random_seed=6)[0].unique_description_hash,
    }
    assert len(descriptions) == 4


def test_pairs_of_another_corpus_are_refused(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    train = words_corpus.prefixes[0]
    for ending in (".bin", ".idx"):
        (tmp_path / f"moved{ending}").write_bytes(Path(f"{train}{ending}").read_bytes())
    moved = str(tmp_path / "moved")
    blend = ([moved], None)
    dataset, _, _ = build(words_corpus, words_pairs, blend=blend, split="1,0,0")
    assert dataset.pairs > 0, "a corpus that was moved is the same corpus"

    index = bytearray((tmp_path / "moved.idx").read_bytes())
    index[-1] ^= 1
    (tmp_path / "moved.idx").write_bytes(index)
    with pytest.raises(InputError, match=r"moved: is not a corpus of the pairs in"):
        build(words_corpus, words_pairs, blend=blend, split="1,0,0")


def test_no_pair_in_a_split_is_an_error(words_corpus: Corpus, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", words_corpus, [(0, 1, 0.9), (1, 0, 0.9)])
    with pytest.raises(InputError, match=f"no pair has both documents in the {Split.valid.name}"):
        build(words_corpus, tmp_path / "pairs")
