"""Checkpoints from anywhere: no pickle in them runs, and damage is named."""

import io
import json
import pickle
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import megatron.core  # noqa: F401 (takes memory that reading is not to be charged with)
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp.errors import InputError
from megatron_sbp.models import layout
from megatron_sbp.models.checkpoint import INTEGRITY, MegatronCheckpoint
from megatron_sbp.models.checkpoint_metadata import read_metadata
from megatron_sbp.models.checkpoint_writer import StoredWeight, write
from tests.hostile.fuzz import damaged, fuzzed, refused

WEIGHT = torch.arange(24.0).reshape(4, 6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "whole"
    directory.mkdir()
    weights = [StoredWeight(layout.EMBEDDING, None, (4, 6), WEIGHT.clone)]
    write(directory, Namespace(num_layers=1, hidden_size=6), weights, torch.float32)
    assert torch.equal(MegatronCheckpoint(directory).read(layout.EMBEDDING), WEIGHT)
    return directory


def copy(whole: Path, directory: Path) -> tuple[MegatronCheckpoint, Path]:
    """A copy, and where its files lie."""
    shutil.copytree(whole, directory)
    checkpoint = MegatronCheckpoint(directory)
    return checkpoint, checkpoint.directory


class Caller:
    """A pickle of it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_metadata_that_call_are_refused(whole: Path, tmp_path: Path) -> None:
    checkpoint, files = copy(whole, tmp_path / "copy")
    (files / ".metadata").write_bytes(pickle.dumps(Caller(tmp_path / "made")))
    for read in (lambda: checkpoint.shapes, lambda: checkpoint.args):
        refused(read, r"cannot read \.metadata \(.*open has no place in it\)")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name",
    ["os.system", "torch.load", "torch.distributed.checkpoint.metadata.os.system", "builtins.eval"],
)
def test_functions_by_whatever_name(name: str, tmp_path: Path) -> None:
    module, _, function = name.rpartition(".")
    (tmp_path / ".metadata").write_bytes(f"c{module}\n{function}\n(S'x'\ntR.".encode())
    with pytest.raises(pickle.UnpicklingError, match="has no place in it"):
        read_metadata(tmp_path / ".metadata")
    # By a dotted name, which protocol 4 looks up part by part.
    through = b"serialization.os.system"
    raw = b"\x80\x04\x8c\x05torch\x8c" + bytes([len(through)]) + through + b"\x93."
    (tmp_path / ".metadata").write_bytes(raw)
    with pytest.raises(pickle.UnpicklingError, match="has no place in it"):
        read_metadata(tmp_path / ".metadata")


@pytest.mark.parametrize("old", [False, True], ids=["common_state", "common.pt"])
def test_arguments_that_call_are_refused(old: bool, whole: Path, tmp_path: Path) -> None:
    checkpoint, files = copy(whole, tmp_path / "copy")
    hostile = [{"args": Caller(tmp_path / "made")}]
    if old:
        torch.save(hostile[0], files / "common.pt")
    else:
        content = io.BytesIO()
        torch.save(hostile, content)
        metadata = read_metadata(files / ".metadata")
        (entry,) = (index for index in metadata.storage_data if "common_state" in index.fqn)
        stored = metadata.storage_data[entry]
        stored.offset, stored.length = (files / stored.relative_path).stat().st_size, content.tell()
        with open(files / stored.relative_path, "ab") as file:
            file.write(content.getvalue())
        (files / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(lambda: MegatronCheckpoint(checkpoint.directory).args, "cannot read the arguments")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "../../x", "a/b", ""])
def test_files_outside_of_the_checkpoint(path: str, whole: Path, tmp_path: Path) -> None:
    checkpoint, files = copy(whole, tmp_path / "copy")
    metadata = read_metadata(files / ".metadata")
    for stored in metadata.storage_data.values():
        stored.relative_path = path
    (files / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(lambda: checkpoint.shapes, "is no file of its directory")


@pytest.mark.parametrize("size", [(2**40, 2**20), (4, 7), (5, 6)])
def test_weights_that_are_not_all_there(size: tuple[int, int], whole: Path, tmp_path: Path) -> None:
    """Else what happened to be in memory would be taken for weights."""
    _, files = copy(whole, tmp_path / "copy")
    metadata = read_metadata(files / ".metadata")
    metadata.state_dict_metadata[layout.EMBEDDING].size = torch.Size(size)
    (files / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(lambda: MegatronCheckpoint(files).read(layout.EMBEDDING), "its pieces are not all of")


@pytest.mark.parametrize("attribute", ["state_dict_metadata", "properties", "size", "dtype", ""])
def test_metadata_without_what_is_asked_of_it(attribute: str, whole: Path, tmp_path: Path) -> None:
    _, files = copy(whole, tmp_path / "copy")
    metadata = read_metadata(files / ".metadata")
    entry = metadata.state_dict_metadata[layout.EMBEDDING]
    if not attribute:  # of a name that is none
        metadata.state_dict_metadata[7] = entry
    elif attribute == "dtype":
        entry.properties.dtype = 7
    elif attribute == "size":
        entry.size = 24
    else:
        delattr(entry if attribute == "properties" else metadata, attribute)
    (files / ".metadata").write_bytes(pickle.dumps(metadata))
    refused(lambda: MegatronCheckpoint(files).shapes, r"cannot read \.metadata")


@fuzzed(40)
@given(data=st.data())
def test_damaged_metadata(
    data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, files = copy(whole, tmp_path_factory.mktemp("damaged") / "copy")
    raw = (files / ".metadata").read_bytes()
    (files / ".metadata").write_bytes(data.draw(damaged(raw)))
    checkpoint = MegatronCheckpoint(files)
    try:
        args = checkpoint.args
        shapes = checkpoint.shapes
        weights = {name: checkpoint.read(name) for name in shapes}
    except InputError:
        return
    assert args.hidden_size == 6
    for name, weight in weights.items():
        assert tuple(weight.shape) == shapes[name]


@fuzzed(40)
@given(data=st.data())
def test_damaged_files_are_named(
    data: st.DataObject, whole: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """By the checksums that Megatron writes with --verify-integrity, as our writer does."""
    checkpoint, files = copy(whole, tmp_path_factory.mktemp("damaged") / "copy")
    path = data.draw(st.sampled_from(checkpoint.files()))
    raw = path.read_bytes()
    path.write_bytes(data.draw(damaged(raw)))
    if path.read_bytes() == raw:
        assert set(checkpoint.fingerprints()) == {str(file) for file in files.iterdir()}
    elif path.name != INTEGRITY:
        refused(checkpoint.fingerprints, f"{path.name}: is not as Megatron saved it")
    else:
        # Whatever is in the list: it is refused, or it says of each file what that file is.
        try:
            found = checkpoint.fingerprints()
        except InputError:
            return
        for name, checksum in json.loads(path.read_text())["files"].items():
            assert found[str(files / name)]["sha256"] == checksum


def test_megatron_finds_the_checksums_right(whole: Path) -> None:
    from megatron.core.dist_checkpointing.validation import verify_integrity_manifest

    verify_integrity_manifest(str(MegatronCheckpoint(whole).directory))


def test_a_lost_file_is_named(whole: Path, tmp_path: Path) -> None:
    checkpoint, files = copy(whole, tmp_path / "copy")
    (files / "metadata.json").unlink()
    refused(
        checkpoint.fingerprints, r"metadata\.json: is not as Megatron saved it \(sha256 missing"
    )
    (files / INTEGRITY).unlink()
    assert len(checkpoint.fingerprints()) == len(checkpoint.files())


@pytest.mark.parametrize("text", ["", "-1", "../x", "release/..", "٣٣", "9" * 5000, "\0", "\udcff"])
def test_the_name_of_the_newest_iteration(text: str, whole: Path, tmp_path: Path) -> None:
    latest = tmp_path / "latest_checkpointed_iteration.txt"
    latest.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(lambda: MegatronCheckpoint(tmp_path), "holds .*, not an iteration|no such directory")
