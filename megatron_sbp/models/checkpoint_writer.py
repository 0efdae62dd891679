"""Writing a Megatron checkpoint without building the model, one weight in memory at a time.

The result is in the ``torch_dist`` format, which Megatron loads into any tensor and pipeline
parallelism. It is a release, not an iteration: a run that loads it begins at iteration 0, without
states of an optimizer or of random numbers.
"""

import io
import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sbp.manifest import fingerprint
from megatron_sbp.models.checkpoint import INTEGRITY, LATEST, STATE

RELEASE = "release"
_FORMAT = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
# Modules of the local layer spec and of Transformer Engine's that ask for a state of their own
# besides weights. It is empty without FP8, but a checkpoint without it is refused.
_STATES = [
    *("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention"),
    *("self_attention.q_layernorm", "self_attention.k_layernorm"),
    *("mlp.linear_fc1", "mlp.linear_fc2"),
]
_FINAL_STATE = f"decoder.final_layernorm.{STATE}/shard_0_1"


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a checkpoint that is to be written."""

    name: str
    """Megatron's name; the layers of one name are stacked."""
    layer: int | None
    """Its layer, if it is in one."""
    shape: tuple[int, ...]
    """Of this layer alone."""
    read: Callable[[], Any]
    """Gives the tensor."""


def write(directory: Path, args: Namespace, weights: Sequence[StoredWeight], dtype: Any) -> None:
    """Write a checkpoint into a directory, as Megatron does into the one given with ``--save``.

    Args:
        directory: Is made; gets the checkpoint and the file that names the latest.
        args: The arguments that ``--use-checkpoint-args`` finds.
        weights: Every weight of the model, layers ascending.
        dtype: Type of all of them.
    """
    from torch.distributed.checkpoint import FileSystemWriter, SavePlan
    from torch.distributed.checkpoint.default_planner import create_default_global_save_plan

    release = directory / RELEASE
    release.mkdir(parents=True)
    sources = _Sources(weights, dtype, args)
    # What is copied ahead of writing would go through CUDA, where there is a device.
    writer = FileSystemWriter(release, per_thread_copy_ahead=0)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(SavePlan(sources.items()))
    plans, metadata = create_default_global_save_plan([plan])
    (plan,) = writer.prepare_global_plan(plans)
    writer.finish(metadata, [writer.write_data(plan, sources).wait()])
    (release / "metadata.json").write_text(json.dumps(_FORMAT))
    sums = {path.name: fingerprint(path)["sha256"] for path in sorted(release.iterdir())}
    (release / INTEGRITY).write_text(json.dumps({"algorithm": "sha256", "files": sums}))
    (directory / LATEST).write_text(RELEASE)


class _Sources:
    """Where torch's writer gets what it writes; what it asks of its planner."""

    def __init__(self, weights: Sequence[StoredWeight], dtype: Any, args: Namespace):
        self._weights, self._dtype, self._layers = weights, dtype, args.num_layers
        self._reads: dict[Any, Callable[[], Any]] = {}
        states = [
            f"decoder.layers.{module}.{STATE}/shard_{layer}_{self._layers}"
            for module in _STATES
            for layer in range(self._layers)
        ]
        common = {"args": args, "checkpoint_version": 3.0, "iteration": 0}
        self._objects: dict[str, Any] = dict.fromkeys([*states, _FINAL_STATE])
        self._objects["common_state/shard_0_1"] = common

    def items(self) -> list[Any]:
        """What there is to write: every weight of every layer, and every object."""
        return [*self._tensors(), *self._others()]

    def _tensors(self) -> Iterator[Any]:
        import torch
        from torch.distributed.checkpoint.metadata import (
            ChunkStorageMetadata,
            MetadataIndex,
            TensorProperties,
        )
        from torch.distributed.checkpoint.planner import (
            TensorWriteData,
            WriteItem,
            WriteItemType,
        )

        for weight in self._weights:
            whole, sizes, offsets = weight.shape, weight.shape, (0,) * len(weight.shape)
            if weight.layer is not None:
                whole, sizes, offsets = (
                    (self._layers, *whole),
                    (1, *sizes),
                    (weight.layer, *offsets),
                )
            index = MetadataIndex(weight.name, torch.Size(offsets))
            self._reads[index] = weight.read
            chunk = ChunkStorageMetadata(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
            properties = TensorProperties(dtype=self._dtype)
            data = TensorWriteData(chunk=chunk, properties=properties, size=torch.Size(whole))
            yield WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)

    def _others(self) -> Iterator[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex
        from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

        for name in self._objects:
            yield WriteItem(index=MetadataIndex(name), type=WriteItemType.BYTE_IO)

    def resolve_data(self, item: Any) -> Any:
        """The tensor of an item, or the bytes of an object, which Megatron puts into a list."""
        import torch

        if item.tensor_data is not None:
            tensor = self._reads[item.index]()
            return tensor.view(item.tensor_data.chunk.sizes)
        stream = io.BytesIO()
        torch.save([self._objects[item.index.fqn]], stream)
        return stream
