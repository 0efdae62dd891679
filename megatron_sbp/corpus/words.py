r"""Words of many documents at a time, as arrays.

    texts ── Characters ──> Words ──> n-grams and shingles (corpus/shingles.py)

A word is a run of characters that are letters, digits, marks that Python counts among them, or
underscores: what ``re`` finds as ``\w+``. Words are compared in lower case, every character by
itself: the same as ``text.lower()`` but for two letters, the capital sigma (always σ here, ς at the
end of a word there) and the dotted capital I (i here, i and a combining dot there).

Words are kept as 64-bit hashes; two different ones of a corpus of 10^9 are mistaken for each other
with probability 0.03.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Self

import numpy as np

from megatron_sbp.corpus.documents import Corpus

MIX = np.uint64(0x9E3779B97F4A7C15)
"""Odd, from the golden ratio: multiplying by it loses nothing modulo 2^64."""

# Of the polynomial that hashes a run of characters, and its inverse modulo 2^64.
_BASE = 0xD1342543DE82EF95
_INVERSE = pow(_BASE, -1, 1 << 64)
_CODES = 0x110000
_CASED = 0x20000  # no character from here on has another case
_BATCH_CHARACTERS = 1 << 18  # some megabytes of arrays, about a processor's cache
_BATCH_DOCUMENTS = 4096


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The words of some documents, one document after another."""

    hashes: np.ndarray
    """uint64 [words]; equal words have equal hashes, in every batch and every run."""
    characters: np.ndarray
    """int32 [words], length of each word in characters."""
    starts: np.ndarray
    """int64 [documents + 1], first word of each document, then the number of words."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Lower-cased words of texts, which need not fit one batch."""
        return cls.concatenate([batch.words() for batch in batches(texts)])

    @classmethod
    def concatenate(cls, parts: Sequence["Words"]) -> Self:
        """The documents of several batches as one."""
        counts = [np.diff(part.starts) for part in parts]
        return cls(
            hashes=np.concatenate([np.empty(0, np.uint64), *(part.hashes for part in parts)]),
            characters=np.concatenate([np.empty(0, np.int32), *(p.characters for p in parts)]),
            starts=np.concatenate([[0], *counts]).cumsum(dtype=np.int64),
        )

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    @property
    def counts(self) -> np.ndarray:
        """int64 [documents], words of each."""
        return np.diff(self.starts)

    @property
    def documents(self) -> np.ndarray:
        """int64 [words], number of the document of each word."""
        return np.repeat(np.arange(len(self)), self.counts)

    def take(self, documents: np.ndarray) -> "Words":
        """The given documents (int64 [n], or bool [documents]) as a batch."""
        chosen = np.arange(len(self))[documents]
        counts = self.counts[chosen]
        starts = np.concatenate([[0], counts]).cumsum(dtype=np.int64)
        rows = np.arange(starts[-1]) + np.repeat(self.starts[chosen] - starts[:-1], counts)
        return Words(self.hashes[rows], self.characters[rows], starts)


@dataclass(frozen=True, eq=False)
class Characters:
    """The characters of some documents, one document after another."""

    codes: np.ndarray
    """int64 [characters], code points."""
    starts: np.ndarray
    """int64 [documents + 1], first character of each document, then the number of characters."""

    @classmethod
    def of(cls, texts: Sequence[str]) -> Self:
        """Characters of texts that are few enough for one batch."""
        # Lone surrogates, which JSON can hold, are characters like others here.
        data = "".join(texts).encode("utf-32-le", "surrogatepass")
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        return cls(
            codes=np.frombuffer(data, np.uint32).astype(np.int64),
            starts=np.concatenate([[0], lengths]).cumsum(dtype=np.int64),
        )

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.starts) - 1

    def words(self, *, lower: bool = True) -> Words:
        """Words, in lower case or as they stand."""
        begins, ends = self._word_bounds
        prefix = _prefix_hashes(lower_case()[self.codes]) if lower else self._prefix
        return Words(
            hashes=_run_hashes(prefix, begins, ends),
            characters=(ends - begins).astype(np.int32),
            starts=np.searchsorted(begins, self.starts),
        )

    def hashes(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Hashes of runs of characters as they stand.

        Args:
            begins: First character of each run, int64 [runs].
            ends: The character after its last one, int64 [runs].

        Returns:
            uint64 [runs]; equal runs have equal hashes.
        """
        return _run_hashes(self._prefix, begins, ends)

    @cached_property
    def _prefix(self) -> np.ndarray:
        return _prefix_hashes(self.codes)

    @cached_property
    def _word_bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """First character of each word, and the one after its last, int64 [words] each."""
        inside = np.zeros(len(self.codes) + 2, dtype=bool)
        inside[1:-1] = is_word()[self.codes]
        begin = inside[1:] & ~inside[:-1]
        end = inside[:-1] & ~inside[1:]
        # A word ends with its document, even if the next one begins with a word.
        starts = self.starts
        both = inside[starts] & inside[starts + 1]
        begin[starts[both]] = end[starts[both]] = True
        return np.flatnonzero(begin), np.flatnonzero(end)


def batches(texts: Iterable[str]) -> Iterator[Characters]:
    """Texts as batches of the size that is handled fastest; a long text is one of its own."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (characters + len(text) > _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS):
            yield Characters.of(batch)
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield Characters.of(batch)


def read(corpus: Corpus, documents: Iterable[int]) -> Iterator[Characters]:
    """Documents of a corpus, in the given order, as batches.

    Raises:
        InputError: If a document has a token that the tokenizer does not have.
    """
    return batches(corpus.texts(documents))


@cache
def is_word() -> np.ndarray:
    """Whether a character belongs to a word, bool [code points]."""
    found = np.zeros(_CODES, dtype=bool)
    for match in re.finditer(r"\w+", "".join(map(chr, range(_CODES)))):
        found[match.start() : match.end()] = True
    return found


@cache
def is_space() -> np.ndarray:
    """Whether ``str.strip`` takes a character away, bool [code points]."""
    found = np.zeros(_CODES, dtype=bool)
    found[[code for code in range(_CASED) if chr(code).isspace()]] = True
    return found


@cache
def lower_case() -> np.ndarray:
    """The lower-case form of each character, int64 [code points]."""
    lowered = [ord(chr(code).lower()[0]) for code in range(_CASED)]
    return np.concatenate([lowered, np.arange(_CASED, _CODES)])


def _prefix_hashes(codes: np.ndarray) -> np.ndarray:
    """Sums of code times power of the base over the first characters, uint64 [characters + 1]."""
    powers, _ = _powers(_rounded(len(codes)))
    terms = codes.astype(np.uint64) + np.uint64(1)  # or the character 0 would not count
    terms *= powers[: len(codes)]
    prefix = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(terms, out=prefix[1:])
    return prefix


def _run_hashes(prefix: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Hash of each run of characters: its polynomial, with the bits well mixed."""
    _, inverses = _powers(_rounded(len(prefix) - 1))
    return mixed((prefix[ends] - prefix[begins]) * inverses[begins])


def mixed(hashes: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits in which every bit depends on all others (MurmurHash3's finaliser)."""
    shift = np.uint64(33)
    hashes = (hashes ^ (hashes >> shift)) * np.uint64(0xFF51AFD7ED558CCD)
    hashes = (hashes ^ (hashes >> shift)) * np.uint64(0xC4CEB9FE1A85EC53)
    return hashes ^ (hashes >> shift)


def keyed(documents: np.ndarray, hashes: np.ndarray, count: int) -> np.ndarray:
    """Hashes by which to compare within documents only.

    Args:
        documents: Number of the document of each hash, int64 [n].
        hashes: uint64 [n].
        count: Number of documents.

    Returns:
        uint64 [n]: the document in the leading bits, then those of the hash that there is room for
        (51 in a full batch).
    """
    bits = np.uint64(max(1, count.bit_length()))
    return documents.astype(np.uint64) << (np.uint64(64) - bits) | hashes >> bits


def _rounded(count: int) -> int:
    """The power of two above a number: few different sizes of ``_powers`` are made."""
    return max(_BATCH_CHARACTERS, 1 << count.bit_length())


@cache
def _powers(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base from the first on, and of its inverse from the zeroth on, modulo 2^64.

    Returns:
        uint64 [count] each.
    """
    powers = np.full(count, _BASE, dtype=np.uint64)
    inverses = np.full(count, _INVERSE, dtype=np.uint64)
    inverses[0] = 1
    return np.multiply.accumulate(powers), np.multiply.accumulate(inverses)
