"""Documents cut into windows that a model can read, and windows put into batches.

A document is read after one end-of-document token, so that its first token is predicted too, or by
itself, if that is how the model was trained: then its first token is given and not predicted. What
is longer than the model's context is read in windows that overlap: each begins ``stride`` tokens
after the one before it, and only what that one did not reach is scored.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Stretches of documents; int64 [windows] each, by document."""

    document: np.ndarray
    """Its document."""
    start: np.ndarray
    """Tokens of the document before the first one that it predicts."""
    length: np.ndarray
    """Tokens that it predicts."""
    skip: np.ndarray
    """Of these the first ones that are not scored, as the window before it has them."""

    @classmethod
    def cut(cls, lengths: np.ndarray, context: int, stride: int, given: int) -> "Windows":
        """Windows that score every token of every document once, but those that are given.

        Args:
            lengths: int64 [documents], tokens of each.
            context: Most tokens that a window predicts.
            stride: Tokens that a window after the first one scores, at most ``context``.
            given: First tokens of every document that are not predicted.
        """
        lengths = lengths - given
        further = np.maximum(0, -((context - lengths) // stride))
        counts = np.where(lengths > 0, 1 + further, 0)
        document = np.repeat(np.arange(len(lengths)), counts)
        number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
        start = given + number * stride
        return cls(
            document=document,
            start=start,
            length=np.minimum(lengths[document] - number * stride, context),
            skip=np.where(number > 0, context - stride, 0),
        )

    def batches(self, tokens: int) -> Iterator[np.ndarray]:
        """Windows of about one length together, the longest first.

        Args:
            tokens: Most tokens of a batch, those that only pad it included; a longer window is a
                batch by itself.

        Yields:
            Numbers of windows, int64 [rows].
        """
        order, begin = np.argsort(-self.length, kind="stable"), 0
        while begin < len(order):
            end = begin + max(1, tokens // int(self.length[order[begin]]))
            yield order[begin:end]
            begin = end

    def places(self, batch: np.ndarray, begins: np.ndarray) -> np.ndarray:
        """Where the scored tokens of some windows stand in the corpus, in the windows' order.

        Args:
            batch: Numbers of windows, int64 [rows].
            begins: int64 [documents], tokens of all documents before each.

        Returns:
            int64 [scored tokens].
        """
        first = begins[self.document[batch]] + self.start[batch] + self.skip[batch]
        counts = self.length[batch] - self.skip[batch]
        return np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
