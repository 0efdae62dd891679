"""Amounts of several kinds of work, and the time that they take."""

from dataclasses import dataclass, field, fields
from typing import Any, Self

_NOT_SHARED = "not shared"


def not_shared() -> Any:
    """A kind of work that every device does in full, however many there are."""
    return field(default=0.0, metadata={_NOT_SHARED: True})


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much there is to do of every kind, or the seconds of one device for one of each.

    A subclass has a number for each kind.
    """

    def shares(self, devices: int) -> list[float]:
        """How much one of so many devices does of each kind."""
        return [
            getattr(self, kind.name) / (1 if _NOT_SHARED in kind.metadata else devices)
            for kind in fields(self)
        ]

    def times(self, seconds: Self, devices: int = 1) -> float:
        """Seconds of so many devices for all of it."""
        pairs = zip(self.shares(devices), seconds.shares(1), strict=True)
        return sum(share * each for share, each in pairs)
