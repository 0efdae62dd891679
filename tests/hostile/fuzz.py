"""What fuzzed tests share: how files are damaged, and what reading one may cost."""

import os
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from megatron_sbp.errors import InputError

LONG = bool(os.environ.get("FAULTS_LONG"))
"""Whether to look for minutes instead of seconds: ``make test-faults``."""
MOST_MEMORY = 64 << 20
"""Bytes that reading a damaged file of some kilobytes may take."""

_NUMBERS = [0, 1, 2, -1, 127, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, -(2**63)]


def fuzzed(examples: int) -> Callable[..., Callable[..., None]]:
    """Settings of a fuzzed test; in the long form there are fifty times as many examples."""
    return settings(
        max_examples=examples * (50 if LONG else 1),
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged(draw: st.DrawFn, raw: bytes, most: int = 3) -> bytes:
    """A file's bytes after some damage: bytes changed, cut, added, moved; numbers made huge."""
    for _ in range(draw(st.integers(1, most))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        match draw(st.sampled_from(["byte", "number", "cut", "add", "swap", "repeat"])):
            case "byte":
                raw = raw[:at] + bytes([draw(st.integers(0, 255))]) + raw[at + 1 :]
            case "number":
                size = draw(st.sampled_from([1, 2, 4, 8]))
                number = draw(st.sampled_from(_NUMBERS)) % (1 << 8 * size)
                raw = raw[:at] + number.to_bytes(size, "little") + raw[at + size :]
            case "cut":
                raw = raw[:at]
            case "add":
                raw = raw + draw(st.binary(min_size=1, max_size=40))
            case "swap":
                size = draw(st.sampled_from([1, 4, 8]))
                other = draw(st.integers(0, max(len(raw) - 1, 0)))
                low, high = sorted((at, other))
                if low + size <= high:
                    first, second = raw[low : low + size], raw[high : high + size]
                    raw = raw[:low] + second + raw[low + size : high] + first + raw[high + size :]
            case "repeat":
                raw = raw[:at] + raw[at : at + 8] * 2 + raw[at + 8 :]
    return raw


@contextmanager
def cheap(most: int = MOST_MEMORY) -> Iterator[None]:
    """Fail if the block allocates more than so many bytes."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak:,} bytes"


def read_or_refused[T](read: Callable[[], T], measured: bool = True) -> T | None:
    """What a reader gives, or None if it refuses; anything else fails the test.

    Commands print what an InputError says in one line, whatever is in it.

    Python is many times slower while memory is measured.
    """
    with cheap() if measured else nullcontext():
        try:
            return read()
        except InputError as error:
            assert 0 < len(str(error)) < 2000
            return None


def refused(read: Callable[[], object], match: str) -> None:
    """A reader must refuse with a message that matches."""
    with cheap(), pytest.raises(InputError, match=match):
        read()
