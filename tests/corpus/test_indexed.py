"""The indexed format against Megatron's own reader and writer."""

import shutil
import struct
import tempfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_sbp.corpus import indexed
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, bin_path, idx_path, optimal_dtype
from megatron_sbp.errors import InputError

DTYPES: list[type[np.integer]] = [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16]


@st.composite
def datasets(draw: st.DrawFn) -> tuple[type[np.integer], list[list[int]]]:
    dtype = draw(st.sampled_from(DTYPES))
    token = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    return dtype, draw(st.lists(st.lists(token, max_size=6), min_size=1, max_size=12))


def megatron_write(prefix: Path, dtype: type[np.integer], documents: list[list[int]]) -> None:
    import torch

    builder = IndexedDatasetBuilder(str(bin_path(prefix)), dtype=dtype)
    for document in documents:
        # add_document takes a tensor, and torch has no uint16 arithmetic: int64 holds all types.
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(str(idx_path(prefix)))


@settings(deadline=None, max_examples=60)
@given(datasets(), st.integers(1, 5), st.data())
def test_bytes_equal_megatrons(
    dataset: tuple[type[np.integer], list[list[int]]], rows: int, data: st.DataObject
) -> None:
    """Written here or by Megatron: the same bytes, and each reads the other's."""
    dtype, documents = dataset
    cut = data.draw(st.integers(0, len(documents)))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexed, "_ROWS", rows)  # so that a few documents are several pieces
        ours, theirs = Path(name) / "ours", Path(name) / "theirs"
        with IndexedWriter(ours, dtype) as writer:
            for document in documents[:cut]:
                writer.append(document)
            rest = documents[cut:]
            writer.extend(list(chain.from_iterable(rest)), [len(tokens) for tokens in rest])
        megatron_write(theirs, dtype, documents)
        assert bin_path(ours).read_bytes() == bin_path(theirs).read_bytes()
        assert idx_path(ours).read_bytes() == idx_path(theirs).read_bytes()

        corpus = Corpus([theirs])
        assert [corpus.tokens(i).tolist() for i in range(len(corpus))] == documents
        if any(documents):  # Megatron cannot map an empty .bin
            read = IndexedDataset(str(ours))
            assert [read[i].tolist() for i in range(len(read))] == documents
            assert read.document_indices.tolist() == list(range(len(documents) + 1))


@pytest.mark.parametrize("vocabulary", [2, 65_499, 65_500, 65_501, 128_256])
def test_dtype_follows_megatrons_rule(vocabulary: int) -> None:
    assert optimal_dtype(vocabulary) == DType.optimal_dtype(vocabulary)


def test_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        with pytest.raises(ValueError, match="70000"):
            writer.append([70_000])
        with pytest.raises(ValueError, match="-1"):
            writer.append([-1])
        with pytest.raises(ValueError, match="add up"):
            writer.extend([1, 2, 3], [1, 1])
        writer.append([5])
    assert Corpus([tmp_path / "c"]).tokens(0).tolist() == [5]


def test_no_index_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "c", np.uint16) as writer:
        writer.append([1])
        raise RuntimeError
    assert not idx_path(tmp_path / "c").exists()


def truncate(path: Path, by: int = 1) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def patch_bytes(path: Path, at: int, value: bytes) -> None:
    raw = bytearray(path.read_bytes())
    raw[at : at + len(value)] = value
    path.write_bytes(raw)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing .bin": (lambda p: bin_path(p).unlink(), r"c\.bin: No such file"),
    "missing .idx": (lambda p: idx_path(p).unlink(), r"c\.idx: No such file"),
    "truncated .bin": (lambda p: truncate(bin_path(p)), r"c\.bin: 19 bytes.*20.*truncated"),
    "longer .bin": (
        lambda p: bin_path(p).write_bytes(bytes(22)),
        r"c\.bin: 22 bytes.*20.*does not belong",
    ),
    "truncated .idx": (lambda p: truncate(idx_path(p)), r"c\.idx: .*truncated"),
    "empty .idx": (lambda p: idx_path(p).write_bytes(b""), r"c\.idx: begins with b''"),
    "magic": (lambda p: patch_bytes(idx_path(p), 0, b"X"), r"c\.idx: begins with b'XMIDIDX"),
    "version": (lambda p: patch_bytes(idx_path(p), 9, b"\2"), r"c\.idx: format version 2"),
    "float tokens": (lambda p: patch_bytes(idx_path(p), 17, b"\7"), r"c\.idx: dtype code 7"),
    "unknown dtype": (lambda p: patch_bytes(idx_path(p), 17, b"\x63"), r"c\.idx: dtype code 99"),
    "a length": (
        lambda p: patch_bytes(idx_path(p), 34 + 4, struct.pack("<i", 1)),
        r"c\.idx: document 2: length 5, byte 10, but the documents before it end at byte 8",
    ),
    "negative length": (
        lambda p: patch_bytes(idx_path(p), 34, struct.pack("<i", -3)),
        r"c\.idx: document 0: length -3",
    ),
    "document_indices": (
        lambda p: patch_bytes(idx_path(p), 34 + 12 * 3 + 8, struct.pack("<q", 2)),
        r"c\.idx: .*one sequence.*--split-sentences",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    with IndexedWriter(tmp_path / "c", np.uint16) as writer:
        for length in (3, 2, 5):
            writer.append(range(length))
    Corpus([tmp_path / "c"])
    inflict, message = DAMAGES[damage]
    inflict(tmp_path / "c")
    with pytest.raises(InputError, match=message) as caught:
        Corpus([tmp_path / "c"])
    assert "\n" not in str(caught.value)


def test_index_of_another_corpus_is_named(tmp_path: Path) -> None:
    for name, length in (("a", 4), ("b", 7)):
        with IndexedWriter(tmp_path / name, np.int32) as writer:
            writer.append(range(length))
    shutil.copy(idx_path(tmp_path / "a"), idx_path(tmp_path / "b"))
    with pytest.raises(InputError, match=r"b\.bin: 28 bytes, but .*b\.idx tells of 16"):
        Corpus([tmp_path / "b"])


def test_several_sequences_per_document_are_refused(tmp_path: Path) -> None:
    import torch

    builder = IndexedDatasetBuilder(str(bin_path(tmp_path / "c")), dtype=np.int32)
    builder.add_document(torch.arange(5), [2, 3])
    builder.finalize(str(idx_path(tmp_path / "c")))
    with pytest.raises(InputError, match=r"2 sequences in 1 documents.*--split-sentences"):
        Corpus([tmp_path / "c"])


def test_prefix_with_ending_gets_the_cure(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "c", np.int32) as writer:
        writer.append([1])
    with pytest.raises(InputError, match=f"without its ending: {tmp_path / 'c'}$"):
        Corpus([tmp_path / "c.bin"])


def test_empty_index_is_refused(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "c", np.int32):
        pass
    with pytest.raises(InputError, match="holds no documents"):
        Corpus([tmp_path / "c"])
