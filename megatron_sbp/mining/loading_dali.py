"""Blocks of embeddings by NVIDIA DALI's numpy reader.

Its CPU reader reads the part of a shard that is asked for, and DALI copies it to the GPU. Its GPU
reader reads from storage to the GPU's memory (GPU direct storage), but always whole files, of which
it then cuts the part out; so it is given whole shards, one after another.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError, require
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.loading import Loader, Shards, one_ahead

if TYPE_CHECKING:
    import torch

_THREADS = 4  # That copy from the page cache.
_PIPELINES = 4  # One per shard, of those used last.
_MOST_ROWS = 2**31 - 1  # DALI's regions are int32.
_WHOLE_SHARD = 1 << 30  # Bytes; the GPU holds up to three shards that are read whole.


def open_dali(embeddings: Embeddings, device: "torch.device") -> Loader:
    """A loader that reads with DALI: on the GPU if that works here, else on the CPU.

    Whether the GPU reader works is seen by having it read a shard. Shards of more than 1 GiB are
    read by the CPU reader.

    Raises:
        InputError: If DALI cannot be imported, or a shard has more rows than it can count.
    """
    require("nvidia.dali", package="nvidia-dali-cuda130", extra="gpu")
    rows = int(np.diff(embeddings.offsets).max())
    if rows > _MOST_ROWS:
        raise InputError(
            f"{embeddings.directory}: a shard has {rows:,} rows, DALI counts {_MOST_ROWS:,}; "
            "choose loader map or pinned, or smaller shards"
        )
    if device.type == "cuda" and 2 * rows * embeddings.dimensions <= _WHOLE_SHARD:
        direct = WholeShardLoader(embeddings, device)
        try:
            next(direct.load([(0, 1)]))
            return direct
        except InputError:
            raise
        except Exception as error:  # DALI turns its errors into many types.
            reason = " ".join(str(error).split("Stacktrace")[0].split())
            print(
                f"warning: DALI's GPU reader does not work here ({reason}); its CPU reader is used",
                file=sys.stderr,
            )
    return RegionLoader(embeddings, device)


def _pipeline(device: "torch.device", define: Callable[[], Any]) -> Any:
    """A DALI pipeline of one sample a run; ``define`` gives its output."""
    import torch
    from nvidia.dali import Pipeline

    device_id = None
    if device.type == "cuda":
        device_id = torch.cuda.current_device() if device.index is None else device.index
    pipeline = Pipeline(
        batch_size=1, num_threads=_THREADS, device_id=device_id, prefetch_queue_depth=1
    )
    with pipeline:
        pipeline.set_outputs(define())
    return pipeline


def _receive(pipeline: Any, device: "torch.device") -> "torch.Tensor":
    """Wait for the output of a pipeline that was run; it is not copied."""
    import torch

    stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
    # The stream also decides when DALI uses the memory again after the tensor is gone.
    (outputs,) = pipeline.share_outputs(cuda_stream=stream)
    rows = torch.from_dlpack(outputs[0])
    pipeline.release_outputs()
    return rows


class RegionLoader(Shards):
    """DALI's CPU reader reads one region per shard; DALI copies it to a GPU."""

    name = "dali-cpu"

    def load(self, ranges: Iterable[Block]) -> Iterator["torch.Tensor"]:
        """See ``Loader``."""
        import torch

        # Of this call alone: a pipeline gives its outputs in the order they were asked for.
        pipelines = lru_cache(maxsize=_PIPELINES)(self._define)

        def begin(wanted: Block) -> Callable[[], "torch.Tensor"]:
            running = []
            for shard, first, after in self.embeddings.spans(*wanted):
                pipeline = pipelines(shard)
                pipeline.feed_input("region", [np.array([first, after], dtype=np.int32)])
                pipeline.schedule_run()
                running.append(pipeline)

            def receive() -> "torch.Tensor":
                pieces = [_receive(pipeline, self.device) for pipeline in running]
                rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
                self.check(rows, wanted[0])
                return rows

            return receive

        yield from one_ahead(begin, ranges)

    def _define(self, shard: int) -> Any:
        from nvidia.dali import fn, types

        def region() -> Any:
            bounds = fn.external_source(name="region", dtype=types.DALIDataType.INT32, ndim=1)
            rows = fn.readers.numpy(
                files=[str(self.embeddings.paths[shard])],
                cache_header_information=True,
                roi_axes=[0],
                roi_start=bounds[0:1],
                roi_end=bounds[1:2],
            )
            return rows.gpu() if self.device.type == "cuda" else rows

        return _pipeline(self.device, region)


class WholeShardLoader(Shards):
    """DALI's GPU reader reads whole shards straight into the GPU's memory.

    Ranges are cut from them, and should follow one another: then every shard is read once, and the
    next one while the caller works. On a CPU DALI's CPU reader does the same.
    """

    name = "dali-gpu"

    def load(self, ranges: Iterable[Block]) -> Iterator["torch.Tensor"]:
        """See ``Loader``."""
        import torch

        sweep = _Sweep(self.embeddings, self.device)
        for wanted in ranges:
            spans = self.embeddings.spans(*wanted)
            # Copied, so that a range that the caller keeps does not keep its whole shard.
            rows = torch.cat([sweep.shard(shard)[first:after] for shard, first, after in spans])
            self.check(rows, wanted[0])
            yield rows
            del rows


class _Sweep:
    """Whole shards, expected in their order; DALI reads the next one unasked.

    Args:
        embeddings: The shards.
        device: Where they are wanted.
    """

    def __init__(self, embeddings: Embeddings, device: "torch.device"):
        self._paths, self._device = embeddings.paths, device
        self._numbers = np.flatnonzero(np.diff(embeddings.offsets)).tolist()
        self._coming: list[int] = []  # The shards that the pipeline will give, the next one last.
        self._pipeline: Any = None
        self._held: tuple[int, torch.Tensor] | None = None

    def shard(self, number: int) -> "torch.Tensor":
        """Rows of a shard, float16 [rows, d]."""
        if self._held is None or self._held[0] != number:
            self._held = None
            if not self._coming or self._coming[-1] != number:
                self._start(number)
            self._pipeline.schedule_run()
            self._held = self._coming.pop(), _receive(self._pipeline, self._device)
        return self._held[1]

    def _start(self, number: int) -> None:
        from nvidia.dali import fn

        numbers = [other for other in self._numbers if other >= number]
        files: list[Path] = [self._paths[other] for other in numbers]
        reader = "gpu" if self._device.type == "cuda" else "cpu"
        self._coming = numbers[::-1]
        self._pipeline = _pipeline(
            self._device,
            lambda: fn.readers.numpy(
                device=reader, files=list(map(str, files)), cache_header_information=True
            ),
        )
