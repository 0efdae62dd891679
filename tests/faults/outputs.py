"""Whether a run left what it should: the same content, and no other file."""

import filecmp
import re
from collections import Counter
from pathlib import Path
from typing import Any

from megatron_sbp.manifest import Manifest
from megatron_sbp.metrics import read_metrics
from tests.faults.commands import CACHE, Command
from tests.faults.job import Job

# How long it took, and on how many ranks.
_TIMES = {"generation_seconds", "tokens_per_second", "search"}
_LOSSES = re.compile(r"loss|gain|supervised tokens|grad-norm|learning-rate")
# Of torch: a cache for compiled code, which it makes as it is imported.
_NOT_OURS = "torchinductor_"


class Wrong(Exception):
    """A run ended, and what it left is not what it should be."""


def check_same(command: Command, output: Path, reference: Path, job: Job) -> None:
    """Raise ``Wrong`` unless the box is that of a clean run, and nothing lies beside it.

    Args:
        command: What was run.
        output: Directory that its box lies in.
        reference: The box of a clean run.
        job: The last run.
    """
    box = output / command.box
    _check_names(output, [command.box, CACHE] if command.trains else [command.box])
    if files(box) != files(reference):
        raise Wrong(f"files {sorted(files(box) ^ files(reference))} are in one of the two boxes")
    if command.trains:
        extra = _kinds(output / CACHE) - _kinds(reference.parent / CACHE)
        if extra:
            raise Wrong(f"the cache of indexes holds {sorted(extra.elements())} too many")
        _check_training(box, reference)
    else:
        _check_files(box, reference)
    left = [name for name in job.left if _NOT_OURS not in name]
    if left:
        raise Wrong(f"left behind: {left}")


def files(directory: Path) -> set[str]:
    """Names of all that lies below a directory."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def _kinds(cache: Path) -> Counter[str]:
    """Names of the files of an index cache without the checksum that they begin with.

    It depends on where the corpus lies.
    """
    return Counter(name.partition("-")[2] for name in files(cache))


def _check_names(output: Path, wanted: list[str]) -> None:
    found = sorted(path.name for path in output.iterdir())
    if found != sorted(wanted):
        raise Wrong(f"{found} were left, and not {sorted(wanted)}")


def _check_files(box: Path, reference: Path) -> None:
    for name in files(box):
        first, second = box / name, reference / name
        if first.is_dir() or name == "manifest.json":
            continue
        if not filecmp.cmp(first, second, shallow=False):
            raise Wrong(f"{name} has other bytes than that of a clean run")
    found, wanted = Manifest.read(box), Manifest.read(reference)
    found.check_outputs(box)
    if _deciding(found) != _deciding(wanted):
        raise Wrong("the manifest differs in more than times, machine and paths")


def _deciding(manifest: Manifest) -> dict[str, Any]:
    """What must be the same in the manifests of two runs; inputs may lie elsewhere."""
    return {
        "options": manifest.options,
        "inputs": [(Path(name).name, entry) for name, entry in manifest.inputs.items()],
        "outputs": {name: entry["sha256"] for name, entry in manifest.outputs.items()},
        "counts": {
            name: value
            for name, value in manifest.counts.items()
            if name not in _TIMES | {"corpus", "checkpoint"}
        },
    }


def _check_training(box: Path, reference: Path) -> None:
    """Compare losses and the last checkpoint, optimizer states included, bit for bit."""
    losses, wanted = (
        {name: values for name, values in read_metrics(run).items() if _LOSSES.search(name)}
        for run in (box, reference)
    )
    if losses != wanted or not wanted:
        names = [name for name in wanted if losses.get(name) != wanted[name]]
        raise Wrong(f"{names} are not those of a clean run")
    found, last = (_Checkpoint(run) for run in (box, reference))
    if found.iteration != last.iteration:
        raise Wrong(f"the last checkpoint is {found.iteration}, not {last.iteration}")
    if different := found.differing(last):
        raise Wrong(f"{found.iteration}: {different} are not those of a clean run")


class _Checkpoint:
    """All tensors of the newest checkpoint of a run."""

    def __init__(self, run: Path):
        import torch
        from torch.distributed.checkpoint import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata
        from torch.distributed.checkpoint.state_dict_loader import load

        number = int((run / "latest_checkpointed_iteration.txt").read_text())
        self.iteration = f"iter_{number:07d}"
        reader = FileSystemReader(run / self.iteration)
        self.tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        load(self.tensors, storage_reader=reader, no_dist=True)

    def differing(self, other: "_Checkpoint") -> list[str]:
        """Names of tensors that are not equal in both."""
        import torch

        names = self.tensors.keys() | other.tensors.keys()
        both = self.tensors.keys() & other.tensors.keys()
        return sorted(
            name
            for name in names
            if name not in both or not torch.equal(self.tensors[name], other.tensors[name])
        )
