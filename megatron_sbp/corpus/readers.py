"""Documents from files: JSON Lines (.gz, .zst), Parquet and plain text, read as streams."""

import glob
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError, require

_JSON = (".jsonl", ".ndjson", ".json")
_COMPRESSION = {"": None, ".gz": "gzip", ".zst": "zstd"}
_TEXT = (".txt", ".text", ".md", ".markdown", ".rst")
_PARQUET = (".parquet",)
SUFFIXES = (*(name + end for name in _JSON for end in _COMPRESSION), *_PARQUET, *_TEXT)
_BUFFER_BYTES = 1 << 20
_PARQUET_ROWS = 1024
_LONGEST = 1 << 30  # Bytes of a line: a compressed file of some megabytes may hold any number.


@dataclass(frozen=True, slots=True)
class Document:
    """One document of the input."""

    place: str
    """Where it stands, for messages: file, file:line or file:row N."""
    text: str


@dataclass(frozen=True, slots=True)
class Fault:
    """A document that cannot be used."""

    place: str
    reason: str
    """Kind of fault; skipped documents are counted by it."""
    detail: str
    """The offending value and the cure."""

    def error(self) -> InputError:
        """The fault as an error for the user."""
        return InputError(
            f"{self.place}: {self.reason}: {self.detail}, or leave it out with --on-error skip"
        )


def expand(patterns: Sequence[str]) -> list[Path]:
    """The files behind files, directories (searched recursively) and glob patterns.

    Files of a directory or pattern come in the order of their names; hidden files and directories
    are left out.

    Raises:
        InputError: If something does not exist, is of no known format or holds no file of one.
    """
    files: list[Path] = []
    for pattern in patterns:
        names = [pattern]
        if glob.has_magic(pattern) and not Path(pattern).exists():
            names = sorted(glob.glob(pattern, recursive=True))
            if not names:
                raise InputError(f"--input {pattern}: no file matches; check the pattern")
        for path in map(Path, names):
            files += _directory(path) if path.is_dir() else [_file(path)]
    return files


def _file(path: Path) -> Path:
    """A file that exists and is of a known format."""
    if not path.exists():
        raise InputError(f"--input {path}: no such file; check the path")
    if not path.is_file():
        raise InputError(
            f"--input {path}: a pipe, a socket or a device, and documents are read several times; "
            "give a file"
        )
    if not path.name.lower().endswith(SUFFIXES):
        raise InputError(
            f"--input {path}: the ending names no known format; use one of {' '.join(SUFFIXES)}"
        )
    return path


def _directory(path: Path) -> list[Path]:
    """The files of known formats below a directory."""
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.name.lower().endswith(SUFFIXES)
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise InputError(f"--input {path}: no file in it ends in one of {' '.join(SUFFIXES)}")
    return files


class FileSource:
    """The documents of a list of files, in their order.

    Iterating gives a ``Document`` or a ``Fault`` for each; a file that is damaged as a whole (a
    truncated archive, say) raises InputError, since what it held cannot be known.

    Args:
        files: Files from ``expand``.
        text_key: JSON key or Parquet column that holds the text.
    """

    unit = "kB"

    def __init__(self, files: Sequence[Path], text_key: str):
        self.files = files
        self.text_key = text_key
        self.total = sum(file.stat().st_size for file in files) // 1000
        """Size of the input in ``unit``, compressed as it lies on disk."""
        self._bytes = 0

    @property
    def position(self) -> int:
        """How much of ``total`` has been read."""
        return self._bytes // 1000

    def __iter__(self) -> Iterator[Document | Fault]:
        self._bytes = 0
        for file in self.files:
            before = self._bytes
            name = file.name.lower()
            if name.endswith(_TEXT):
                records = self._text(file)
            elif name.endswith(_PARQUET):
                records = self._parquet(file)
            else:
                records = self._json_lines(file)
            try:
                yield from records
            except OSError as error:
                raise _damaged(file, error) from None
            self._bytes = before + file.stat().st_size

    def _text(self, file: Path) -> Iterator[Document | Fault]:
        raw = file.read_bytes()
        try:
            yield checked(str(file), raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            yield _invalid_utf8(f"{file}:{line}", error)

    def _json_lines(self, file: Path) -> Iterator[Document | Fault]:
        arrow = require("pyarrow", package="pyarrow")
        before = self._bytes
        compression = _COMPRESSION.get(file.suffix.lower())
        with arrow.OSFile(str(file)) as raw:
            stream = arrow.CompressedInputStream(raw, compression) if compression else raw
            lines = io.BufferedReader(stream, _BUFFER_BYTES)
            for number, line in enumerate(iter(lambda: lines.readline(_LONGEST), b""), start=1):
                if not raw.closed:
                    self._bytes = before + raw.tell()
                if len(line) == _LONGEST:
                    raise InputError(
                        f"{file}:{number}: the line has {_LONGEST:,} bytes or more; split it, or "
                        "leave the file out of --input"
                    )
                if not line.isspace():  # an empty line, as at the end of many files
                    yield self._json_line(f"{file}:{number}", line)

    def _json_line(self, place: str, line: bytes) -> Document | Fault:
        try:
            record = json.loads(line.decode("utf-8-sig").rstrip())
        except UnicodeDecodeError as error:
            return _invalid_utf8(place, error)
        except (ValueError, RecursionError) as error:
            what = str(error)
            if isinstance(error, json.JSONDecodeError):
                what = f"{error.msg} at character {error.pos + 1}"
            shown = line[:40].decode("utf-8", "replace").strip()
            return _broken_json(place, f"{what} of {shown!r}")
        if not isinstance(record, dict):
            return _broken_json(place, f"{record!r:.40} is a {type(record).__name__}")
        if self.text_key not in record:
            keys = ", ".join(map(repr, list(record)[:8])) or "none"
            return Fault(
                place, "no text", f"no key {self.text_key!r} (keys: {keys}); set --text-key"
            )
        return checked(place, record[self.text_key], self.text_key)

    def _parquet(self, file: Path) -> Iterator[Document | Fault]:
        arrow = require("pyarrow", package="pyarrow")
        parquet = require("pyarrow.parquet", package="pyarrow")
        before, size = self._bytes, file.stat().st_size
        row = 0
        try:
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            if self.text_key not in names:
                raise InputError(
                    f"{file}: no column {self.text_key!r} (columns: {', '.join(names)}); "
                    "set --text-key"
                )
            for batch in table.iter_batches(_PARQUET_ROWS, columns=[self.text_key]):
                self._bytes = before + size * row // max(table.metadata.num_rows, row, 1)
                for value in batch.column(0):
                    yield self._parquet_row(f"{file}:row {row}", value)
                    row += 1
        except (arrow.lib.ArrowException, MemoryError, UnicodeDecodeError) as error:
            raise _damaged(file, error) from None
        if row != table.metadata.num_rows:
            raise _damaged(file, f"{row:,} rows of {table.metadata.num_rows:,}")

    def _parquet_row(self, place: str, value: Any) -> Document | Fault:
        try:
            return checked(place, value.as_py(), self.text_key)
        except UnicodeDecodeError as error:
            return _invalid_utf8(place, error)
        except (ValueError, OverflowError) as error:  # a date, say, that Python cannot count to
            shown = f"is {value.type} ({error!s:.40}), not a string"
            return Fault(place, "no text", f"{self.text_key!r} {shown}; mend it")


def checked(place: str, text: Any, key: str = "text") -> Document | Fault:
    """A document, or the fault that keeps a value from being one."""
    if not isinstance(text, str):
        kind = "null" if text is None else type(text).__name__
        shown = repr(text)[:40]
        return Fault(place, "no text", f"{key!r} is {kind} ({shown}), not a string; mend it")
    if not text or text.isspace():
        return Fault(place, "empty document", f"{text[:20]!r} has no text; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = text[error.start : error.start + 1]
        return Fault(place, "invalid UTF-8", f"{shown!r} is half of a surrogate pair; mend it")
    return Document(place, text)


def _damaged(file: Path, error: Exception | str) -> InputError:
    return InputError(
        f"{file}: cannot be read to its end ({error}); repair it or leave it out of --input"
    )


def _broken_json(place: str, what: str) -> Fault:
    return Fault(place, "broken JSON", f"{what}; each line must be one JSON object: mend it")


def _invalid_utf8(place: str, error: UnicodeDecodeError) -> Fault:
    """The fault of bytes that are no UTF-8; the column counts bytes from the line's beginning."""
    wrong = error.object[error.start : error.start + 4]
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    return Fault(
        place, "invalid UTF-8", f"{wrong!r} at byte {column} of the line; convert the file to UTF-8"
    )
