"""Exact and near duplicates among many documents.

Two documents are near duplicates if the Jaccard index of their sets of 5-word shingles (Broder,
1997) is at least 0.8. It is estimated from signatures of 128 MinHash values, with a standard error
of 0.035 at the threshold. Candidates are documents that agree in all 8 values of one of 16 bands,
which two documents at 0.8 do with probability 0.95, at 0.9 with 0.9999.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import compress
from typing import Literal

import numpy as np

from megatron_sbp.corpus.shingles import shingles
from megatron_sbp.corpus.words import MIX, Words, mixed

THRESHOLD = 0.8
BYTES_PER_DOCUMENT = 768
"""Memory of ``SignatureIndex`` for each document, what is made on the way included."""

_BANDS, _ROWS = 16, 8
_VALUES = _BANDS * _ROWS
# Odd: multiplying 32-bit numbers by one permutes them.
_FACTORS = mixed(np.arange(1, _VALUES + 1, dtype=np.uint64)).astype(np.uint32) | np.uint32(1)
_PAIRS = 1 << 15  # pairs of documents compared at a time
_TOGETHER = 1024  # documents compared with each other at a time

type Reason = Literal["exact duplicate", "near duplicate"]


def signatures(words: Words) -> np.ndarray:
    """MinHash signatures of the shingles of documents.

    Of each of the 128 smallest values the last 16 bits are kept: they are equal by chance with
    probability 2^-16.

    Returns:
        uint16 [documents, 128], zeros for a document without words.
    """
    grams = shingles(words)
    some = np.flatnonzero(grams.counts)
    found = np.zeros((len(words), _VALUES), dtype=np.uint16)
    if not len(some):
        return found
    hashes = (grams.hashes >> np.uint64(32)).astype(np.uint32)
    permuted = np.empty_like(hashes)
    smallest = np.empty((_VALUES, len(some)), dtype=np.uint32)
    for factor, row in zip(_FACTORS, smallest, strict=True):
        np.multiply(hashes, factor, out=permuted)
        np.minimum.reduceat(permuted, grams.starts[some], out=row)
    found[some] = smallest.T.astype(np.uint16)
    return found


@dataclass(slots=True, eq=False)
class _Segment:
    """Some documents of an index, by band."""

    keys: list[np.ndarray]
    """Per band uint64 [documents], sorted."""
    rows: list[np.ndarray]
    """Per band int32 [documents]: the document of each key."""

    def __len__(self) -> int:
        return len(self.rows[0])


class SignatureIndex:
    """Documents whose near duplicates are looked for.

    Memory: ``BYTES_PER_DOCUMENT`` for each document added; looking for duplicates takes some
    megabytes, whatever is found.
    """

    def __init__(self) -> None:
        self._signatures = np.empty((0, _VALUES), dtype=np.uint16)
        self._count = 0
        # Each more than twice as long as the next one: adding documents costs log(documents).
        self._segments: list[_Segment] = []

    def __len__(self) -> int:
        """Number of documents."""
        return self._count

    def add(self, signatures: np.ndarray) -> None:
        """Add documents; they are numbered in the order in which they are added.

        Args:
            signatures: uint16 [documents, 128].
        """
        count = self._count + len(signatures)
        if count > len(self._signatures):
            # In place where the system can: an eighth more than needed, to be asked for seldom.
            self._signatures.resize((count + count // 8, _VALUES), refcheck=False)
        self._signatures[self._count : count] = signatures
        rows = np.arange(self._count, count, dtype=np.int32)
        self._count = count
        keys = list(_band_keys(signatures))
        self._segments.append(_sorted(keys, [rows] * _BANDS))
        while len(self._segments) > 1 and 2 * len(self._segments[-1]) >= len(self._segments[-2]):
            first, second = self._segments[-2:]
            self._segments[-2:] = [_merged(first, second)]

    def matches(
        self,
        signatures: np.ndarray,
        *,
        settled: np.ndarray | None = None,
        settled_rows: np.ndarray | None = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Near duplicates between given documents and those of the index.

        Args:
            signatures: uint16 [documents, 128] of the given ones.
            settled: bool [documents], those about which nothing more needs to be known. The caller
                may set it between two steps.
            settled_rows: The same of the documents of the index, bool [len(self)].

        Yields:
            Given documents and the documents of the index that they are like, int64 [n] each; a
            pair may come more than once.
        """
        some = np.flatnonzero(signatures.any(axis=1))
        keys = _band_keys(signatures[some])
        for band, wanted in enumerate(keys):
            for segment in self._segments:
                for given, rows in _equal(segment.keys[band], segment.rows[band], wanted):
                    given = some[given]
                    is_open = np.ones(len(given), dtype=bool)
                    if settled is not None:
                        is_open &= ~settled[given]
                    if settled_rows is not None:
                        is_open &= ~settled_rows[rows]
                    given, rows = given[is_open], rows[is_open]
                    near = _are_near(signatures[given], self._signatures[rows])
                    yield given[near], rows[near]

    def has(self, signatures: np.ndarray) -> np.ndarray:
        """Whether each given document is a near duplicate of one of the index.

        Args:
            signatures: uint16 [documents, 128].

        Returns:
            bool [documents].
        """
        found = np.zeros(len(signatures), dtype=bool)
        for given, _ in self.matches(signatures, settled=found):
            found[given] = True
        return found


def _band_keys(signatures: np.ndarray) -> np.ndarray:
    """Hash of the values of each band, uint64 [bands, documents]."""
    parts = np.ascontiguousarray(signatures).view(np.uint64).reshape(-1, _BANDS, _ROWS // 4)
    keys = np.zeros((_BANDS, len(signatures)), dtype=np.uint64)
    for part in range(parts.shape[2]):
        keys = mixed(keys * MIX + parts[:, :, part].T)
    return keys


def _sorted(keys: Sequence[np.ndarray], rows: Sequence[np.ndarray]) -> _Segment:
    """A segment of unsorted keys."""
    orders = [np.argsort(band, kind="stable") for band in keys]
    return _Segment(
        keys=[band[order] for band, order in zip(keys, orders, strict=True)],
        rows=[band[order] for band, order in zip(rows, orders, strict=True)],
    )


def _merged(first: _Segment, second: _Segment) -> _Segment:
    """Two segments as one. They are emptied on the way, so that there is no third copy."""
    merged = _Segment(keys=[], rows=[])
    for _ in range(_BANDS):
        keys = np.concatenate([first.keys.pop(0), second.keys.pop(0)])
        rows = np.concatenate([first.rows.pop(0), second.rows.pop(0)])
        order = np.argsort(keys, kind="stable")
        merged.keys.append(keys[order])
        merged.rows.append(rows[order])
    return merged


def _equal(
    keys: np.ndarray, rows: np.ndarray, wanted: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a wanted key's place and a row that has it, a limited number at a time."""
    low = np.searchsorted(keys, wanted)
    there = low < len(keys)
    there[there] = keys[low[there]] == wanted[there]
    places = np.flatnonzero(there)
    low = low[places]
    counts = np.searchsorted(keys, wanted[places], side="right") - low
    ends = np.cumsum(counts)
    for begin in range(0, int(ends[-1]) if len(ends) else 0, _PAIRS):
        pair = np.arange(begin, min(begin + _PAIRS, int(ends[-1])))
        owner = np.searchsorted(ends, pair, side="right")
        among = pair - (ends[owner] - counts[owner])
        yield places[owner], rows[low[owner] + among].astype(np.int64)


class NearDuplicates:
    """Tells which documents are like an earlier one that was not left out for that itself."""

    def __init__(self) -> None:
        self.index = SignatureIndex()
        """The documents that were not left out."""

    def seen(self, signatures: np.ndarray) -> np.ndarray:
        """Compare documents with all earlier ones, and remember those that are new.

        Args:
            signatures: uint16 [documents, 128].

        Returns:
            bool [documents].
        """
        parts = [
            self._seen(signatures[begin : begin + _TOGETHER])
            for begin in range(0, len(signatures), _TOGETHER)
        ]
        return np.concatenate([np.empty(0, bool), *parts])

    def _seen(self, signatures: np.ndarray) -> np.ndarray:
        found = self.index.has(signatures)
        new = np.flatnonzero(~found)
        found[new] = _among(signatures[new])
        self.index.add(signatures[~found])
        return found


def _among(signatures: np.ndarray) -> np.ndarray:
    """Whether each of a few documents is like an earlier one of them that is not left out."""
    keys = _band_keys(signatures)
    order = np.argsort(keys, axis=1)
    ordered = np.take_along_axis(keys, order, axis=1)
    band, place = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
    sharing = np.union1d(order[band, place], order[band, place + 1])
    found = np.zeros(len(signatures), dtype=bool)
    kept: list[int] = []
    for document in sharing[signatures[sharing].any(axis=1)].tolist():
        candidates = (keys[:, kept] == keys[:, [document]]).any(axis=0)
        near = _are_near(signatures[kept], signatures[document])
        found[document] = (candidates & near).any()
        if not found[document]:
            kept.append(document)
    return found


def _are_near(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Whether signatures are those of near duplicates, bool [pairs]."""
    return np.count_nonzero(first == second, axis=1) >= THRESHOLD * _VALUES


class Duplicates:
    """Tells which texts have been seen before, batch by batch.

    An exact duplicate is equal to an earlier text but for white space.

    Memory: about 100 bytes per text that is kept for exact, ``BYTES_PER_DOCUMENT`` more for near.
    """

    def __init__(self, kind: Literal["exact", "near"]):
        self._exact: set[bytes] = set()
        self._near = NearDuplicates() if kind == "near" else None

    def seen(self, texts: Sequence[str]) -> list[Reason | None]:
        """Compare texts with all texts given before; remember those that are new."""
        digests = [_digest(text) for text in texts]
        new: dict[bytes, str] = {}
        for digest, text in zip(digests, texts, strict=True):
            if digest not in self._exact:
                new.setdefault(digest, text)
        near: set[bytes] = set()
        if self._near is not None:
            near.update(compress(new, self._near.seen(signatures(Words.of(new.values())))))
        reasons: list[Reason | None] = []
        for digest in digests:
            if digest in near:
                reasons.append("near duplicate")
            elif digest in self._exact:
                reasons.append("exact duplicate")
            else:
                reasons.append(None)
                self._exact.add(digest)
        return reasons


def _digest(text: str) -> bytes:
    """Checksum of a text but for its white space."""
    content = " ".join(text.split()).encode("utf-8", "surrogatepass")
    return blake2b(content, digest_size=16).digest()
