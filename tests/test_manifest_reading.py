"""Manifests as they are read: those that no stage wrote, and what they vouch for."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_sbp import manifest
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage, fingerprint
from tests.conftest import run_command


def write_manifest(directory: Path, text: str | bytes) -> None:
    directory.mkdir(exist_ok=True)
    (directory / manifest.FILENAME).write_bytes(text.encode() if isinstance(text, str) else text)


def valid_fields(**changes: Any) -> dict[str, Any]:
    fields = {"stage": "mine", "options": {}, "inputs": {}, "format": manifest.FORMAT}
    return fields | changes


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "folder/../../outside"])
def test_outputs_outside_the_directory_are_refused(tmp_path: Path, name: str) -> None:
    entry = {"bytes": 1, "sha256": "0", "mtime_ns": 0}
    write_manifest(tmp_path, json.dumps(valid_fields(outputs={name: entry})))
    with pytest.raises(InputError, match="lies outside its directory"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "[" * 100_000,
        "9" * 10_000,
        json.dumps({"format": "megatron_sbp manifest 99"}),
        json.dumps({"format": manifest.FORMAT}),
        json.dumps(valid_fields(surprise=1)),
        json.dumps(valid_fields(stage=7)),
        json.dumps(valid_fields(options=[1])),
        json.dumps(valid_fields(outputs=["data.bin"])),
        json.dumps(valid_fields(outputs={"data.bin": 5})),
        json.dumps(valid_fields(inputs={"data.bin": {"bytes": 5}})),
        json.dumps(valid_fields(seconds="long")),
        b"\xff\xfe",
    ],
)
def test_what_is_no_manifest_is_refused_in_one_line(tmp_path: Path, text: str | bytes) -> None:
    write_manifest(tmp_path, text)
    (tmp_path / "data.bin").write_bytes(b"abc")
    with pytest.raises(InputError, match=r"manifest\.json: "):
        Manifest.read(tmp_path)
    # As an input, a file beside such a manifest is simply read.
    assert fingerprint(tmp_path / "data.bin")["sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_no_manifest_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not the finished output of a stage"):
        Manifest.read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory"):
        Manifest.read(tmp_path / "file")


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_almost_manifests = st.dictionaries(
    st.sampled_from(["stage", "options", "inputs", "outputs", "counts", "seconds", "environment"]),
    _json_values,
).map(lambda fields: json.dumps(valid_fields(**fields)).encode())


@given(content=st.binary(max_size=200) | _json_values.map(repr).map(str.encode) | _almost_manifests)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_bytes_are_a_manifest_or_an_input_error(tmp_path: Path, content: bytes) -> None:
    write_manifest(tmp_path, content)
    (tmp_path / "data.bin").write_bytes(b"abc")
    assert fingerprint(tmp_path / "data.bin")["sha256"] == hashlib.sha256(b"abc").hexdigest()
    try:
        found = Manifest.read(tmp_path)
    except InputError:
        return
    with contextlib.suppress(InputError):
        found.check_outputs(tmp_path)


@given(
    fields=st.fixed_dictionaries(
        {
            "options": st.dictionaries(st.text(), st.integers() | st.text() | st.booleans()),
            "counts": st.dictionaries(st.text(), st.integers() | st.lists(st.integers())),
            "seconds": st.floats(min_value=0, allow_infinity=False),
        }
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_manifest_reads_as_it_was_written(tmp_path: Path, fields: dict[str, Any]) -> None:
    written = Manifest(stage="mine", inputs={}, **fields)
    written.write(tmp_path)
    assert Manifest.read(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == [manifest.FILENAME]


def test_verify_does_not_vouch_for_a_box_whose_files_are_not_listed(tmp_path: Path) -> None:
    with Stage.open(tmp_path / "box", "mine", options={}, inputs=[]) as stage:
        (stage.workspace / "data").write_text("abcdef")
        stage.finish(counts={})
    assert "1 files, 6 bytes" in run_command("tools/verify.py", "--box", tmp_path / "box").stdout
    write_manifest(tmp_path / "run", json.dumps(valid_fields(stage="train")))
    said = run_command("tools/verify.py", "--box", tmp_path / "run")
    assert said.returncode == 2
    assert "lists no files, and it has no checkpoint" in said.stderr
    assert said.stderr.count("\n") == 1
