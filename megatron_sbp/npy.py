"""Arrays from ``.npy`` and ``.npz`` files that nobody vouches for.

``numpy.load`` takes archives and pickles for arrays too, believes a header before the size of the
file, and raises errors of many kinds. These functions raise OSError and ValueError alone, and
allocate no more than the file holds.
"""

import io
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from numpy.typing import DTypeLike

from megatron_sbp.files import check_regular


def open_npy(path: str | Path) -> np.ndarray:
    """Memory-map the array of a ``.npy`` file, read-only.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no ``.npy`` file of plain values, or has another size than its header
            says.
    """
    check_regular(path)
    with open(path, "rb") as file:
        shape, order, dtype = _header(file)
        offset, size = file.tell(), os.fstat(file.fileno()).st_size
        _check_size(shape, dtype, size - offset)
        if size == offset:  # nothing to map
            return np.empty(shape, dtype, order)
        # A plain array: to take a part of an np.memmap costs several times as much.
        return np.asarray(np.memmap(file, dtype, "r", offset, shape, order))


def positions(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Every distinct value of an array of integers [n], rising, with where it is, rising."""
    order = np.argsort(values, kind="stable")
    distinct, firsts = np.unique(values[order], return_index=True)
    yield from zip(distinct.tolist(), np.split(order, firsts)[1:], strict=True)


def create_npy(path: str | Path, dtype: DTypeLike, count: int) -> np.memmap:
    """Make a ``.npy`` file of a one-dimensional array, to be filled through the map of it.

    Raises:
        OSError: If the disk has no room for it: to fill the map would then end the process without
            a word.
    """
    array = np.lib.format.open_memmap(path, "w+", dtype, (count,))
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array


def save_npy(path: str | Path, array: np.ndarray) -> None:
    """Write an array as ``numpy.save`` does, byte for byte, or raise OSError.

    NumPy writes arrays through a buffer of C, of which it closes the last up to 4,096 bytes without
    a look at the result: on a full disk they are lost, and nothing says so.
    """
    array = np.asarray(array, order="C")
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def read_npz(path: str | Path, *names: str) -> dict[str, np.ndarray]:
    """Read arrays of a file of ``numpy.savez``, all or those of some names.

    Compressed ones are refused: they may be of any size.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is no such file, or damaged.
    """
    check_regular(path)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if names and name not in names:
                    continue
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename} in it is compressed")
                file = io.BytesIO(archive.read(member))
                shape, order, dtype = _header(file)
                content = file.read()
                _check_size(shape, dtype, len(content))
                flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
                arrays[name] = flat.reshape(shape, order=order)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise ValueError(str(error)) from None
    if missing := set(names) - arrays.keys():
        raise ValueError(f"no array {min(missing)} in it")
    return arrays


def _header(file: BinaryIO) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype]:
    """Shape, order and type; leaves the file at the first value."""
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # Later ones are for headers longer than 64 KiB.
        raise ValueError(f"version {version} of the format, which no plain values need")
    try:
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError:
        raise
    except Exception as error:  # of Python's own parser, whatever a header makes it raise
        raise ValueError(f"a header that is none ({type(error).__name__})") from None
    if dtype.hasobject:
        raise ValueError("Python objects, which are not loaded")
    return shape, "F" if columns_first else "C", dtype


def _check_size(shape: tuple[int, ...], dtype: np.dtype, size: int) -> None:
    """Compare what a header tells of with the bytes after it, in numbers without a limit."""
    wanted = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or wanted != size:
        raise ValueError(f"{size:,} bytes, but its header says {dtype} {list(shape)}")
