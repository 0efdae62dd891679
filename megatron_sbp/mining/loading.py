"""Blocks of embeddings on the device that multiplies them, the next one on its way meanwhile.

Rows are checked whichever way they come: finite, and of length 1 (to 1%), as ``Embeddings`` does.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError, require
from megatron_sbp.mining.layout import Block

if TYPE_CHECKING:
    import torch


# Numbers checked at a time on a CPU: they stay in its cache, and torch starts no threads for them,
# which would take cores from the products.
_CHECKED = 1 << 15


class Loader(Protocol):
    """A way for embeddings to get from their shards to the device."""

    name: str
    """What the manifest says: map, pinned, dali-cpu or dali-gpu."""

    def load(self, ranges: Iterable[Block]) -> Iterator["torch.Tensor"]:
        """Rows of one range of documents after another.

        While the caller works on a range, the next one is read and copied; ranges are taken from
        ``ranges`` one ahead, in the caller's thread. Closing the iterator ends the reading.

        Args:
            ranges: Of at least one document each.

        Returns:
            float16 [documents of the range, d] on the device, to be read only, and to be used on
            the CUDA stream that was current when it was handed out.

        Raises:
            InputError: If a row is not finite or not of length 1; the document is named.
        """


def open_loader(
    embeddings: Embeddings,
    device: "torch.device",
    wanted: Literal["auto", "map", "pinned", "dali"],
) -> Loader:
    """The loader that was asked for, or the best one for the device.

    ``auto`` is ``map`` on a CPU, and on a GPU ``dali`` where DALI can be imported, else ``pinned``.

    Raises:
        InputError: If DALI is wanted and cannot be imported, or the loader is not for the device.
    """
    on_cpu = device.type == "cpu"
    if wanted == "auto":
        wanted = "map" if on_cpu else "dali" if _has_dali() else "pinned"
    if wanted == "dali":
        from megatron_sbp.mining.loading_dali import open_dali

        return open_dali(embeddings, device)
    if (wanted == "map") != on_cpu:
        fit = "map" if on_cpu else "pinned"
        raise InputError(f"loader {wanted}: is not for device {device}; choose {fit}, or auto")
    return MapLoader(embeddings) if on_cpu else PinnedLoader(embeddings, device)


def _has_dali() -> bool:
    try:
        require("nvidia.dali", package="nvidia-dali-cuda130", extra="gpu")
    except InputError:
        return False
    return True


def one_ahead[A, B](begin: Callable[[A], Callable[[], B]], items: Iterable[A]) -> Iterator[B]:
    """Results of work on items, in order, each begun before the caller gets the one before.

    Args:
        begin: Begins the work on an item and gives the function that waits for its result.
        items: Taken one ahead.
    """
    items = iter(items)
    waiting = [begin(item) for item in islice(items, 1)]
    while waiting:
        result = waiting.pop()()
        waiting += [begin(item) for item in islice(items, 1)]
        yield result
        del result  # From here on only the caller may still hold it.


@contextmanager
def _reader() -> Iterator[ThreadPoolExecutor]:
    """A thread that reads ahead.

    Nobody waits for its end: the garbage collector may close a generator that was not used up, at
    any moment, within ``threading`` itself too, where to join a thread is a deadlock.
    """
    thread = ThreadPoolExecutor(1)
    try:
        yield thread
    finally:
        thread.shutdown(wait=False, cancel_futures=True)


class Shards:
    """What every loader knows of the embeddings: where rows lie, and how to check them.

    Args:
        embeddings: Every document's.
        device: Where the rows are wanted.
    """

    def __init__(self, embeddings: Embeddings, device: "torch.device"):
        self.embeddings, self.device = embeddings, device

    def views(self, start: int, stop: int) -> list["torch.Tensor"]:
        """The memory-mapped rows of a range, a tensor per shard; nothing is read yet."""
        import warnings

        import torch

        with warnings.catch_warnings(action="ignore"):  # They are read-only; nobody writes to them.
            return [
                torch.from_numpy(np.asarray(self.embeddings.shard(shard)[first:after]))
                for shard, first, after in self.embeddings.spans(start, stop)
            ]

    def check(self, rows: "torch.Tensor", start: int) -> None:
        """Refuse rows, of the document ``start`` and those after it, that are not unit vectors.

        Raises:
            InputError: It names the document.
        """
        import torch

        step = max(1, _CHECKED // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
        norms = torch.cat(
            [
                torch.linalg.vector_norm(some, dim=1, dtype=torch.float32)
                for some in rows.split(step)
            ]
        )
        self.embeddings.refuse(norms.cpu().numpy(), start + np.arange(len(rows)))


class MapLoader(Shards):
    """The memory maps themselves; a thread has the next range read from the disk.

    A range inside one shard is not copied.
    """

    name = "map"

    def __init__(self, embeddings: Embeddings):
        import torch

        super().__init__(embeddings, torch.device("cpu"))

    def load(self, ranges: Iterable[Block]) -> Iterator["torch.Tensor"]:
        """See ``Loader``."""
        with _reader() as thread:

            def begin(wanted: Block) -> Callable[[], "torch.Tensor"]:
                return thread.submit(self._read, wanted[0], self.views(*wanted)).result

            yield from one_ahead(begin, ranges)

    def _read(self, start: int, views: list["torch.Tensor"]) -> "torch.Tensor":
        import torch

        rows = views[0] if len(views) == 1 else torch.cat(views)
        self.check(rows, start)  # This touches every page.
        return rows


class _Buffer:
    """A host buffer: rows are gathered in it and copied to the device from it."""

    def __init__(self, loader: "PinnedLoader"):
        import torch

        self._loader = loader
        self._rows = torch.empty(0)
        self._streams = torch.get_device_module(loader.device)
        self.copied = self._streams.Event()
        """Recorded after the last copy from the buffer."""

    def send(self, views: list["torch.Tensor"], stream: "torch.Stream") -> "torch.Tensor":
        """Begin the copy of some rows to the device; the buffer waits until it is free."""
        import torch

        device = self._loader.device
        shape = (sum(map(len, views)), self._loader.embeddings.dimensions)
        self.copied.synchronize()
        if len(self._rows) < shape[0]:
            self._rows = torch.empty(shape, dtype=torch.float16, pin_memory=device.type == "cuda")
        rows = torch.cat(views, out=self._rows[: shape[0]])
        with self._streams.stream(stream):
            sent = rows.to(device, non_blocking=True, copy=True)
            self.copied.record(stream)
        return sent


class PinnedLoader(Shards):
    """Two page-locked host buffers: a thread fills one while the other is copied to the device."""

    name = "pinned"

    def load(self, ranges: Iterable[Block]) -> Iterator["torch.Tensor"]:
        """See ``Loader``."""
        import torch

        streams = torch.get_device_module(self.device)
        stream = streams.Stream(self.device)
        buffers = cycle([_Buffer(self), _Buffer(self)])
        with _reader() as thread:

            def begin(wanted: Block) -> Callable[[], "torch.Tensor"]:
                buffer = next(buffers)
                sent = thread.submit(buffer.send, self.views(*wanted), stream)

                def receive() -> "torch.Tensor":
                    rows = sent.result()
                    current = streams.current_stream(self.device)
                    buffer.copied.wait(current)
                    if self.device.type == "cuda":
                        # Made on one stream and used on another: its memory must wait for both.
                        rows.record_stream(current)
                    self.check(rows, wanted[0])
                    return rows

                return receive

            yield from one_ahead(begin, ranges)
