"""The same documents through every format, and what is said about those that cannot be used."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron_sbp.corpus.readers import Document, Fault, FileSource, expand
from megatron_sbp.errors import InputError

TEXTS = ["one", "two\nlines\r\n", "äöü 🎉", ' "quoted" \\ ', "x" * 3000]


def read(*paths: Path, key: str = "text") -> list[Document | Fault]:
    return list(FileSource(expand([str(path) for path in paths]), key))


def texts(*paths: Path, key: str = "text") -> list[str]:
    return [record.text for record in read(*paths, key=key) if isinstance(record, Document)]


def json_lines(values: list[object], key: str = "text") -> bytes:
    return b"".join(json.dumps({"id": 1, key: value}).encode() + b"\n" for value in values)


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["c.jsonl", "c.ndjson", "C.JSON"])
def test_json_lines(tmp_path: Path, name: str, ending: str) -> None:
    compress: dict[str, Callable[[bytes], bytes]]
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    raw = json_lines([*TEXTS], key="body")
    # Two members, as `cat a.gz b.gz` and parallel compressors write them.
    (tmp_path / (name + ending)).write_bytes(compress[ending](raw) + compress[ending](raw))
    assert texts(tmp_path / (name + ending), key="body") == TEXTS * 2


def test_json_lines_without_last_newline_and_with_bom_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json_lines(["a"]) + b"\n \r\n" + b'{"text": "b"}')
    records = read(path)
    assert records == [Document(f"{path}:1", "a"), Document(f"{path}:4", "b")]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), "dictionary"])
def test_parquet(tmp_path: Path, kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_sbp.corpus.readers._PARQUET_ROWS", 2)
    column = pa.array(TEXTS, pa.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    table = pa.table({"id": range(len(TEXTS)), "body": column})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=3)
    records = read(tmp_path / "c.parquet", key="body")
    assert [record.text for record in records if isinstance(record, Document)] == TEXTS
    assert records[4].place == f"{tmp_path / 'c.parquet'}:row 4"


def test_text_files_of_a_directory_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("c.md", "a.txt", "b/z.rst", ".git/x.txt", ".hidden.txt", "picture.png"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path) == ["a.txt", "b/z.rst", "c.md"]


def test_patterns(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "a.md"):
        (tmp_path / name).write_text(name)
    assert texts(tmp_path / "*.txt", tmp_path / "a.md") == ["a.txt", "b.txt", "a.md"]
    (tmp_path / "shard1").mkdir()
    (tmp_path / "shard1" / "c.txt").write_text("c")
    assert texts(tmp_path / "shard*", tmp_path / "**/c.txt") == ["c", "c"]
    odd = tmp_path / "odd[1].txt"  # a file's own name goes before its meaning as a pattern
    odd.write_text("odd")
    assert texts(odd) == ["odd"]


FAULTS = {
    b"{": ("broken JSON", r"at character 2 of '\{'"),
    b"[1]": ("broken JSON", r"\[1\] is a list"),
    b'{"text": "a"} x': ("broken JSON", "Extra data at character 15"),
    b"[" * 100_000: ("broken JSON", "recursion"),
    b'{"body": "a"}': ("no text", r"no key 'text' \(keys: 'body'\); set --text-key"),
    b"{}": ("no text", r"keys: none"),
    b'{"text": 7}': ("no text", r"'text' is int \(7\)"),
    b'{"text": null}': ("no text", "'text' is null"),
    b'{"text": ""}': ("empty document", "''"),
    b'{"text": " \\n\\t"}': ("empty document", "has no text"),
    b'{"text": "\xff\xfe"}': ("invalid UTF-8", r"b'\\xff\\xfe\"\}' at byte 11 of the line"),
    b'{"text": "a \\ud800 b"}': ("invalid UTF-8", r"'\\ud800' is half of a surrogate pair"),
}


@pytest.mark.parametrize("line", FAULTS, ids=lambda line: line[:24].decode("latin-1"))
def test_faults_of_a_json_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "c.jsonl"
    path.write_bytes(json_lines(["a"]) + line + b"\n" + json_lines(["b"]))
    first, fault, last = read(path)
    assert (first, last) == (Document(f"{path}:1", "a"), Document(f"{path}:3", "b"))
    assert isinstance(fault, Fault)
    reason, detail = FAULTS[line]
    assert fault.reason == reason
    with pytest.raises(InputError, match=f"^{path}:2: {reason}: .*{detail}.*--on-error skip$"):
        raise fault.error()


def test_faults_of_a_parquet_row(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    raw = pa.array([b"a", None, b"\xff", b" ", b"b"], pa.binary())
    column = pa.StringArray.from_buffers(len(raw), *raw.buffers()[1:], raw.buffers()[0], 1)
    pq.write_table(pa.table({"text": column}), path)
    reasons = [r.reason if isinstance(r, Fault) else r.text for r in read(path)]
    assert reasons == ["a", "no text", "invalid UTF-8", "empty document", "b"]
    assert read(path)[2].place == f"{path}:row 2"


def test_fault_of_a_text_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "c.txt"
    path.write_bytes(b"fine\nnot \xe4 fine\n")
    (fault,) = read(path)
    assert isinstance(fault, Fault)
    assert (fault.place, fault.reason) == (f"{path}:2", "invalid UTF-8")
    assert "at byte 5 of the line" in fault.detail


@pytest.mark.parametrize("ending", [".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_truncated_file_is_named(tmp_path: Path, ending: str) -> None:
    raw = json_lines([f"document {i * 7919}" for i in range(999)])
    path = tmp_path / f"c{ending}"
    if ending == ".parquet":
        pq.write_table(pa.table({"text": ["a", "b"]}), path)
    else:
        compress = gzip.compress if ending.endswith("gz") else zstandard.ZstdCompressor().compress
        path.write_bytes(compress(raw))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=rf"^{path}: cannot be read to its end"):
        read(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("*.jsonl", "no file matches"),
        ("folder", "no file in it ends in"),
        ("picture.png", "names no known format"),
    ],
)
def test_input_that_is_no_file_of_documents(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture.png").touch()
    with pytest.raises(InputError, match=message):
        expand([str(tmp_path / name)])


def test_parquet_without_the_column(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "body": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"no column 'text' \(columns: id, body\); set --text-key"):
        read(tmp_path / "c.parquet")


def test_position_reaches_the_total(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x" * 100_000] * 30))
    (tmp_path / "b.txt").write_text("y" * 50_000)
    pq.write_table(pa.table({"text": TEXTS * 50}), tmp_path / "c.parquet")
    source = FileSource(expand([str(tmp_path)]), "text")
    positions = [source.position for _ in source]
    assert positions == sorted(positions)
    assert source.position == source.total
    assert 0 < positions[0] < source.total
