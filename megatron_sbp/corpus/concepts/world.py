"""The concepts themselves, and the documents about them, all made from a seed.

The documents that could be written about a concept are numbered. A corpus takes them in an order
that is random for every concept, without repeating one, so that splits that take different places
of that order never have a document in common, and nothing needs to be remembered.
"""

from math import perm
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.concepts.difficulty import Difficulty
from megatron_sbp.corpus.concepts.grammar import Documents, Grammar
from megatron_sbp.corpus.words import MIX, mixed
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.npy import read_npz

TRUTH = "concepts.npz"
"""File of a concepts corpus with the names and values of all concepts."""

_ROUNDS = 8
_NAMES, _DOCUMENTS, _UNNAMED, _ORDER = range(4)  # what a random key is for


class World:
    """Concepts with names and values.

    Args:
        difficulty: Sizes and seed.
        names: int64 [concepts], number of each concept's name, all different.
        values: int64 [concepts, attributes].
    """

    def __init__(self, difficulty: Difficulty, names: np.ndarray, values: np.ndarray):
        self.difficulty, self.names, self.values = difficulty, names, values
        self.grammar = Grammar(difficulty)
        self._by_name = np.argsort(names)

    @classmethod
    def draw(cls, difficulty: Difficulty) -> "World":
        """Make the concepts of the seed: names without repetition, values uniform."""
        key = _key(difficulty.seed, _NAMES, np.zeros(1))
        names = permuted(np.arange(difficulty.concepts), difficulty.names, key)
        random = np.random.default_rng(difficulty.seed)
        shape = (difficulty.concepts, difficulty.attributes)
        return cls(difficulty, names, random.integers(difficulty.values, size=shape))

    @classmethod
    def open(cls, directory: str | Path) -> "World":
        """Read the concepts that a corpus was made from.

        Raises:
            InputError: If the directory is no finished concepts corpus.
        """
        options: dict[str, Any] | None = Manifest.read(directory).options.get("concepts")
        if options is None:
            raise InputError(
                f"{directory}: is no corpus with known concepts; give one that make_concepts.py "
                "wrote"
            )
        path = Path(directory) / TRUTH
        try:
            arrays = read_npz(path)
            return cls(Difficulty(**options), arrays["names"], arrays["values"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: cannot be read ({error}); make the corpus again") from None

    def save(self, directory: Path) -> None:
        """Write names and values."""
        np.savez(directory / TRUTH, names=self.names, values=self.values)

    def find(self, names: np.ndarray) -> np.ndarray:
        """Concepts of some names.

        Args:
            names: int64 [n], -1 where none was given.

        Returns:
            int64 [n], -1 where no concept has the name.
        """
        sorted_names = self.names[self._by_name]
        places = np.minimum(np.searchsorted(sorted_names, names), len(self.names) - 1)
        return np.where(sorted_names[places] == names, self._by_name[places], -1)

    def write(self, concepts: np.ndarray, places: np.ndarray) -> Documents:
        """Documents of concepts at places of their orders.

        Args:
            concepts: int64 [n]
            places: int64 [n], below the number of documents that there are about a concept.
        """
        sizes = self.difficulty
        numbers = permuted(places, sizes.documents, _key(sizes.seed, _DOCUMENTS, concepts))
        numbers, style = np.divmod(numbers, sizes.styles)
        wording = np.empty((len(numbers), sizes.statements), np.int64)
        for statement in range(sizes.statements):
            numbers, wording[:, statement] = np.divmod(numbers, sizes.wordings)
        numbers, again = np.divmod(numbers, perm(sizes.told, sizes.restated))
        attribute = _arrangement(numbers, sizes.attributes, sizes.told)
        restated = _arrangement(again, sizes.told, sizes.restated)
        attribute = np.hstack([attribute, np.take_along_axis(attribute, restated, axis=1)])
        key = _key(sizes.seed, _UNNAMED, concepts) + places.astype(np.uint64)
        unnamed = mixed(key * MIX) < np.float64(2.0**64) * sizes.unnamed_share
        return Documents(
            style=style,
            name=np.where(unnamed, -1, self.names[concepts]),
            attribute=attribute,
            value=self.values[concepts[:, None], attribute],
            wording=wording,
        )

    def mixture(self, documents: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
        """Concepts of a split with its documents in random order.

        Args:
            documents: int64 [n], numbers of documents of the split.
            each: Documents of every concept in it.

        Returns:
            Concept of each document, int64 [n], and which of the concept's it is, int64 [n].
        """
        key = _key(self.difficulty.seed, _ORDER, np.array([each]))
        rows = permuted(documents, each * self.difficulty.concepts, key)
        concepts, places = np.divmod(rows, each)
        return concepts, places


def _key(seed: int, purpose: int, numbers: np.ndarray) -> np.ndarray:
    """Random keys, uint64 [n], one for every number."""
    base = mixed(np.array([seed], np.uint64) * MIX + np.uint64(purpose + 1))
    return mixed(base + numbers.astype(np.uint64) * MIX)


def permuted(numbers: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """Where random permutations of 0 to size - 1 take some numbers.

    A Feistel network on the next power of four, walked until it is back inside (Black and Rogaway,
    2002).

    Args:
        numbers: int64 [n], from 0 to size - 1.
        size: At most 2^62.
        key: uint64 [n] or [1]; which permutation.

    Returns:
        int64 [n].
    """
    half = np.uint64(((size - 1).bit_length() + 1) // 2)
    mask = (np.uint64(1) << half) - np.uint64(1)
    result = numbers.astype(np.uint64)
    keys = np.broadcast_to(key, result.shape)
    turns = mixed(np.arange(1, _ROUNDS + 1, dtype=np.uint64))
    outside = np.arange(len(result))
    while len(outside):
        left, right = result[outside] >> half, result[outside] & mask
        for turn in turns:
            spread = mixed((keys[outside] ^ turn) + right * MIX)
            left, right = right, left ^ (mixed(spread) & mask)
        result[outside] = (left << half) | right
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def _arrangement(numbers: np.ndarray, size: int, count: int) -> np.ndarray:
    """The arrangements of ``count`` of ``size`` things with some numbers, int64 [n, count].

    Every number below size! / (size - count)! has another one (the Fisher-Yates shuffle, with the
    digits of the number in place of random draws).
    """
    assert len(numbers) == 0 or numbers.max() < perm(size, count)
    things = np.tile(np.arange(size), (len(numbers), 1))
    rows = np.arange(len(numbers))
    for place in range(count):
        numbers, digit = np.divmod(numbers, size - place)
        chosen = things[rows, place + digit]
        things[rows, place + digit] = things[:, place]
        things[:, place] = chosen
    return things[:, :count]
