"""Reading a Megatron checkpoint without building the model: arguments and weights.

Works without CUDA and without a process group, for any tensor and pipeline parallelism that the
checkpoint was saved with: the ``torch_dist`` format stores global tensors.
"""

import contextlib
import io
import json
import logging
import math
import re
import warnings
from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError
from megatron_sbp.manifest import fingerprints
from megatron_sbp.models.checkpoint_metadata import read_metadata

LATEST = "latest_checkpointed_iteration.txt"
STATE = "_extra_state"
"""torch's name for what a layer keeps beside its weights."""
INTEGRITY = "integrity.json"
"""What Megatron writes beside the files of a checkpoint with ``--verify-integrity``."""
_METADATA = ".metadata"
_COMMON = "common.pt"  # what older releases of Megatron keep the arguments in
_COMMON_ENTRY = "common_state/shard_0_1"  # where newer ones do
# What is no weight of the model: optimizer and random states, and the empty states of layers.
_OTHERS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine")


def is_megatron(directory: str | Path) -> bool:
    """Whether a directory looks like one that Megatron saved to."""
    return (Path(directory) / LATEST).is_file() or (Path(directory) / _METADATA).is_file()


class MegatronCheckpoint:
    """The newest checkpoint of a run.

    Args:
        load: What was given to Megatron as ``--save``, or one iteration's directory in it.

    Raises:
        InputError: If there is no checkpoint, or it is not in the ``torch_dist`` format.
    """

    def __init__(self, load: str | Path):
        self.directory = _newest(Path(load))
        """The directory of the iteration."""
        if not (self.directory / _METADATA).is_file():
            raise InputError(
                f"{self.directory}: has no {_METADATA}, so it is not a torch_dist checkpoint; "
                "save with --ckpt-format torch_dist"
            )

    def files(self) -> list[Path]:
        """Every file of the checkpoint, sorted."""
        return sorted(path for path in self.directory.iterdir() if path.is_file())

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of every file, by path.

        Raises:
            InputError: If Megatron has recorded others, as it does with ``--verify-integrity``.
        """
        found = fingerprints(self.files())
        for name, recorded in self._recorded().items():
            path = self.directory / name
            now = found.get(str(path), {"sha256": "missing"})["sha256"]
            if now != recorded:
                raise InputError(
                    f"{path}: is not as Megatron saved it (sha256 {now[:12]}; {INTEGRITY} says "
                    f"{recorded[:12]}); copy it again, or give an earlier checkpoint"
                )
        return found

    def _recorded(self) -> dict[str, str]:
        """SHA-256 by file name; nothing where Megatron has recorded none."""
        path = self.directory / INTEGRITY
        if not path.is_file():
            return {}
        try:
            recorded = json.loads(path.read_text())["files"]
            if not all(isinstance(value, str) for value in recorded.values()):
                raise ValueError("a checksum is no text")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._unreadable(INTEGRITY, error) from None
        return dict(recorded)

    @cached_property
    def args(self) -> Namespace:
        """Megatron's arguments of the run that saved it.

        Raises:
            InputError: If the checkpoint does not hold them.
        """
        _ = self._entries  # Says better what is wrong with the metadata.
        with _quiet():
            import megatron.core  # noqa: F401 (tells torch which classes arguments are made of)
            import torch

            try:
                if (self.directory / _COMMON).exists():
                    common = torch.load(
                        self.directory / _COMMON, map_location="cpu", weights_only=True
                    )
                else:
                    # Not by Megatron's own function, which would load any pickle.
                    (common,) = torch.load(self._bytes(_COMMON_ENTRY), weights_only=True)
                args = common["args"]
            except _torch_errors() as error:
                raise self._unreadable("the arguments", error) from None
        if not isinstance(args, Namespace):
            raise self._unreadable("the arguments", TypeError(f"they are a {type(args).__name__}"))
        return args

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight of the model."""
        return {name: tuple(entry.size) for name, entry in self._entries.items()}

    @cached_property
    def states(self) -> set[str]:
        """Names of the states that layers have beside their weights."""
        names = (name.split("/")[0] for name in self._metadata.state_dict_metadata)
        return {name for name in names if name.endswith(STATE)}

    @cached_property
    def _metadata(self) -> Any:
        try:
            return read_metadata(self.directory / _METADATA)
        except _torch_errors() as error:
            raise self._unreadable(_METADATA, error) from None

    @cached_property
    def _entries(self) -> dict[str, Any]:
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        return {
            name: entry
            for name, entry in self._metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith(_OTHERS)
        }

    def dtype(self, name: str) -> Any:
        """The type that a weight was saved in."""
        return self._entries[name].properties.dtype

    def read(self, name: str, layer: int | None = None) -> Any:
        """A weight, in the type it was saved in.

        Args:
            name: One of ``shapes``.
            layer: Of a weight that stacks all layers: the one to read, and no other.

        Raises:
            InputError: If a file is damaged, or a number is not finite.
        """
        import torch
        from torch.distributed.checkpoint import LoadPlan
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
        from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

        entry = self._entries[name]
        offsets, sizes = torch.Size([0] * len(entry.size)), entry.size
        if layer is not None:
            offsets, sizes = torch.Size([layer, *offsets[1:]]), torch.Size([1, *sizes[1:]])
        wanted = ChunkStorageMetadata(offsets=offsets, sizes=sizes)
        try:
            items = create_read_items_for_chunk_list(name, entry, [wanted])
            if sum(math.prod(item.lengths) for item in items) != math.prod(sizes):
                raise ValueError(f"its pieces are not all of {list(sizes)}")
            if math.prod(sizes) * entry.properties.dtype.itemsize > self._size:
                raise ValueError(f"{list(sizes)} is more than the files hold")
            target = torch.empty(sizes, dtype=entry.properties.dtype)
            self._reader.read_data(LoadPlan(items), _Target(target)).wait()
        except _torch_errors() as error:
            raise self._unreadable(name, error) from None
        if target.numel() and not torch.stack(target.aminmax()).isfinite().all():
            where = "" if layer is None else f" of layer {layer}"
            raise InputError(
                f"{self.directory}: {name}{where} is not all finite numbers; the run had failed "
                "before it saved, or a file is damaged; give an earlier checkpoint"
            )
        return target if layer is None else target[0]

    @cached_property
    def _size(self) -> int:
        return sum(path.stat().st_size for path in self.files())

    def _bytes(self, name: str) -> io.BytesIO:
        """An entry that is no tensor, as it was saved."""
        from torch.distributed.checkpoint.metadata import MetadataIndex

        stored = self._metadata.storage_data[MetadataIndex(name)]
        with open(self.directory / stored.relative_path, "rb") as file:
            file.seek(stored.offset)
            return io.BytesIO(file.read(min(stored.length, self._size)))

    @cached_property
    def _reader(self) -> Any:
        from torch.distributed.checkpoint import FileSystemReader

        reader = FileSystemReader(self.directory)
        reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        return reader

    def _unreadable(self, what: str, error: BaseException) -> InputError:
        import torch

        reason = " ".join(str(error).split()) or type(error).__name__
        return InputError(
            f"{self.directory}: cannot read {what} ({reason[:200]}); the checkpoint is damaged, "
            f"not Megatron's, or of a newer torch than {torch.__version__}: save it again, or read "
            "it with the torch that saved it"
        )


class _Target:
    """A tensor to read into; what torch's reader asks of its planner.

    Args:
        tensor: As large as all that is read.
    """

    def __init__(self, tensor: Any):
        self._tensor = tensor

    def resolve_tensor(self, item: Any) -> Any:
        """The part of the tensor that an item of the plan fills."""
        part = self._tensor
        for axis, (start, length) in enumerate(zip(item.dest_offsets, item.lengths, strict=True)):
            part = part.narrow(axis, start, length)
        return part

    def commit_tensor(self, item: Any, tensor: Any) -> None:
        """Nothing: it has been read into its place."""


def _torch_errors() -> tuple[type[BaseException], ...]:
    """Whatever a damaged file makes torch and pickle raise."""
    from torch.distributed.checkpoint.api import CheckpointException

    return Exception, CheckpointException  # the latter is no Exception


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what is said about missing CUDA, Apex and process groups: none is needed here."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _newest(load: Path) -> Path:
    if (load / _METADATA).is_file():
        return load
    try:
        latest = (load / LATEST).read_text(errors="replace").strip()
    except OSError as error:
        raise InputError(
            f"{load / LATEST}: {error.strerror}; give the directory that Megatron saved to"
        ) from None
    if latest != "release" and not re.fullmatch("[0-9]{1,18}", latest):
        raise InputError(f"{load / LATEST}: holds {latest!r:.40}, not an iteration; save again")
    directory = load / (latest if latest == "release" else f"iter_{int(latest):07d}")
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory, though {load / LATEST} names it; "
            "write an iteration that is there into that file"
        )
    return directory
