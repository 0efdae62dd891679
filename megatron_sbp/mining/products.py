"""Inner products of many rows with many others, in a format that the device multiplies fast.

They are only the pre-test of the exact join: every format comes with a bound on how far its product
of two rows can be from the exact inner product, and what passes the pre-test is scored exactly.

Shapes: n rows, d dimensions, h x w a tile of products.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from megatron_sbp.errors import InputError

if TYPE_CHECKING:
    import torch

type Precision = Literal["int8", "bf16", "fp32"]

LANES = 64  # Rows are padded to a multiple, which integer products on CUDA need and peaks use.
_NORM = 1.011  # Rows have length 1 to 1% (checked when they are read), coded ones nearly so.
_LEVELS = 127
_BITS = {"bf16": 8, "fp32": 24}  # of the significand
_EVERYTHING = -(2**31)


@dataclass(frozen=True, slots=True, eq=False)
class Coded:
    """Rows in the format of the products."""

    rows: "torch.Tensor"
    """[n padded to LANES, d], padding is zero."""
    count: int
    """Rows without the padding, n."""
    scale: float
    """What one step of the format stands for; 1 but for int8."""
    error: float
    """Largest Euclidean distance of a row to the row that its code stands for."""


class Products:
    """Products of one format on one device.

    ``int8`` rows are first turned by a random rotation, the same for all, which leaves inner
    products as they are and spreads a row's length over all its numbers: then one step size suits
    all of them, whatever the encoder.

    Args:
        precision: Format of the factors.
        device: Where they are.
        dimensions: Length d of a row.
    """

    def __init__(self, precision: Precision, device: "torch.device", dimensions: int):
        import torch

        self.precision, self.device = precision, device
        self._dimensions = dimensions
        # Or cuBLAS may add up bf16 products in bf16. TF32 is off unless someone turns it on.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._buffer: torch.Tensor | None = None

    def code(self, rows: "torch.Tensor") -> Coded:
        """Code float16 rows [n, d] that lie on the device."""
        import torch

        exact = rows.float()
        if self.precision == "int8":
            exact = self._turned(exact)
            low, high = exact.aminmax()
            scale = max(float(high), -float(low), 1e-30 * _LEVELS) / _LEVELS
            steps = (exact / scale).round_()
            coded, extra = steps.to(torch.int8), self._rounding
        else:
            scale, extra = 1.0, 0.0
            coded = exact.to(torch.bfloat16 if self.precision == "bf16" else torch.float32)
            steps = coded
        error = 0.0  # float32 holds float16 numbers as they are.
        if self.precision != "fp32":
            left = exact.sub_(steps, alpha=scale)
            error = float(left.norm(dim=1).max()) * (1 + 1e-5) + extra
        # Integer products on CUDA need rows of a multiple of 16.
        width = self._dimensions if self.precision != "int8" else _padded(self._dimensions, 16)
        return Coded(_pad(coded, width), len(rows), scale, error)

    def _turned(self, rows: "torch.Tensor") -> "torch.Tensor":
        """Rows [n, d] after the rotation."""
        signs, outer, inner = self._rotation
        shape = (len(rows), len(outer), len(inner))
        turned = (rows * signs).view(-1, len(inner)) @ inner
        turned = turned.view(shape).transpose(1, 2).reshape(-1, len(outer)) @ outer
        return turned.view(rows.shape)

    @cached_property
    def _rotation(self) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
        """Random signs [d] and the cosine transforms [a, a], [b, b] of a grid with a b = d.

        Signs, then a transform along each side of the grid, spread a row over all its numbers as a
        random rotation does, in 2 d (a + b) operations in place of 2 d^2.
        """
        import torch

        draw = torch.Generator().manual_seed(0)
        signs = 2.0 * torch.randint(2, (self._dimensions,), generator=draw) - 1
        parts = (signs, *(_cosines(side).float() for side in grid(self._dimensions)))
        return tuple(part.to(self.device) for part in parts)

    @cached_property
    def _rounding(self) -> float:
        """Most by which the rotation changes products, as a share of the rows' lengths.

        The rounded transforms are not quite orthogonal, and each adds up n products n times.
        """
        import torch

        total = 0.0
        for part in self._rotation[1:]:
            exact = part.double()
            identity = torch.eye(len(part), dtype=torch.float64, device=self.device)
            total += 1.01 * float((exact @ exact.T - identity).norm())
            total += 1.1 * len(part) ** 1.5 * 2.0**-24
        return total

    def slack(self, left: Coded, right: Coded) -> float:
        """Most by which a product of two coded rows differs from the exact inner product.

        For rows x = x' + e and y = y' + f it is x.y - x'.y' = e.y + x'.f, at most
        |e| |y| + |x'| |f|; besides, sums and the result are rounded, but not those of integers.
        """
        coded = _NORM * (left.error + right.error) + left.error * right.error
        if self.precision == "int8":
            return coded
        sums = 1.1 * (self._dimensions + 2) * 2.0**-24 * _NORM**2
        return coded + sums + _NORM**2 * 2.0 ** -_BITS[self.precision]

    def multiply(self, left: "torch.Tensor", right: "torch.Tensor") -> "torch.Tensor":
        """Coded products of all rows [h, d] with all others [w, d], as integers [h, w].

        The integers rise with the product, but for negative products of bf16 and fp32: those are
        negative integers in no order. The result is overwritten by the next call.
        """
        import torch

        kind = {"int8": torch.int32, "bf16": torch.bfloat16, "fp32": torch.float32}[self.precision]
        size = len(left) * len(right)
        if self._buffer is None or len(self._buffer) < size:
            self._buffer = torch.empty(size, dtype=kind, device=self.device)
        out = self._buffer[:size].view(len(left), len(right))
        if self.precision == "int8":
            return torch._int_mm(left, right.T, out=out)
        torch.mm(left, right.T, out=out)
        # The bits of positive numbers are in the order of the numbers, and integers are compared
        # several times faster.
        return out.view(torch.int16 if self.precision == "bf16" else torch.int32)

    def limits(self, least: "torch.Tensor", left: Coded, right: Coded) -> "torch.Tensor":
        """The lowest integer of ``multiply`` that pairs with exact scores >= ``least`` can have.

        Args:
            least: Scores, float32 [n].
            left: The rows that are multiplied.
            right: The others.

        Returns:
            int32 [n].
        """
        import torch

        lowest = least.double() - self.slack(left, right)
        if self.precision == "int8":
            steps = (lowest / (left.scale * right.scale)).floor()
            return steps.clamp(_EVERYTHING, 2**31 - 1).int()
        bits = lowest.float().view(torch.int32) - 1  # -1: rounding to float32 may go up
        if self.precision == "bf16":
            bits = bits >> 16
        return torch.where(lowest > 1e-30, bits, _EVERYTHING)

    def value(self, product: int, left: Coded, right: Coded) -> float:
        """The inner product that an integer of ``multiply`` stands for."""
        if self.precision == "int8":
            return product * left.scale * right.scale
        bits = product << 16 if self.precision == "bf16" else product
        return float(np.array(bits, np.int32).view(np.float32)) if product > 0 else -1.0


def coded_rows(rows: "torch.Tensor", *, common: bool) -> "torch.Tensor":
    """Rows as int8 steps, with one step for all rows or one for each.

    Args:
        rows: float32 [n, d].
        common: Whether the step is common to all.

    Returns:
        int8, padded with zeros to a multiple of LANES rows and of 16 numbers.
    """
    import torch

    largest = rows.abs().amax() if common else rows.abs().amax(1, keepdim=True)
    steps = (rows / (largest / _LEVELS).clamp_min(1e-30)).round_().to(torch.int8)
    return _pad(steps, _padded(rows.shape[1], 16))


def _pad(rows: "torch.Tensor", width: int) -> "torch.Tensor":
    padded = rows.new_zeros((_padded(len(rows)), width))
    padded[: len(rows), : rows.shape[1]] = rows
    return padded


def grid(dimensions: int) -> tuple[int, int]:
    """The sides a and b, as alike as can be, of a grid with a b = d that rows are coded along."""
    root = math.isqrt(dimensions)
    side = next(number for number in range(root, 0, -1) if dimensions % number == 0)
    return side, dimensions // side


def _cosines(size: int) -> "torch.Tensor":
    """The orthonormal discrete cosine transform (DCT-II), float64 [size, size]."""
    import torch

    numbers = torch.arange(size, dtype=torch.float64)
    angles = math.pi / size * (numbers[:, None] + 0.5) * numbers
    waves = math.sqrt(2 / size) * torch.cos(angles)
    waves[:, 0] = math.sqrt(1 / size)
    return waves


def _padded(count: int, multiple: int = LANES) -> int:
    return math.ceil(count / multiple) * multiple


def fastest(device: "torch.device", *, coded_once: bool = False) -> Precision:
    """The format that a device multiplies fastest.

    Args:
        device: The device.
        coded_once: Whether rows meet so few others that the rotation for int8 would cost more than
            it saves.
    """
    import torch

    if device.type == "cuda":
        ampere = torch.cuda.get_device_capability(device) >= (8, 0)
        return ("bf16" if coded_once else "int8") if ampere else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "fp32"
    if not coded_once and re.search(r"\b(avx512_vnni|avx_vnni|amx_int8)\b", flags):
        return "int8"
    return "bf16" if re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) else "fp32"


def usable_device(wanted: str) -> "torch.device":
    """The device that was asked for; ``auto`` is a CUDA device if there is one.

    Raises:
        InputError: If there is no CUDA device.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; give cpu or auto")
    cuda = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if cuda else "cpu")
