"""What streaming brings: each loader by itself, and while the device multiplies.

    python -m benchmarks.loading --embeddings DIR [--device cuda]

The best of some passes over the embeddings: reading the blocks (load), multiplying as many rows
that lie on the device (multiply), and both (together). What loading adds to multiplying should be
nothing where it is the shorter of the two, and for "plain", which reads, checks and copies a block
when it is needed, all of the loading. Embeddings that fit the system's page cache are read from
there; to measure a disk, take some that are larger than the memory.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from megatron_sbp import cli
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.loading import Loader, MapLoader, PinnedLoader, Shards

if TYPE_CHECKING:
    import torch


@dataclass(kw_only=True, slots=True)
class LoadingOptions:
    """Options of ``benchmarks.loading``."""

    embeddings: str = field(metadata={"metavar": "DIR"})
    """Directory of embeddings-*.npy."""
    device: str = "cpu"
    """Where blocks are multiplied: cpu, cuda or cuda:N."""
    block: int = field(default=16384, metadata={"metavar": "DOCUMENTS"})
    """Documents of a block."""
    anchors: int = field(default=2048, metadata={"metavar": "DOCUMENTS"})
    """Documents that every block is multiplied with, in bf16."""
    passes: int = 3
    """Passes over the embeddings; the fastest counts."""

    def __post_init__(self) -> None:
        for name in ("block", "anchors", "passes"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least 1")


class PlainLoader(Shards):
    """No loader: a block is read, copied and checked when it is asked for."""

    name = "plain"

    def load(self, ranges: Iterable[Block]) -> Iterator["torch.Tensor"]:
        """See ``Loader``."""
        import torch

        for start, stop in ranges:
            rows = torch.cat(self.views(start, stop)).to(self.device)
            self.check(rows, start)
            yield rows


class Bench:
    """One set of embeddings on one device."""

    def __init__(self, options: LoadingOptions):
        import torch

        self._options = options
        self._embeddings = Embeddings(options.embeddings)
        self._device = torch.device(options.device)
        count = len(self._embeddings)
        self._ranges = [
            (start, min(start + options.block, count)) for start in range(0, count, options.block)
        ]
        anchors = self._embeddings.rows(0, min(options.anchors, count))
        self._anchors = torch.from_numpy(anchors.copy()).to(self._device, torch.bfloat16)
        self._resident = next(PlainLoader(self._embeddings, self._device).load(self._ranges))

    @property
    def bytes(self) -> int:
        """Size of all rows."""
        return 2 * len(self._embeddings) * self._embeddings.dimensions

    def loaders(self) -> list[Loader]:
        """Those that can run here."""
        found: list[Loader] = [PlainLoader(self._embeddings, self._device)]
        if self._device.type == "cpu":
            found.append(MapLoader(self._embeddings))
        else:
            found.append(PinnedLoader(self._embeddings, self._device))
        try:
            from megatron_sbp.mining.loading_dali import RegionLoader, open_dali

            best = open_dali(self._embeddings, self._device)
            found.append(RegionLoader(self._embeddings, self._device))
            if best.name != "dali-cpu":
                found.append(best)
        except InputError as error:
            print(f"without DALI: {error}")
        return found

    def load(self, loader: Loader) -> float:
        """Seconds to load every block."""
        return self._best(loader.load(self._ranges) for _ in range(self._options.passes))

    def multiply(self) -> float:
        """Seconds to multiply as many rows, which lie on the device already."""
        passes = range(self._options.passes)
        resident = ((self._resident[: b - a] for a, b in self._ranges) for _ in passes)
        return self._best(resident, multiply=True)

    def together(self, loader: Loader) -> float:
        """Seconds to load and multiply every block."""
        passes = (loader.load(self._ranges) for _ in range(self._options.passes))
        return self._best(passes, multiply=True)

    def _best(self, passes: Iterable[Iterable["torch.Tensor"]], *, multiply: bool = False) -> float:
        import torch

        synchronize = torch.get_device_module(self._device).synchronize
        seconds = []
        for blocks in passes:
            synchronize()
            started = time.perf_counter()
            for block in blocks:
                if multiply:
                    torch.mm(self._anchors, block.to(torch.bfloat16).T)
                del block
            synchronize()
            seconds.append(time.perf_counter() - started)
        return min(seconds)


def main() -> None:
    """Measure and print."""
    options = cli.parse(LoadingOptions, __doc__)
    bench = Bench(options)
    multiply = bench.multiply()
    print(f"{bench.bytes / 1e9:.2f} GB; multiply {multiply:.2f} s")
    print(f"{'loader':<8}  {'load GB/s':>9}  {'load s':>7}  {'together s':>10}  {'added s':>7}")
    for loader in bench.loaders():
        load, together = bench.load(loader), bench.together(loader)
        rate, added = bench.bytes / load / 1e9, together - multiply
        print(f"{loader.name:<8}  {rate:9.2f}  {load:7.2f}  {together:10.2f}  {added:7.2f}")


if __name__ == "__main__":
    cli.run(main)
