"""Reading a Megatron checkpoint without building the model: arguments and whole tensors.

Works without CUDA and without a process group, for any tensor and pipeline parallelism that the
checkpoint was saved with: the ``torch_dist`` format stores global tensors.
"""

import contextlib
import logging
import warnings
from argparse import Namespace
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError

_LATEST = "latest_checkpointed_iteration.txt"
_METADATA = ".metadata"
# What is no weight of the model: optimizer and random states, and the empty states of layers.
_OTHERS = ("optimizer.", "chained_", "rng_state", "rerun_state_machine")


def is_megatron(directory: str | Path) -> bool:
    """Whether a directory looks like one that Megatron saved to."""
    return (Path(directory) / _LATEST).is_file() or (Path(directory) / _METADATA).is_file()


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

    @cached_property
    def args(self) -> Namespace:
        """Megatron's arguments of the run that saved it.

        Raises:
            InputError: If the checkpoint does not hold them.
        """
        _ = self._entries  # Says better than Megatron what is wrong with the metadata.
        with _quiet():
            from megatron.core import dist_checkpointing

            try:
                return dist_checkpointing.load_common_state_dict(str(self.directory))["args"]
            except _torch_errors() as error:
                raise self._unreadable("the arguments", error) from None

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight of the model."""
        return {name: tuple(entry.size) for name, entry in self._entries.items()}

    @cached_property
    def _entries(self) -> dict[str, Any]:
        from torch.distributed.checkpoint import FileSystemReader
        from torch.distributed.checkpoint.metadata import TensorStorageMetadata

        try:
            metadata = FileSystemReader(self.directory).read_metadata()
        except _torch_errors() as error:
            raise self._unreadable(_METADATA, error) from None
        return {
            name: entry
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not name.startswith(_OTHERS)
        }

    def read(self) -> dict[str, Any]:
        """Name -> tensor of every weight of the model, in the type it was saved in.

        Raises:
            InputError: If a file is damaged.
        """
        import torch
        from torch.distributed.checkpoint import FileSystemReader, load

        tensors = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in self._entries.items()
        }
        try:
            with _quiet():
                load(tensors, storage_reader=FileSystemReader(self.directory), no_dist=True)
        except _torch_errors() as error:
            raise self._unreadable("the weights", error) from None
        return tensors

    def _unreadable(self, what: str, error: BaseException) -> InputError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return InputError(
            f"{self.directory}: cannot read {what} ({reason[:200]}); "
            "the checkpoint is damaged or not Megatron's, save it again"
        )


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
        latest = (load / _LATEST).read_text().strip()
    except OSError as error:
        raise InputError(
            f"{load / _LATEST}: {error.strerror}; give the directory that Megatron saved to"
        ) from None
    if latest != "release" and not latest.isdecimal():
        raise InputError(f"{load / _LATEST}: holds {latest!r}, not an iteration; save again")
    directory = load / (latest if latest == "release" else f"iter_{int(latest):07d}")
    if not directory.is_dir():
        raise InputError(
            f"{directory}: no such directory, though {load / _LATEST} names it; "
            "write an iteration that is there into that file"
        )
    return directory
