"""More than 2^31 documents, tokens and bytes, in files that are small or have holes.

An ``.idx`` cannot be a hole: it counts its documents from 0 to n, 8 bytes each. So many documents
are few files named often; many tokens are documents of zeros, which take no room on the disk.
"""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, bin_path, idx_path
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError

SEED = 5
EMPTY = 1 << 20  # Documents without tokens, before those that have some.
TEXTS = ["the last but two", "the last but one", "the last"]
PER_PREFIX = EMPTY + len(TEXTS)
PREFIXES = 2**31 // PER_PREFIX + 2
LONGEST = 2**31 - 1  # Tokens of a document, which int32 can just count.


@pytest.fixture(scope="module")
def tokenizer(tokenizer_directory: Path) -> Tokenizer:
    return Tokenizer(tokenizer_directory)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    prefix = tmp_path_factory.mktemp("huge") / "many"
    with IndexedWriter(prefix, np.uint16) as writer:
        writer.extend([], np.zeros(EMPTY, dtype=np.int64))
        for text in TEXTS:
            writer.append([*tokenizer.encode(text), tokenizer.eod])
    return prefix


def test_ids_above_2_to_the_31(prefix: Path, tokenizer: Tokenizer) -> None:
    tracemalloc.start()
    corpus = Corpus([prefix] * PREFIXES, tokenizer=tokenizer.directory)
    assert len(corpus) == PREFIXES * PER_PREFIX > 2**31
    assert corpus.num_tokens == PREFIXES * Corpus([prefix]).num_tokens

    source = np.random.default_rng(SEED)
    rows = np.concatenate([source.integers(0, PER_PREFIX, 20), PER_PREFIX - 1 - np.arange(3)])
    numbers = np.concatenate([source.integers(0, PREFIXES, 20), [0, PREFIXES - 1, PREFIXES - 2]])
    ids = numbers * PER_PREFIX + rows
    assert ids.max() > 2**31
    texts = [TEXTS[row - EMPTY] if row >= EMPTY else "" for row in rows.tolist()]
    bodies = [tokenizer.encode(text) for text in texts]
    for document, number, row, body in zip(ids.tolist(), numbers, rows, bodies, strict=True):
        assert corpus.locate(document) == (number, row), f"seed {SEED}"
        assert corpus.body(document).tolist() == body
    assert list(corpus.texts(ids.tolist())) == texts
    lengths = [len(body) + bool(body) for body in bodies]
    assert corpus.lengths_of(ids).tolist() == lengths
    assert corpus.body_lengths(ids, tokenizer.eod).tolist() == [len(body) for body in bodies]
    assert pickle.loads(pickle.dumps(corpus)).text(len(corpus) - 1) == TEXTS[-1]
    for unknown in (-1, len(corpus)):
        with pytest.raises(InputError, match=f"document {unknown}: the corpus has ids 0 to"):
            corpus.lengths_of(np.array([0, unknown]))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20  # Not in proportion to the documents: one byte of each is 2 GiB.


def test_fingerprints_count_every_prefix(prefix: Path) -> None:
    """The checksum of a file is made once, however often it is named."""
    fingerprints = Corpus([prefix] * PREFIXES).fingerprints
    assert len(fingerprints) == PREFIXES
    assert sum(entry["documents"] for entry in fingerprints) == PREFIXES * PER_PREFIX
    assert {entry["idx_sha256"] for entry in fingerprints} == {
        Corpus([prefix]).fingerprints[0]["idx_sha256"]
    }


def test_damage_at_the_end_of_a_long_index_is_found(prefix: Path, tmp_path: Path) -> None:
    for path in (bin_path, idx_path):
        path(tmp_path / "c").write_bytes(path(prefix).read_bytes())
    with open(idx_path(tmp_path / "c"), "r+b") as file:
        file.seek(34 + 4 * PER_PREFIX + 8 * (PER_PREFIX - 1))  # The last pointer.
        file.write((3).to_bytes(8, "little"))
    with pytest.raises(InputError, match=f"document {PER_PREFIX - 1}: length .*, byte 3, but"):
        Corpus([tmp_path / "c"])


def test_tokens_beyond_2_to_the_32_bytes(tmp_path: Path) -> None:
    """Two documents of zeros that fill 8 GiB of holes, then one with tokens."""
    prefix, tail = tmp_path / "long", np.arange(1, 6, dtype=np.uint16)
    with IndexedWriter(prefix, np.uint16) as writer:
        writer.append(tail)
    lengths = np.array([LONGEST, 0, LONGEST, len(tail)], dtype=np.int32)
    begins = np.cumsum(lengths, dtype=np.int64) * 2 - lengths.astype(np.int64) * 2
    header = idx_path(prefix).read_bytes()[:18]  # Magic, version and type.
    idx_path(prefix).write_bytes(
        header
        + np.array([4, 5], dtype=np.int64).tobytes()
        + lengths.tobytes()
        + begins.tobytes()
        + np.arange(5, dtype=np.int64).tobytes()
    )
    with open(bin_path(prefix), "wb") as file:
        file.seek(int(begins[-1]))
        file.write(tail.tobytes())
    corpus = Corpus([prefix, prefix])
    assert corpus.num_tokens == 2 * (2 * LONGEST + len(tail)) > 2**33
    for last in (3, 7):
        assert corpus.tokens(last).tolist() == tail.tolist()
        assert corpus.body_lengths(np.array([last, 0]), eod=5).tolist() == [4, LONGEST]
    assert len(corpus.tokens(2)) == LONGEST and corpus.tokens(2)[-1] == 0
