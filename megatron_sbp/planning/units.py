"""Large numbers with a prefix, as plans show them."""

import math


def si(count: float) -> str:
    """Three digits and k, M, G, T, P or E."""
    power = min(int(math.log(max(count, 1), 1000)), 6)
    return f"{count / 1000**power:.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}"


def size(count: float) -> str:
    """Bytes."""
    return f"{si(count)}B"
