"""Megatron's indexed format (``.bin``/``.idx``) in numpy: a streaming writer and a checked reader.

The files are byte for byte those of ``megatron.core.datasets.indexed_dataset`` for one sequence per
document. This module exists because importing Megatron takes seconds and its writer keeps Python
lists; docs/formats.md has the layout.
"""

import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from megatron_sbp.errors import InputError
from megatron_sbp.files import check_regular

_MAGIC = b"MMIDIDX\0\0"
_VERSION = 1
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
# Megatron's DType codes of integers; 6 and 7 are floats, which are no token ids.
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}
_MAX_DOCUMENTS = 2**31 - 1  # Megatron keeps document numbers in int32 (its issue 1056).
# Rows of an index handled at a time: some megabytes, which stay in the processor's cache.
_ROWS = 1 << 18


def bin_path(prefix: str | Path) -> Path:
    """The file of a prefix that holds the tokens."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The file of a prefix that holds the documents' lengths and places."""
    return Path(f"{prefix}.idx")


def optimal_dtype(vocabulary: int) -> np.dtype[Any]:
    """Type of the tokens by Megatron's rule (``DType.optimal_dtype``): uint16 below 65,500 ids."""
    return np.dtype(np.uint16 if vocabulary < 65_500 else np.int32)


@dataclass(kw_only=True, slots=True, eq=False)
class Index:
    """The memory-mapped ``.idx`` of one prefix with one sequence per document."""

    dtype: np.dtype[Any]
    """Type of the tokens in the ``.bin``."""
    lengths: np.ndarray
    """int32 [n], tokens per document."""
    pointers: np.ndarray
    """int64 [n], bytes before each document in the ``.bin``."""


def read_index(prefix: str | Path) -> Index:
    """Open the ``.idx`` of a prefix and check it against itself and its ``.bin``.

    The check reads the index once, in pieces (20 bytes per document), and of the ``.bin`` only the
    size.

    Raises:
        InputError: If a file is missing, damaged or does not belong to the other, or if documents
            of more than one sequence are in it.
    """
    path = idx_path(prefix)
    try:
        for part in (path, bin_path(prefix)):
            check_regular(part)
        size, bin_size = path.stat().st_size, bin_path(prefix).stat().st_size
        with open(path, "rb") as file:
            header = file.read(_HEADER.size)
    except OSError as error:
        raise InputError(_unreadable(prefix, error)) from None
    dtype, count = _parse_header(path, header)
    n = count[0]
    expected = _HEADER.size + 12 * n + 8 * count[1]
    if size != expected:
        raise InputError(
            f"{path}: {size:,} bytes, but its header tells of {n:,} sequences and "
            f"{count[1] - 1:,} documents, which take {expected:,}; the file is truncated or "
            "damaged, make it again"
        )
    if count[1] != n + 1:
        raise _several_sequences(path, n, count[1] - 1)
    if n == 0:
        raise InputError(f"{path}: holds no documents; give a corpus that has some")
    raw = np.memmap(path, mode="r")
    index = Index(
        dtype=dtype,
        lengths=np.frombuffer(raw, np.int32, n, _HEADER.size),
        pointers=np.frombuffer(raw, np.int64, n, _HEADER.size + 4 * n),
    )
    documents = np.frombuffer(raw, np.int64, n + 1, _HEADER.size + 12 * n)
    _check_rows(prefix, index, documents, bin_size)
    return index


def _unreadable(prefix: str | Path, error: OSError) -> str:
    """The message about a file of the prefix that cannot be read."""
    cure = "check the prefix"
    if str(prefix).endswith((".bin", ".idx")):
        cure = f"give the prefix without its ending: {str(prefix)[:-4]}"
    return f"{error.filename}: {error.strerror}; {cure}"


def _parse_header(path: Path, header: bytes) -> tuple[np.dtype[Any], tuple[int, int]]:
    """The token type and the counts (sequences, documents + 1) of a header."""
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise InputError(
            f"{path}: begins with {header[:9]!r}, not with Megatron's {_MAGIC!r}; "
            "give the prefix of an indexed dataset"
        )
    _, version, code, sequences, documents = _HEADER.unpack(header)
    if version != _VERSION:
        raise InputError(
            f"{path}: format version {version}, this reads {_VERSION}; "
            "make it with Megatron's or this package's preprocessing"
        )
    if code not in _DTYPES:
        raise InputError(
            f"{path}: dtype code {code} is no integer type ({sorted(_DTYPES)} are), so it holds "
            "no token ids; give a tokenised corpus"
        )
    return np.dtype(_DTYPES[code]), (sequences, documents)


def _several_sequences(path: Path, sequences: int, documents: int) -> InputError:
    return InputError(
        f"{path}: {sequences:,} sequences in {documents:,} documents; here every document must be "
        "one sequence (document_indices 0, 1, 2, ...); make it again without --split-sentences"
    )


def _check_rows(prefix: str | Path, index: Index, documents: np.ndarray, bin_size: int) -> None:
    """Compare lengths, pointers and document_indices with each other and with the ``.bin``."""
    path, n = idx_path(prefix), len(index.lengths)
    end = 0  # bytes up to the end of the last document seen
    for start in range(0, n, _ROWS):
        lengths = index.lengths[start : start + _ROWS]
        stop = start + len(lengths)
        if not np.array_equal(documents[start : stop + 1], np.arange(start, stop + 1)):
            raise _several_sequences(path, n, n)
        ends = end + np.cumsum(lengths, dtype=np.int64) * index.dtype.itemsize
        begins = np.concatenate(([end], ends[:-1]))
        wrong = (lengths < 0) | (index.pointers[start:stop] != begins)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise InputError(
                f"{path}: document {start + at}: length {lengths[at]}, byte "
                f"{index.pointers[start + at]}, but the documents before it end at byte "
                f"{begins[at]}; the file is damaged, make it again"
            )
        end = int(ends[-1])
    if end != bin_size:
        what = "is truncated" if bin_size < end else "does not belong to it"
        raise InputError(
            f"{bin_path(prefix)}: {bin_size:,} bytes, but {path} tells of {end:,} "
            f"({n:,} documents); the .bin {what}, make both again"
        )


class IndexedWriter:
    """Write a prefix document by document; the ``.idx`` appears when the block ends in peace.

    with IndexedWriter("corpus/corpus", np.uint16) as writer:
        writer.append(tokens)

    Memory: 4 bytes per document.

    Args:
        prefix: Where to write, without ending. Existing files are replaced.
        dtype: Type of the tokens, see ``optimal_dtype``.
    """

    def __init__(self, prefix: str | Path, dtype: np.typing.DTypeLike):
        self.prefix = Path(prefix)
        self.dtype = np.dtype(dtype)
        self.tokens = 0
        self._lengths = array("i")
        self._file: BinaryIO = open(bin_path(prefix), "wb")  # noqa: SIM115

    def __len__(self) -> int:
        return len(self._lengths)

    @property
    def lengths(self) -> np.ndarray:
        """int32 [documents], tokens per document written so far."""
        return np.array(self._lengths, dtype=np.int32)

    def append(self, tokens: np.ndarray | Sequence[int]) -> None:
        """Add one document, its end-of-document token included."""
        self.extend(tokens, [len(tokens)])

    def extend(self, tokens: np.ndarray | Sequence[int], lengths: np.ndarray | list[int]) -> None:
        """Add several documents.

        Args:
            tokens: Integers [sum of lengths], the documents one after another.
            lengths: Integers [n], tokens per document.

        Raises:
            ValueError: If the lengths do not add up or a token does not fit the type.
            InputError: If the prefix would hold more documents than Megatron can count.
        """
        given = np.asarray(tokens)
        if given.size != sum(map(int, lengths)):
            raise ValueError(f"{given.size} tokens, but the lengths add up to {sum(lengths)}")
        if given.size:
            bounds = np.iinfo(self.dtype)
            if given.min() < bounds.min or given.max() > bounds.max:
                raise ValueError(f"a token of {given.min()}..{given.max()} is no {self.dtype}")
        if len(self) + len(lengths) > _MAX_DOCUMENTS:
            raise InputError(
                f"{self.prefix}: more than {_MAX_DOCUMENTS:,} documents, which is all Megatron "
                "can count in one prefix; split the input over several"
            )
        self._file.write(given.astype(self.dtype, copy=False).tobytes())
        self._lengths.extend(map(int, lengths))
        self.tokens += given.size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        if error is None:
            write_index(self.prefix, self.lengths, self.dtype)


def write_index(prefix: Path, lengths: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Write the ``.idx`` for documents of the given lengths (int32 [n])."""
    n = len(lengths)
    with open(idx_path(prefix), "wb") as file:
        file.write(_HEADER.pack(_MAGIC, _VERSION, _CODES[dtype], n, n + 1))
        file.write(lengths.tobytes())
        end = 0
        for start in range(0, n, _ROWS):
            sizes = lengths[start : start + _ROWS].astype(np.int64) * dtype.itemsize
            ends = end + np.cumsum(sizes)
            file.write((ends - sizes).tobytes())
            end = int(ends[-1])
        for start in range(0, n + 1, _ROWS):
            file.write(np.arange(start, min(start + _ROWS, n + 1), dtype=np.int64).tobytes())
        file.flush()
        os.fsync(file.fileno())
