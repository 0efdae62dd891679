"""What every generation engine does: prompts in, continuations out, in any order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

END_OF_DOCUMENT, LENGTH = 0, 1
"""Why a document ended: its end-of-document token was drawn, or the maximum was reached."""


@dataclass(kw_only=True, slots=True, frozen=True)
class Sampling:
    """How the next token is drawn from the model's distribution."""

    temperature: float
    """Divisor of the logits; 0 takes the most probable token."""
    top_p: float
    """Smallest set of most probable tokens with at least this mass; 1 keeps all."""
    top_k: int
    """Number of most probable tokens kept; 0 keeps all."""


@dataclass(kw_only=True, slots=True, eq=False)
class Request:
    """One document to generate."""

    number: int
    """Document number in the run."""
    prompt: np.ndarray
    """int64 [prompt tokens], at least two."""
    uniforms: np.ndarray
    """float64 [maximum of new tokens] in [0, 1): what decides each token, and how many at most."""


@dataclass(kw_only=True, slots=True, eq=False)
class Continuation:
    """One generated document."""

    number: int
    """Document number in the run."""
    tokens: np.ndarray
    """int64 [new tokens], without an end-of-document token."""
    finish_reason: int
    """``END_OF_DOCUMENT`` or ``LENGTH``."""


class Engine(Protocol):
    """A language model that continues prompts."""

    context: int
    """Most tokens that a prompt and its continuation may have together."""
    vocab_size: int
    """Number of token ids that the model knows."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """Continue every prompt.

        Requests are taken one by one as there is room for them; the continuations come in the order
        in which they end. What a request gives depends on nothing but the request.
        """
        ...
