"""Damaged indexed datasets: what they hold by the letter of the format, or an error."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, bin_path, idx_path
from tests.hostile.fuzz import damaged, fuzzed, read_or_refused, refused

TYPES = {1: "B", 2: "b", 3: "h", 4: "i", 5: "q", 8: "H"}


def by_the_letter(idx: bytes, tokens: bytes) -> list[list[int]] | None:
    """The documents, read field by field as docs/formats.md says; None if anything is wrong."""
    if len(idx) < 34 or idx[:9] != b"MMIDIDX\0\0":
        return None
    version, code, sequences, bounds = struct.unpack("<QBQQ", idx[9:34])
    if version != 1 or code not in TYPES or not sequences or bounds != sequences + 1:
        return None
    if len(idx) != 34 + 12 * sequences + 8 * bounds:
        return None
    lengths = struct.unpack_from(f"<{sequences}i", idx, 34)
    pointers = struct.unpack_from(f"<{sequences}q", idx, 34 + 4 * sequences)
    if struct.unpack_from(f"<{bounds}q", idx, 34 + 12 * sequences) != tuple(range(bounds)):
        return None
    size, at, documents = struct.calcsize(TYPES[code]), 0, []
    for length, pointer in zip(lengths, pointers, strict=True):
        if length < 0 or pointer != at or at + length * size > len(tokens):
            return None
        documents.append(list(struct.unpack_from(f"<{length}{TYPES[code]}", tokens, at)))
        at += length * size
    return documents if at == len(tokens) else None


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    prefix = tmp_path_factory.mktemp("valid") / "c"
    with IndexedWriter(prefix, np.uint16) as writer:
        for length in (3, 0, 2, 5):
            writer.append(range(length))
    return idx_path(prefix).read_bytes(), bin_path(prefix).read_bytes()


def check(directory: Path, idx: bytes, tokens: bytes) -> None:
    idx_path(directory / "c").write_bytes(idx)
    bin_path(directory / "c").write_bytes(tokens)

    def read() -> list[list[int]]:
        corpus = Corpus([directory / "c"])
        return [corpus.tokens(document).tolist() for document in range(len(corpus))]

    assert read_or_refused(read) == by_the_letter(idx, tokens)


@fuzzed(150)
@given(data=st.data())
def test_damaged_files(
    data: st.DataObject, valid: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    idx, tokens = valid
    if data.draw(st.booleans()):
        tokens = data.draw(damaged(tokens))
    check(tmp_path_factory.mktemp("damaged"), data.draw(damaged(idx)), tokens)


@fuzzed(30)
@given(idx=st.binary(max_size=200), tokens=st.binary(max_size=20), magic=st.booleans())
def test_any_bytes(
    idx: bytes, tokens: bytes, magic: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") if magic else b""
    check(tmp_path_factory.mktemp("any"), head + idx, tokens)


@pytest.mark.parametrize("count", [2**31, 2**60, 2**64 - 1])
def test_a_header_that_claims_too_much_allocates_nothing(
    count: int, valid: tuple[bytes, bytes], tmp_path: Path
) -> None:
    idx, tokens = valid
    claim = struct.pack("<QQ", count, (count + 1) % 2**64)
    idx_path(tmp_path / "c").write_bytes(idx[:18] + claim + idx[34:])
    bin_path(tmp_path / "c").write_bytes(tokens)
    refused(lambda: Corpus([tmp_path / "c"]), "truncated or damaged")


@pytest.mark.parametrize("token", [-1, -(2**63), 2**32, 2**62, 400_000])
def test_tokens_that_no_tokenizer_has(token: int, words_corpus: Corpus, tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "c", np.int64) as writer:
        writer.append([5, 6])
        writer.append([5, token, 6])
    corpus = Corpus([tmp_path / "c"], tokenizer=words_corpus.tokenizer.directory)
    assert corpus.text(0)
    refused(lambda: corpus.text(1), f"document 1 has token {token}, but")
