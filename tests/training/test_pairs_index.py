"""The index of pairs: its cache, several pair stores, how documents end, and bad input."""

import errno
import json
import os
import re
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.utils import Split

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.errors import InputError
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.training.ledger import ledger
from megatron_sbp.training.pairs import index as pair_index
from megatron_sbp.training.pairs.controls import choose_controls
from megatron_sbp.training.pairs.documents import find_prefix
from tests.conftest import write_pairs
from tests.training.paired import (
    EOD,
    Expected,
    Pair,
    body,
    build,
    config,
    contents,
    epoch,
    rows_of,
)

# The cache


def files(cache: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}


def test_an_index_is_made_once(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: dict[str, Any] = {"path_to_cache": str(tmp_path)}
    made = build(words_corpus, words_pairs, **cache)
    assert not [name for name in files(tmp_path) if name.startswith(".")]
    monkeypatch.setattr(pair_index, "build", None)  # so that building again would fail
    found = build(words_corpus, words_pairs, sizes=(3000, None, None), **cache)
    for mine, other in zip(made[:2], found[:2], strict=True):
        assert mine.counts() == other.counts()
        assert contents(epoch(mine)) == contents(other[index] for index in range(len(mine)))


def test_without_a_cache_directory_it_lies_beside_the_corpus(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    prefix = copy(words_corpus, 0, tmp_path / "corpus")
    build(words_corpus, words_pairs, blend=([prefix], None), split="1,0,0")
    where = tmp_path / "corpus" / "cache" / "PairedDocumentDataset_indices"
    (description,) = where.glob("*-description.txt")
    assert json.loads(description.read_text())["direction"] == "forward"


@pytest.mark.parametrize("left", ["pairs.npy", "rows.npy", "description.txt"])
def test_an_index_that_was_not_finished_is_made_again(
    words_corpus: Corpus,
    words_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    left: str,
) -> None:
    whole = build(words_corpus, words_pairs, path_to_cache=str(tmp_path / "whole"))[0]
    atomic_write = pair_index.atomic_write

    def stopped(path: Path) -> Any:
        if path.name.endswith(left):
            raise KeyboardInterrupt
        return atomic_write(path)

    cache = str(tmp_path / "stopped")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pair_index, "atomic_write", stopped)
        build(words_corpus, words_pairs, path_to_cache=cache)
    again = build(words_corpus, words_pairs, path_to_cache=cache)[0]
    assert [row["tokens"].tolist() for row in epoch(again)] == [
        row["tokens"].tolist() for row in epoch(whole)
    ]


def test_chunks_change_nothing(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for direction in ("both", "random"):
        rows = []
        for number, chunk in enumerate((1 << 20, 37)):
            monkeypatch.setattr(pair_index, "_MEASURED", chunk)
            monkeypatch.setattr(pair_index, "_PLACED", chunk)
            cache = str(tmp_path / f"{direction}{number}")
            (train, _, _) = build(
                words_corpus, words_pairs, direction=direction, path_to_cache=cache
            )
            rows.append([row["tokens"].tolist() for row in epoch(train)])
        assert rows[0] == rows[1]


CHANGES: list[dict[str, Any]] = [
    {"sequence_length": 97},
    {"random_seed": 6},
    {"before": (3,)},
    {"between": (1, 1)},
    {"after": (0, 0)},
    {"eod": 5},
    {"pad": 3},
    {"direction": "both"},
    {"packing": False},
    {"overflow": "skip"},
    {"truncate_d1": "head"},
    {"d1_share": 0.25},
    {"min_d2": 2},
    {"multiple": 2},
]


def test_cache_key_names_every_option(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "other", words_corpus, [(*p, 0.5) for p in rows_of(words_pairs)[:-1]])
    moved = copy(words_corpus, 0, tmp_path / "moved")
    split: dict[str, Any] = {"blend": ([moved], None)}
    made = [
        *(build(words_corpus, words_pairs, **change) for change in ({}, *CHANGES)),
        build(words_corpus, tmp_path / "other"),
        build(words_corpus, words_pairs, **split, split="1,0,0"),
        build(words_corpus, words_pairs, **split, split="60,40,0"),
    ]
    assert len({datasets[0].unique_description_hash for datasets in made}) == len(made)
    cached = {path.name for path in words_corpus.prefixes[0].glob("cache/*/*-counts.json")}
    assert len(cached) >= 2 + len(CHANGES)


def test_a_cache_that_cannot_be_written_is_named(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file: cannot write the index .*--data-cache-path"):
        build(words_corpus, words_pairs, path_to_cache=str(tmp_path / "file"))


def test_a_full_disk_is_named(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"cannot write the index .*No space left on device"):
        build(words_corpus, words_pairs, path_to_cache=str(tmp_path))
    assert files(tmp_path) == {}


# Several pair stores


def copy(corpus: Corpus, number: int, prefix: Path) -> str:
    """A prefix of a corpus in another place."""
    for ending in (".bin", ".idx"):
        shutil.copy(f"{corpus.prefixes[number]}{ending}", f"{prefix}{ending}")
    return str(prefix)


def write_corpus(prefix: Path, documents: list[list[int]]) -> Corpus:
    with IndexedWriter(prefix, np.uint16) as writer:
        for document in documents:
            writer.append(document)
    return Corpus([prefix])


def random_documents(seed: int, count: int, longest: int = 30) -> list[list[int]]:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest, count)
    return [[*random.integers(10, 500, length).tolist(), EOD] for length in lengths]


def random_pairs(seed: int, documents: int, count: int) -> list[tuple[int, int, float]]:
    random = np.random.default_rng(seed)
    rows = {
        (int(a), int(b)) for a, b in random.integers(0, documents, (count, 2)).tolist() if a != b
    }
    return [(a, b, 0.5) for a, b in sorted(rows)]


def test_several_stores_and_corpora_blend(tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path / f"c{n}", random_documents(n, 50)) for n in range(3)]
    # The first store is over two prefixes, whose pairs cross them; the second over one.
    first = Corpus([tmp_path / "c0", tmp_path / "c1"])
    stores = [tmp_path / "s0", tmp_path / "s1"]
    write_pairs(stores[0], first, random_pairs(1, 100, 300))
    write_pairs(stores[1], corpora[2], random_pairs(2, 50, 100))
    paths = [str(tmp_path / f"c{n}") for n in (2, 1, 0)]
    blend: dict[str, Any] = {
        "blend": (paths, None),
        "split": "1,0,0",
    }
    blended, _, _ = build(first, *stores, num_dataset_builder_threads=3, **blend)
    expected = [
        segment
        for corpus, store in ((first, stores[0]), (corpora[2], stores[1]))
        for segment in Expected(corpus, rows_of(store)).segments
    ]
    assert contents(epoch(blended)) == sorted(expected)
    assert {int(blended[index]["dataset_id"]) for index in range(len(blended))} == {0, 1, 2}

    entries = ledger(blended, len(blended), [])
    assert [entry["prefix"] for entry in entries] == paths
    for entry, member in zip(entries, blended.datasets, strict=True):
        assert entry["epochs"] == 1 and entry["counts"] == member.counts()
        supervised = sum(int(row["loss_mask"].sum()) for row in epoch(member))
        assert entry["tokens_seen"] == entry["tokens"] == supervised
    half = ledger(blended.datasets[0], 3 * len(blended.datasets[0]) // 2, [])
    assert half[0]["epochs"] == pytest.approx(1.5, abs=0.1)


def test_a_prefix_in_no_store_or_in_two_is_named(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    moved = copy(words_corpus, 0, tmp_path / "moved")
    blend: dict[str, Any] = {"blend": ([moved], None), "split": "1,0,0"}
    dataset, _, _ = build(words_corpus, words_pairs, **blend)
    assert dataset.counts()["pairs"] > 0, "a corpus that was moved is the same corpus"

    other = tmp_path / "other"
    shutil.copytree(words_pairs, other)
    message = f"moved: the pairs in {words_pairs} and {other} were all mined over it; give"
    with pytest.raises(InputError, match=message):
        build(words_corpus, words_pairs, other, **blend)

    index = bytearray((tmp_path / "moved.idx").read_bytes())
    index[-1] ^= 1
    (tmp_path / "moved.idx").write_bytes(index)
    with pytest.raises(InputError, match=r"moved: is not a corpus of the pairs in"):
        build(words_corpus, words_pairs, **blend)
    with pytest.raises(InputError, match=r"nowhere\.idx: No such file"):
        build(words_corpus, words_pairs, **blend | {"blend": ([str(tmp_path / "nowhere")], None)})


@pytest.mark.parametrize(("rank", "message"), [(0, "comes before its next row"), (1, "")])
def test_only_the_first_rank_checks_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, message: str
) -> None:
    corpus = write_corpus(tmp_path / "c", random_documents(1, 20))
    write_pairs(tmp_path / "pairs", corpus, [(3, 5, 0.5), (3, 6, 0.25)])
    np.save(tmp_path / "pairs" / "neighbor.npy", np.array([6, 5]))
    np.save(tmp_path / "pairs" / "score.npy", np.array([0.25, 0.5], dtype=np.float32))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    settings = config(corpus, tmp_path / "pairs", blend=([str(tmp_path / "c")], None), split="1")
    with pytest.raises(InputError, match=message) if message else nullcontext():
        assert find_prefix(str(tmp_path / "c"), settings).documents == 20


# How documents end


def test_ends_are_those_of_the_tokens(tmp_path: Path) -> None:
    documents = random_documents(3, 40, longest=4)
    for number in range(0, 40, 3):
        del documents[number][number % 2 - 1 :]
    write_corpus(tmp_path / "a", documents[:25])
    write_corpus(tmp_path / "b", documents[25:])
    assert [] in documents
    corpus = Corpus([tmp_path / "a", tmp_path / "b"])
    some = np.random.default_rng(3).permutation(40)[:30]
    expected = [documents[document][-1:] == [EOD] for document in some.tolist()]
    assert corpus.end_in(some, EOD).tolist() == expected


@pytest.mark.parametrize("ends", ["all", "none", "some", "those of one prefix"])
def test_documents_with_and_without_an_end(tmp_path: Path, ends: str) -> None:
    documents = random_documents(4, 60)
    documents[7], documents[41] = [EOD], [EOD]  # empty
    for number, document in enumerate(documents):
        if {"all": False, "none": True, "some": number % 3}.get(ends, number >= 30):
            document.pop()
    paths = [str(tmp_path / "a"), str(tmp_path / "b")]
    for path, part in zip(paths, (documents[:30], documents[30:]), strict=True):
        write_corpus(Path(path), part)
    corpus = Corpus(paths)
    write_pairs(tmp_path / "pairs", corpus, random_pairs(5, 60, 200))
    options: dict[str, Any] = {"sequence_length": 40, "overflow": "truncate"}
    blend: dict[str, Any] = {"blend": (paths, None), "split": "1,0,0"}
    train, _, _ = build(corpus, tmp_path / "pairs", **blend, **options)
    expected = Expected(corpus, rows_of(tmp_path / "pairs"), **options)
    assert contents(epoch(train)) == sorted(expected.segments)
    counts = [member.counts() for member in train.datasets]
    for name, count in expected.counts.items():
        assert sum(part[name] for part in counts) == count, name


def test_a_document_that_breaks_the_rule_is_named(tmp_path: Path) -> None:
    documents = random_documents(4, 5000)
    documents[2503].pop()
    corpus = write_corpus(tmp_path / "c", documents)
    write_pairs(tmp_path / "pairs", corpus, [(n, n + 1, 0.5) for n in range(4999)])
    blend: dict[str, Any] = {"blend": ([str(tmp_path / "c")], None), "split": "1,0,0"}
    train, _, _ = build(corpus, tmp_path / "pairs", **blend)
    with pytest.raises(InputError, match=r"c: document 2503 does not end in .* token 0"):
        epoch(train)


# Controls


def test_controls_are_no_relatives_and_of_similar_length(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    documents = random_documents(9, 300, longest=200)
    corpus = write_corpus(tmp_path / "c", documents)
    write_pairs(tmp_path / "pairs", corpus, random_pairs(10, 300, 9000))
    store = PairStore(tmp_path / "pairs", corpus)
    pairs = set(rows_of(tmp_path / "pairs"))
    rows = random.choice(len(store), 2000, replace=False)
    first, second = np.asarray(store.anchor)[rows], np.asarray(store.neighbor)[rows]
    lengths = np.array([len(body(corpus, document)) for document in range(300)])
    chosen = choose_controls(store, first, second, lengths[first], seed=3)
    assert np.array_equal(chosen, choose_controls(store, first, second, lengths[first], seed=3))
    for control, d1, d2 in zip(chosen.tolist(), first.tolist(), second.tolist(), strict=True):
        assert control not in (d1, d2)
        assert not {(control, d2), (d2, control)} & pairs
    # Against a d1 drawn at random.
    apart = np.abs(lengths[chosen] - lengths[first]).mean()
    assert apart < 0.1 * np.abs(lengths[random.permutation(first)] - lengths[first]).mean()


def test_the_only_pair_is_its_own_control(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "c", random_documents(1, 3))
    write_pairs(tmp_path / "pairs", corpus, [(0, 1, 0.5)])
    one, two = np.array([0]), np.array([1])
    store = PairStore(tmp_path / "pairs")
    assert choose_controls(store, one, two, np.array([7]), seed=0).tolist() == [0]


# Bad input


def test_no_pair_in_a_split_is_an_error(words_corpus: Corpus, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", words_corpus, [(0, 1, 0.9), (1, 0, 0.9)])
    with pytest.raises(InputError, match=f"no pair has both documents in the {Split.valid.name}"):
        build(words_corpus, tmp_path / "pairs")


@pytest.mark.parametrize("overflow", ["truncate", "skip"])
def test_skipping_every_pair_is_an_error(
    words_corpus: Corpus, words_pairs: Path, overflow: str
) -> None:
    message = r"all (\d+) pairs of the train set .* \((\d+) too long, (\d+) with .*--sbp-min-d2"
    with pytest.raises(InputError, match=message) as caught:
        build(words_corpus, words_pairs, overflow=overflow, min_d2=90)
    counts = re.search(message, str(caught.value))
    assert counts is not None
    skipped, long, short = map(int, counts.groups())
    assert skipped == long + short
    assert short and bool(long) == (overflow == "skip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"before": (), "between": ()}, "the template has nothing before d2 but d1"),
        ({"d1_share": 1.5}, "--sbp-d1-share 1.5: must be from 0 to 1"),
        ({"min_d2": 0}, "--sbp-min-d2 0: must be at least 1"),
        ({"multiple": 5}, "--seq-length 96: must be a multiple of 5"),
        ({"sequence_length": 4, "min_d2": 3}, "--seq-length 4: the template leaves 2 tokens"),
    ],
)
def test_options_out_of_range_are_named(
    words_corpus: Corpus, words_pairs: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build(words_corpus, words_pairs, **options)


def test_ids_outside_the_corpus_are_refused(words_corpus: Corpus, tmp_path: Path) -> None:
    rows: list[Pair] = [(0, 1), (1, len(words_corpus))]
    write_pairs(tmp_path / "pairs", words_corpus, [(*row, 0.5) for row in rows])
    with pytest.raises(InputError, match=r"row 1 .* has an id outside the corpus"):
        build(words_corpus, tmp_path / "pairs")
