"""A row: segments of tokens one after another, with labels, loss mask, positions and boundaries."""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch

from megatron_sbp.training.pairs.config import PairedDocumentDatasetConfig, Segment


class RowWriter:
    """Lays pairs out in rows.

    Args:
        config: Row and template.
    """

    def __init__(self, config: PairedDocumentDatasetConfig):
        self._length = config.sequence_length
        self._packing = config.packing
        self._head = config.truncate_d1 == "head"
        self._before = np.array(config.before, dtype=np.int64)
        self._between = np.array(config.between, dtype=np.int64)
        self._after = np.array(config.after[:-1], dtype=np.int64)
        self._last = config.after[-1] if config.after else None
        self._padding = np.full(self._length, config.pad, dtype=np.int64)
        self._positions = np.arange(self._length)
        # The first label of d2 stands so many positions, and d1, after a segment's begin.
        self._context = len(config.before) + len(config.between) - 1

    def write(
        self, pairs: Iterable[tuple[np.ndarray, np.ndarray, Segment]]
    ) -> dict[str, torch.Tensor]:
        """Lay out pairs that fit into a row together.

        Args:
            pairs: Bodies of d1 and d2, integers [tokens], with what is kept of them.

        Returns:
            See ``PairedDocumentDataset.__getitem__``, without ``control``.
        """
        pieces: list[np.ndarray] = []
        last_positions, last_labels = [], []
        bounds, padded = [0], []
        mask = np.zeros(self._length, dtype=np.float32)
        for d1, d2, (first, second, whole, positions, size) in pairs:
            cut = len(d1) - first if self._head else 0
            pieces += (self._before, d1[cut : cut + first], self._between)
            # A segment's last token is a label only.
            if whole and self._last is not None:
                pieces += (d2, self._after)
                last_labels.append(self._last)
            else:
                pieces.append(d2[: second - 1])
                last_labels.append(d2.item(second - 1))
            begin = bounds[-1]
            end = begin + positions
            mask[begin + self._context + first : end] = 1.0
            last_positions.append(end - 1)
            bounds.append(begin + size)
            if size > positions:
                pieces.append(self._padding[: size - positions])
                padded.append(slice(end, begin + size))
        pieces.append(self._padding[bounds[-1] :])
        padded.append(slice(bounds[-1], None))
        tokens = np.concatenate(pieces, dtype=np.int64)
        labels = np.empty_like(tokens)
        labels[:-1] = tokens[1:]
        labels[last_positions] = last_labels
        for gap in padded:
            labels[gap] = 0
        sample = {"tokens": tokens, "labels": labels, "loss_mask": mask}
        return {name: torch.from_numpy(column) for name, column in sample.items()} | (
            self._boundaries(bounds)
        )

    def _boundaries(self, bounds: list[int]) -> dict[str, torch.Tensor]:
        """Positions within segments, and where these begin and the last one ends."""
        if not self._packing:
            return {"position_ids": torch.arange(self._length)}
        bounds = [*bounds, self._length]
        sizes = [end - begin for begin, end in pairwise(bounds)]
        seqlens = np.full(self._length + 1, self._length, dtype=np.int32)
        seqlens[: len(bounds)] = bounds
        positions = np.concatenate([self._positions[:size] for size in sizes])
        return {
            "position_ids": torch.from_numpy(positions),
            "cu_seqlens": torch.from_numpy(seqlens),
            "max_seqlen": scalar(max(sizes)),
        }


def scalar(value: int) -> torch.Tensor:
    """int64 []; several times faster than ``torch.tensor``."""
    return torch.from_numpy(np.array(value))
