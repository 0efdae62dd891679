"""Exact and near duplicates among documents that arrive one by one."""

import zlib
from hashlib import blake2b
from typing import Literal

import numpy as np

from megatron_sbp.corpus.shingles import MIX, SHINGLE, ngrams, words
from megatron_sbp.errors import require

THRESHOLD = 0.8
_PERMUTATIONS = 128
# Bands and rows: a pair at Jaccard 0.8 shares a band with probability 0.95, at 0.9 with 0.9999.
_BANDS = (16, 8)


def shingles(text: str) -> np.ndarray:
    """Hashes of the word shingles of a text, in the 32 bits that MinHash takes.

    A word is a run of letters, digits and underscores in lower case. A text of fewer than
    ``SHINGLE`` words is one shingle, one without words has none.

    Returns:
        uint32 [number of distinct shingles], sorted.
    """
    hashes = np.array([zlib.crc32(word.encode()) + 1 for word in words(text)], dtype=np.uint64)
    grams = ngrams(hashes, min(SHINGLE, len(hashes)) or 1)
    return np.unique((grams * MIX >> np.uint64(32)).astype(np.uint32))


class Duplicates:
    """Tells whether a document has been seen before.

    A near duplicate shares at least ``THRESHOLD`` of its word shingles with an earlier document
    (Jaccard similarity, estimated from 128 MinHash values: standard error 0.035). An exact one is
    equal to an earlier document but for white space.

    Memory: about 100 bytes per document for exact, about 6 kB for near.
    """

    def __init__(self, kind: Literal["exact", "near"]):
        self._exact: set[bytes] = set()
        self._near = kind == "near"
        if self._near:
            sketch = require("datasketch", package="datasketch")
            # Shingles come as 32-bit hashes already.
            self._empty = sketch.MinHash(num_perm=_PERMUTATIONS, hashfunc=int)
            self._index = sketch.MinHashLSH(num_perm=_PERMUTATIONS, params=_BANDS)
            self._signatures: list[np.ndarray] = []

    def seen(self, text: str) -> Literal["exact duplicate", "near duplicate"] | None:
        """Compare a text with all texts given before; remember it if it is new."""
        digest = blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
        if digest in self._exact:
            return "exact duplicate"
        if self._near and not self._remember(text):
            return "near duplicate"
        self._exact.add(digest)
        return None

    def _remember(self, text: str) -> bool:
        """Add a text to the index unless it has a near duplicate there."""
        hashes = shingles(text).tolist()
        if not hashes:
            return True
        minhash = self._empty.copy()
        minhash.update_batch(hashes)
        signature = minhash.digest().astype(np.uint32)
        candidates = self._index.query(minhash)
        if candidates:
            kept = np.stack([self._signatures[number] for number in candidates])
            if ((kept == signature).mean(axis=1) >= THRESHOLD).any():
                return False
        self._index.insert(len(self._signatures), minhash, check_duplication=False)
        self._signatures.append(signature)
        return True
