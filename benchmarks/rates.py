"""How fast this machine multiplies matrices, and what machine it is.

    python -m benchmarks.rates --dimensions 384

prints one line of JSON: operations per second, two per multiplication with addition, by format and
by shape: a tile as mining makes them, and a large product.
"""

import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp import cli

_TILE = {"cpu": 2048, "cuda": 8192}  # rows and columns, as mining has them
_LARGE = {"cpu": 4096, "cuda": 8192}
_SECONDS = 0.7  # of every measurement
_FLAGS = r"amx_\w+|avx512_(bf16|fp16|vnni)|avx_vnni\w*|avx512f|avx2"
_PACKAGES = ("numpy", "torch", "faiss-cpu", "faiss-gpu", "hnswlib", "mpi4py", "mpich")


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the measurement."""

    dimensions: int = 384
    """Dimensions of a tile's rows."""


def cpu_flags() -> set[str]:
    """What this machine's CPU says that it can do; empty where it does not say."""
    return set((_cpu_says("flags") or "").split())


def _cpu_says(name: str) -> str | None:
    try:
        line = re.search(rf"^{name}\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        line = None
    return line[1] if line else None


def machine() -> dict[str, Any]:
    """CPU, what it can multiply, and versions."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    flags = sorted(flag for flag in cpu_flags() if re.fullmatch(_FLAGS, flag))
    cpu = _cpu_says("model name") or platform.machine()
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "flags": flags} | versions


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    import torch

    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tile, large = _TILE[device.type], _LARGE[device.type]
    shapes = {"tile": (tile, options.dimensions), "large": (large, large)}
    rates = {name: _rates(device, *shape) for name, shape in shapes.items()}
    rates["shapes"] = {name: f"{n} x {d} x {n}" for name, (n, d) in shapes.items()}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps(rates | {"device": name}))


def _rates(device: Any, size: int, depth: int) -> dict[str, Any]:
    """Operations per second of products [size, depth] x [depth, size], by format."""
    import torch

    rows = torch.randn(size, depth, generator=torch.Generator().manual_seed(0))
    rows = (rows / rows.norm(dim=1, keepdim=True)).to(device)
    steps = (rows * 127).to(torch.int8)
    work: dict[str, Callable[[], Any]] = {
        "bf16": _product(torch.mm, rows.to(torch.bfloat16), torch.bfloat16),
        "fp32": _product(torch.mm, rows, torch.float32),
        "int8": _product(torch._int_mm, steps, torch.int32),
    }
    if device.type == "cpu":
        array, result = rows.numpy(), np.empty((size, size), np.float32)
        work["fp32 of numpy"] = lambda: np.matmul(array, array.T, out=result)
    return {name: 2 * size**2 * depth / _fastest(do, device) for name, do in work.items()}


def _product(multiply: Callable[..., Any], rows: Any, kind: Any) -> Callable[[], Any]:
    """What multiplies rows with themselves into the same result again and again."""
    out = rows.new_empty((len(rows), len(rows)), dtype=kind)
    return lambda: multiply(rows, rows.T, out=out)


def _fastest(work: Callable[[], Any], device: Any) -> float:
    """Seconds of the fastest of some calls."""
    import torch

    synchronize = torch.get_device_module(device).synchronize
    work()
    best, ends = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < ends:
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    cli.run(main)
