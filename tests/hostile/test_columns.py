"""Damaged .npy files: pair stores, embeddings, the columns of synthetic documents."""

import ast
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining import pairs
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.npy import open_npy, read_npz
from megatron_sbp.synthesis.store import COLUMNS, SyntheticCorpus, column_path
from tests.hostile.fuzz import cheap, damaged, fuzzed, read_or_refused, refused

PAIRS: dict[str, np.ndarray] = {
    "anchor": np.array([0, 0, 2, 5], np.int64),
    "neighbor": np.array([2, 1, 0, 1], np.int64),
    "score": np.array([0.9, 0.8, 0.9, 0.5], np.float32),
}
CODES = {"i8": "q", "u8": "Q", "i4": "i", "u1": "B", "f4": "f", "f2": "e"}


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def with_header(header: dict[str, Any], content: bytes = b"", version: int = 1) -> bytes:
    text = repr(header).encode()
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + content


def by_the_letter(raw: bytes) -> tuple[tuple[int, ...], list[Any]]:
    """Shape and values of a .npy file, read as NumPy's documentation of the format says."""
    assert raw[:6] == b"\x93NUMPY"
    start, size = (10, "<H") if raw[6] == 1 else (12, "<I")
    end = start + struct.unpack_from(size, raw, 8)[0]
    header = ast.literal_eval(raw[start:end].decode("latin-1").strip())
    code = CODES[header["descr"].lstrip("<|=")]
    values = [value for (value,) in struct.iter_unpack("<" + code, raw[end:])]
    shape = header["shape"]
    if header["fortran_order"] and len(shape) == 2:
        values = [values[row + shape[0] * c] for row in range(shape[0]) for c in range(shape[1])]
    return shape, values


def same(array: np.ndarray, raw: bytes) -> None:
    """An array has the shape and the values of a file; any NaN equals any other."""
    shape, values = by_the_letter(raw)
    expected = np.array(values, array.dtype).reshape(shape)
    assert array.shape == shape
    assert np.array_equal(array, expected, equal_nan=array.dtype.kind == "f")


# One file


@fuzzed(150)
@given(data=st.data())
def test_damaged_files_are_what_they_say_or_an_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    array = data.draw(st.sampled_from([*PAIRS.values(), np.eye(3, dtype=np.float16)]))
    raw = data.draw(damaged(npy(array)) | st.binary(max_size=99))
    path.write_bytes(raw)
    with cheap():
        try:
            found = open_npy(path)
        except (OSError, ValueError):
            return
    if found.dtype == array.dtype:
        same(found, raw)


HEADER = {"descr": "<i8", "fortran_order": False, "shape": (4,)}
HOSTILE = {
    "nothing": b"",
    "one byte": b"\x93",
    "2^60 rows": with_header(HEADER | {"shape": (2**60,)}),
    "2^61 rows, which are 2^64 bytes": with_header(HEADER | {"shape": (2**61,)}),
    "2^32 x 2^32": with_header(HEADER | {"shape": (2**32, 2**32)}),
    "negative rows": with_header(HEADER | {"shape": (-1,)}, bytes(8)),
    "twice negative": with_header(HEADER | {"shape": (-1, -1)}, bytes(8)),
    "objects": with_header(HEADER | {"descr": "|O", "shape": (1,)}, pickle.dumps(print)),
    "a pickle": pickle.dumps([print]),
    "an archive": b"PK\x03\x04" + bytes(40),
    "no dictionary": b"\x93NUMPY\1\0\2\0[]",
    "a type that is none": with_header(HEADER | {"descr": "<q9"}, bytes(32)),
    "a nested header": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000,
    "signs": b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"-" * 8999 + b"1",
    "a long header": b"\x93NUMPY\2\0" + struct.pack("<I", 2**32 - 1) + b"{",
    "another version": with_header(HEADER, bytes(32), version=9),
    "bytes left over": npy(PAIRS["anchor"]) + b"\0",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_everywhere(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(HOSTILE[name])
    with cheap(), pytest.raises(ValueError):
        open_npy(path)
    write_pairs(tmp_path / "pairs")["anchor"].write_bytes(HOSTILE[name])
    refused(lambda: PairStore(tmp_path / "pairs"), r"anchor\.npy: not a complete")
    (tmp_path / "embeddings").mkdir()
    shard = tmp_path / "embeddings" / "embeddings-00000-of-00001.npy"
    shard.write_bytes(HOSTILE[name])
    refused(lambda: Embeddings(tmp_path / "embeddings"), r"embeddings-00000-of-00001\.npy: not a")
    write_synthetic(tmp_path / "new" / "c")["seed"].write_bytes(HOSTILE[name])
    refused(lambda: SyntheticCorpus(tmp_path / "new" / "c"), r"c\.seed\.npy: cannot be read")


def test_archives_are_read_as_they_lie_or_refused(tmp_path: Path) -> None:
    path, arrays = tmp_path / "a.npz", {"x": np.arange(6).reshape(2, 3), "y": np.array(1.5)}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    found = read_npz(path)
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    assert read_npz(path, "y").keys() == {"y"}
    with pytest.raises(ValueError, match="no array z"):
        read_npz(path, "x", "z")
    raw = path.read_bytes()
    for at in range(0, len(raw), 7 if len(raw) < 2000 else len(raw) // 200):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x55]) + raw[at + 1 :])
        try:
            found = read_npz(path)
        except ValueError:
            continue
        # A flipped date, say, changes no array.
        assert all(np.array_equal(found[name], arrays[name]) for name in found if name in arrays)
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", npy(np.zeros(1 << 20)))
    with cheap(1 << 20), pytest.raises(ValueError, match="compressed"):
        read_npz(bomb)


# Pair stores


def write_pairs(directory: Path) -> dict[str, Path]:
    directory.mkdir()
    paths = {name: directory / f"{name}.npy" for name in PAIRS}
    for name, path in paths.items():
        np.save(path, PAIRS[name])
    return paths


def in_order(rows: list[tuple[int, int, float]]) -> bool:
    """Whether rows are a pair store: ids, scores, order and no pair twice."""
    sane = all(a >= 0 and n >= 0 and a != n and abs(s) < float("inf") for a, n, s in rows)
    ordered = [(a, -s, n) for a, n, s in rows]
    return sane and ordered == sorted(ordered) and len({row[:2] for row in rows}) == len(rows)


@fuzzed(120)
@given(data=st.data())
def test_damaged_pair_stores(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("store") / "pairs"
    paths = write_pairs(directory)
    for name in data.draw(st.sets(st.sampled_from(sorted(PAIRS)), min_size=1)):
        head = npy(PAIRS[name])[:128]
        content = data.draw(damaged(npy(PAIRS[name])[128:]))
        paths[name].write_bytes(head + content)
    store = read_or_refused(lambda: PairStore(directory))
    read = [by_the_letter(path.read_bytes()) for path in paths.values()] if store else []
    rows = list(zip(*(values for _, values in read), strict=True))
    if store is not None:
        assert in_order(rows)
        for name, path in paths.items():
            same(getattr(store, name), path.read_bytes())


@fuzzed(80)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(3, 6), st.sampled_from([0.25, 0.5, 0.75])),
        max_size=12,
    )
)
def test_a_pair_that_comes_twice_is_named(
    rows: list[tuple[int, int, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows.sort(key=lambda row: (row[0], -row[2], row[1]))
    directory = tmp_path_factory.mktemp("store")
    for column, (name, example) in enumerate(PAIRS.items()):
        np.save(directory / f"{name}.npy", np.array([row[column] for row in rows], example.dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_ROWS", 2)  # so that equal pairs are in different pieces
        if len({row[:2] for row in rows}) == len(rows):
            assert len(PairStore(directory)) == len(rows)
            return
        refused(lambda: PairStore(directory), "is a pair that comes twice|comes before its next")


# Embeddings


@fuzzed(80)
@given(data=st.data())
def test_damaged_embeddings_name_the_document(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("embeddings")
    angles = np.arange(7)
    rows = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float16)
    raw = npy(rows)
    raw = (
        raw[:128] + data.draw(damaged(raw[128:]))
        if data.draw(st.booleans())
        else data.draw(damaged(raw))
    )
    path = directory / "embeddings-00000-of-00001.npy"
    path.write_bytes(raw)
    embeddings = read_or_refused(lambda: Embeddings(directory))
    if embeddings is None:
        return
    shape, values = by_the_letter(raw)
    wide = np.array(values, np.float64).reshape(shape)
    with np.errstate(all="ignore"):
        wrong = ~(np.abs(np.sqrt((wide**2).sum(1)) - 1) <= 1e-2)
    if wrong.any():
        first = int(np.argmax(wrong))
        refused(lambda: embeddings.rows(0, len(embeddings)), f"embedding of document {first} has")
    else:
        same(embeddings.rows(0, len(embeddings)), raw)


def test_one_shard_under_two_names_is_refused(tmp_path: Path) -> None:
    for name in ("embeddings-0-of-1.npy", "embeddings-00000-of-00001.npy"):
        np.save(tmp_path / name, np.ones((2, 1), np.float16))
    refused(lambda: Embeddings(tmp_path), "is the same shard as")


def test_rows_without_numbers_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings-00000-of-00001.npy", np.ones((2, 0), np.float16))
    refused(lambda: Embeddings(tmp_path), "its rows have no numbers")


# Synthetic documents


def write_synthetic(prefix: Path) -> dict[str, Path]:
    prefix.parent.mkdir()
    with IndexedWriter(prefix, np.uint16) as writer:
        writer.append([1, 2])
        writer.append([3])
    paths = {name: column_path(prefix, name) for name in COLUMNS}
    for name, dtype in COLUMNS.items():
        np.save(paths[name], np.array([1, 0], dtype))
    corpus = [{"prefix": "real", "documents": 2, "tokens": 9, "idx_sha256": "0" * 64}]
    Manifest(stage="synthesize", options={}, inputs={}, counts={"corpus": corpus}).write(
        prefix.parent
    )
    return paths


@fuzzed(60)
@given(data=st.data())
def test_damaged_columns_of_synthetic_documents(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = write_synthetic(tmp_path_factory.mktemp("synthetic") / "new" / "c")
    name = data.draw(st.sampled_from(sorted(COLUMNS)))
    raw = data.draw(damaged(paths[name].read_bytes()))
    paths[name].write_bytes(raw)
    prefix = Path(str(paths[name]).removesuffix(f".{name}.npy"))
    found = read_or_refused(lambda: SyntheticCorpus(prefix))
    if found is not None:
        same(found.columns[name], raw)


@pytest.mark.parametrize(
    "counts",
    [{}, {"corpus": None}, {"corpus": [{}]}, {"corpus": "x"}, {"corpus": [{"prefix": 1}]}],
    ids=repr,
)
@pytest.mark.parametrize(
    "read",
    [
        lambda s: s.seed_corpus,
        lambda s: s.with_seeds(s.documents),
        lambda s: s.seeds_in(s.documents),
    ],
    ids=["seed_corpus", "with_seeds", "seeds_in"],
)
def test_a_manifest_without_the_seeds_corpus(
    counts: dict[str, Any], read: Callable[[SyntheticCorpus], object], tmp_path: Path
) -> None:
    write_synthetic(tmp_path / "new" / "c")
    Manifest(stage="synthesize", options={}, inputs={}, counts=counts).write(tmp_path / "new")
    with pytest.raises(InputError, match="does not say which corpus"):
        read(SyntheticCorpus(tmp_path / "new" / "c"))


@pytest.mark.parametrize("seed", [-1, 2, 2**62])
def test_seeds_outside_of_their_corpus(seed: int, tmp_path: Path) -> None:
    paths = write_synthetic(tmp_path / "new" / "c")
    np.save(paths["seed"], np.array([0, seed], np.int64))
    made = SyntheticCorpus(tmp_path / "new" / "c")
    entry = made.documents.fingerprints[0]
    Manifest(stage="synthesize", options={}, inputs={}, counts={"corpus": [entry]}).write(
        tmp_path / "new"
    )
    made = SyntheticCorpus(tmp_path / "new" / "c")
    refused(lambda: made.seeds_in(made.documents), f"document 1 has the seed {seed}")
