"""Damaged documents of every format: every record is what a plain reading gives, or a fault."""

import base64
import json
import os
import pickle
import resource
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp.corpus import readers
from megatron_sbp.corpus.readers import Document, Fault, FileSource
from megatron_sbp.errors import InputError
from tests.conftest import ROOT
from tests.hostile.fuzz import LONG, damaged, fuzzed, read_or_refused, refused

VALUES: list[Any] = ["one", "zwei ä", "", " ", None, 7, [["x"]], {"text": "y"}, "🎉", True, "a\nb"]
LINES = b"".join(json.dumps({"id": 1, "text": value}).encode() + b"\n" for value in VALUES)
SEED = 11
GIGABYTES = 4  # Of addresses that a process reading damaged Parquet gets: its libraries take two.


def read(path: Path) -> list[Document | Fault]:
    return list(FileSource([path], "text"))


def usable(value: Any) -> bool:
    """Whether a value is a document."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any("\ud800" <= character <= "\udfff" for character in value)


def lines_by_the_letter(raw: bytes) -> list[str | None]:
    """Text of every line that is not blank, None for those that are no document."""
    found: list[str | None] = []
    for line in raw.split(b"\n"):
        if not line.strip(b" \t\r\v\f"):
            continue
        try:
            record = json.loads(line.decode("utf-8-sig").strip())
            value = record["text"] if isinstance(record, dict) else None
        except (ValueError, KeyError, RecursionError):
            value = None
        found.append(value if usable(value) else None)
    return found


def check(records: list[Document | Fault], wanted: list[str | None]) -> None:
    assert [r.text if isinstance(r, Document) else None for r in records] == wanted
    for record in records:
        if isinstance(record, Fault):
            message = " ".join(str(record.error()).split())
            assert len(message) < 600, message


@fuzzed(150)
@given(raw=damaged(LINES) | damaged(LINES, most=12) | st.binary(max_size=80))
def test_json_lines(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("lines") / "c.jsonl"
    path.write_bytes(raw)
    records = read_or_refused(lambda: read(path))
    assert records is not None
    check(records, lines_by_the_letter(raw))


@fuzzed(60)
@given(data=st.data())
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_compressed_lines(
    ending: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if ending == ".gz":
        raw = zlib.compress(LINES * 20, wbits=31)
    else:
        raw = zstandard.ZstdCompressor(write_checksum=True).compress(LINES * 20)
    raw = data.draw(damaged(raw) | st.binary(max_size=80))
    path = tmp_path_factory.mktemp("lines") / f"c.jsonl{ending}"
    path.write_bytes(raw)
    records = read_or_refused(lambda: read(path))
    if records is None:
        return
    # Both formats have checksums; what passes is what was compressed, or empty.
    check(records, lines_by_the_letter(LINES * 20)) if records else None


@fuzzed(60)
@given(raw=st.binary(max_size=80) | damaged("Zeile ä\nfoo\n".encode()))
def test_text(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("text") / "c.txt"
    path.write_bytes(raw)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = ""
    check(read(path), [text if usable(text) else None])


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_without_end_takes_no_memory(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compressed line of any length is a few kilobytes."""
    monkeypatch.setattr(readers, "_LONGEST", 1 << 20)
    raw = b'{"text": "' + b"x" * (100 << 20)
    if ending == ".gz":
        raw = zlib.compress(raw, 1, wbits=31)
    elif ending == ".zst":
        raw = zstandard.ZstdCompressor().compress(raw)
    path = tmp_path / f"c.jsonl{ending}"
    path.write_bytes(raw)
    refused(lambda: read(path), f"c.jsonl{ending}:1: the line has 1,048,576 bytes or more")


# Parquet is read by a library of another language, so it is damaged in a process that may die.


def write_parquet(path: Path) -> None:
    texts = [value if isinstance(value, str) else None for value in VALUES] * 3
    table = pa.table({"id": range(len(texts)), "text": pa.array(texts)})
    pq.write_table(table, path, row_group_size=7, compression="zstd", write_page_checksum=True)


def test_parquet(tmp_path: Path) -> None:
    """A child with few gigabytes of addresses reads hundreds of damaged files."""
    write_parquet(tmp_path / "c.parquet")
    count = 10_000 if LONG else 400
    finished = subprocess.run(
        [sys.executable, __file__, str(tmp_path), str(SEED), str(count)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout[-500:] + finished.stderr[-2000:]
    read_, refused_ = map(int, finished.stdout.split())
    assert read_ + refused_ == count and refused_ > count // 10


def damage_parquets(directory: Path, seed: int, count: int) -> None:
    """Read so many damaged files; what is no InputError ends the process."""
    import random

    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    source = random.Random(seed)
    whole = (directory / "c.parquet").read_bytes()
    outcome = {"read": 0, "refused": 0}
    path = directory / "damaged.parquet"
    for number in range(count):
        raw = bytearray(whole)
        for _ in range(source.randint(1, 4)):
            # The half of the damage goes to the metadata, which stand at the end.
            low = source.choice([0, len(raw) - min(len(raw), 900)])
            at = source.randrange(low, len(raw))
            raw[at] = source.choice([0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)])
        if source.random() < 0.1:
            del raw[source.randrange(len(raw)) :]
        path.write_bytes(raw)
        print(f"seed {seed}, file {number}", file=sys.stderr)
        try:
            for record in read(path):
                assert isinstance(record, Fault) or usable(record.text)
            outcome["read"] += 1
        except InputError as error:
            assert "\n" not in " ".join(str(error).split())
            outcome["refused"] += 1
    print(outcome["read"], outcome["refused"])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**52], pa.timestamp("ms")),
        pa.array([2**62], pa.duration("s")),
        pa.array([[["a"]]]),
        pa.array([b"\xff"], pa.binary()),
        pa.array([{"text": "a"}]),
        pa.array([2**40], pa.date64()),
        pa.nulls(1),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_that_are_no_text(column: pa.Array, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": column}), tmp_path / "c.parquet")
    (fault,) = read(tmp_path / "c.parquet")
    assert isinstance(fault, Fault) and fault.reason == "no text"


def test_a_column_whose_name_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": ["a"], "another": ["b"]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"another", b"an\x8dther"))
    refused(lambda: read(path), "c.parquet: cannot be read to its end .*0x8d")


class Caller:
    """A pickle of it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["arrow.py_extension_type", "pandas.period"])
def test_pickles_in_parquet_are_not_loaded(name: str, tmp_path: Path) -> None:
    """Arrow once unpickled the types of columns (CVE-2023-47248)."""
    field = pa.field(
        "text",
        pa.string(),
        metadata={
            "ARROW:extension:name": name,
            "ARROW:extension:metadata": pickle.dumps(Caller(tmp_path / "made")),
        },
    )
    schema = pa.schema([field], metadata={"pandas": base64.b64encode(b"x").decode()})
    pq.write_table(pa.table([pa.array(["a"])], schema=schema), tmp_path / "c.parquet")
    assert [record.text for record in read(tmp_path / "c.parquet") if isinstance(record, Document)]
    assert not (tmp_path / "made").exists()


if __name__ == "__main__":
    damage_parquets(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
