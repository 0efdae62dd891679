"""The ``.metadata`` of a checkpoint: a pickle, of which nothing but its own classes is made.

``torch.distributed.checkpoint`` unpickles the file as it is, and a pickle may call any function.
Checkpoints are passed from hand to hand, so here only the classes that torch writes are known.
"""

import io
import pickle
from pathlib import Path, PurePath
from typing import Any

_CHECKPOINT = "torch.distributed.checkpoint"
_TYPES = """bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 bfloat16 float32 float64
complex64 complex128 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz""".split()
_KNOWN = {
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # where Python 3.13 has it
    "torch": {"Size", "device", *_TYPES},
    "torch.serialization": {"_get_layout"},
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo"},
    f"{_CHECKPOINT}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
}
"""Module -> what torch's writers take from it."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A class of ``_KNOWN``."""
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"{module}.{name} has no place in it")
        return super().find_class(module, name)


def read_metadata(path: Path) -> Any:
    """Read the ``Metadata`` of ``torch.distributed.checkpoint``.

    Raises:
        Exception: Of any kind, if the file is damaged, makes anything else, or names files outside
            of its directory.
    """
    # In memory: of a file as large as a damaged length says, the unpickler would make room for.
    metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
    for name, entry in metadata.state_dict_metadata.items():
        _check(name, entry)
    for stored in metadata.storage_data.values():
        name = stored.relative_path
        if name in ("", "..") or PurePath(name).name != name:
            raise ValueError(f"{name!r} is no file of its directory")
    return metadata


def _check(name: Any, entry: Any) -> None:
    """Raise unless an entry has what is asked of it: a pickle gives objects any attributes."""
    import torch
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    if not isinstance(name, str):
        raise TypeError(f"{name!r:.40} is no name")
    if isinstance(entry, TensorStorageMetadata) and not (
        isinstance(entry.size, torch.Size) and isinstance(entry.properties.dtype, torch.dtype)
    ):
        raise TypeError(f"{name} has no size or no type")
