"""The grammar of the concepts corpus: its tokens, and documents as rows of them.

Everything is done for many documents at a time. A document is laid out in a row of columns, of
which those that it does not need are left out at the end:

    opening | link, statement | ... | recap | link, statement | ... | end of document

The recap and what follows it are there if something is told again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from megatron_sbp.corpus.concepts.difficulty import Difficulty
from megatron_sbp.corpus.concepts.vocabulary import SPECIAL
from megatron_sbp.corpus.concepts.words import (
    FRAMES,
    NOUNS,
    OPENINGS,
    PIECE,
    RECAP,
    UNNAMED,
    long_name,
    syllable,
    value_word,
)

STRUCTURE, NAME, VALUE = 0, 1, 2
"""Kinds of tokens: words of sentences and nouns, parts of names, values."""

_EOD = 0
# What stands in a table of sentences where there is no token.
NONE, _NOUN, _VALUE, _NAME = -1, -2, -3, -4  # part i of a name is _NAME - i


@dataclass(frozen=True, slots=True, eq=False)
class Documents:
    """What some documents say, and how."""

    style: np.ndarray
    """int64 [n]"""
    name: np.ndarray
    """int64 [n], number of the name; -1 where none is given"""
    attribute: np.ndarray
    """int64 [n, statements], in their order"""
    value: np.ndarray
    """int64 [n, statements]"""
    wording: np.ndarray
    """int64 [n, statements]"""

    def __len__(self) -> int:
        return len(self.style)

    def __getitem__(self, rows: np.ndarray | slice) -> "Documents":
        return Documents(*(getattr(self, field.name)[rows] for field in fields(self)))

    def repeats(self, told: int) -> np.ndarray:
        """Which of the statements after the first ``told`` say what one of these says.

        Returns:
            bool [n, statements - told].
        """
        new, again = slice(told), slice(told, None)
        same = self.attribute[:, again, None] == self.attribute[:, None, new]
        same &= self.value[:, again, None] == self.value[:, None, new]
        return same.any(axis=2)

    @classmethod
    def join(cls, parts: Sequence["Documents"]) -> Self:
        """The documents of several batches as one."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Tokens of some documents, one document after another."""

    tokens: np.ndarray
    """int64 [tokens]"""
    starts: np.ndarray
    """int64 [n + 1], first token of each document, then the number of tokens"""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @classmethod
    def of(cls, documents: list[np.ndarray]) -> Self:
        """Join documents."""
        lengths = [len(tokens) for tokens in documents]
        tokens = np.concatenate([np.empty(0, np.int64), *documents]).astype(np.int64)
        return cls(tokens, np.concatenate([[0], lengths]).cumsum(dtype=np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]"""
        return np.diff(self.starts)

    def take(self, documents: np.ndarray) -> "Rows":
        """The given documents, bool [n]."""
        lengths = self.lengths
        starts = np.concatenate([[0], lengths[documents]]).cumsum(dtype=np.int64)
        return Rows(self.tokens[np.repeat(documents, lengths)], starts)


class Grammar:
    """Tokens and sentences of a difficulty.

    Args:
        difficulty: Sizes; the seed does not matter here.
    """

    def __init__(self, difficulty: Difficulty):
        self.difficulty = difficulty
        frames = FRAMES[: difficulty.wordings]
        openings = OPENINGS[: difficulty.styles]
        recaps = [RECAP] if difficulty.restated else []
        sentences = [*frames, UNNAMED, *(text for pair in openings for text in pair), *recaps]
        pieces = [piece for sentence in sentences for piece in PIECE.findall(sentence)]
        words = [piece for piece in dict.fromkeys(pieces) if "{" not in piece]
        self.vocabulary = SPECIAL + words
        """Text of every token."""
        self._id = {word: number for number, word in enumerate(self.vocabulary)}
        self.nouns = self._add(f" {noun}" for noun in NOUNS[: difficulty.attributes])
        """Ids of the attributes' names."""
        self.first_parts, self.parts = self._add_names(difficulty)
        """Ids of what names begin with, and of what follows in them."""
        count = difficulty.attributes * difficulty.values
        self.values = self._add(f" {value_word(number)}" for number in range(count))
        """Ids of the values, attribute by attribute."""
        self.kinds = np.full(len(self.vocabulary), STRUCTURE)
        """int64 [vocabulary], kind of each token."""
        for kind, ids in ((NAME, self.first_parts), (NAME, self.parts), (VALUE, self.values)):
            self.kinds[ids.start : ids.stop] = kind
        self.characters = np.array(
            [0] * len(SPECIAL) + [len(w) for w in self.vocabulary[len(SPECIAL) :]]
        )
        """int64 [vocabulary], characters of each token."""
        self.frames = self._table([self._sentence(frame) for frame in frames])
        """int64 [wordings, width]: tokens and slots of a statement."""
        self.links = np.array([self._id.get(link, NONE) for _, link in openings])
        """int64 [styles]: token before each statement, or none."""
        self.openings = self._with_and_without_name([opening for opening, _ in openings])
        """int64 [2, styles, width]: tokens and slots of an opening, with a name and without."""
        self.recap = self._with_and_without_name(recaps)
        """int64 [2, 1, width] of the recap likewise, or [2, 0, 0]."""

    def _add(self, words: Iterator[str]) -> range:
        first = len(self.vocabulary)
        self.vocabulary += words
        return range(first, len(self.vocabulary))

    def _add_names(self, difficulty: Difficulty) -> tuple[range, range]:
        count = difficulty.first_parts
        if difficulty.name_tokens == 1:
            return self._add(f" {long_name(number)}" for number in range(count)), range(0)
        parts = [syllable(number) for number in range(count)]
        return self._add(f" {part.capitalize()}" for part in parts), self._add(iter(parts))

    def _sentence(self, text: str) -> list[int]:
        row: list[int] = []
        for piece in PIECE.findall(text):
            if piece == " {name}":
                row += [_NAME - part for part in range(self.difficulty.name_tokens)]
            else:
                slots = {" {noun}": _NOUN, " {value}": _VALUE}
                row.append(slots[piece] if piece in slots else self._id[piece])
        return row

    def _with_and_without_name(self, sentences: Sequence[str]) -> np.ndarray:
        named = [self._sentence(text) for text in sentences]
        unnamed = [self._sentence(text.replace(" {name}", UNNAMED)) for text in sentences]
        table = self._table(named + unnamed)
        return table.reshape(2, len(sentences), table.shape[1])

    @staticmethod
    def _table(rows: list[list[int]]) -> np.ndarray:
        table = np.full((len(rows), max(map(len, rows), default=0)), NONE)
        for number, row in enumerate(rows):
            table[number, : len(row)] = row
        return table

    @property
    def name_column(self) -> np.ndarray:
        """int64 [styles], column in which a name begins."""
        return np.argmax(self.openings[0] == _NAME, axis=1)

    @property
    def noun_column(self) -> np.ndarray:
        """int64 [wordings], place of the noun in a statement."""
        return np.argmax(self.frames == _NOUN, axis=1)

    @property
    def value_column(self) -> np.ndarray:
        """int64 [wordings], place of the value in a statement."""
        return np.argmax(self.frames == _VALUE, axis=1)

    @property
    def statement_columns(self) -> np.ndarray:
        """int64 [statements], column of each statement's first word; its link stands before it."""
        statement = np.arange(self.difficulty.statements)
        after_recap = (statement >= self.difficulty.told) * self.recap.shape[2]
        return self.openings.shape[2] + 1 + statement * (self.frames.shape[1] + 1) + after_recap

    def name_digits(self, names: np.ndarray) -> np.ndarray:
        """Number of each part of some names: int64 [n] to int64 [n, name tokens]."""
        size, base = self.difficulty.name_tokens, self.difficulty.first_parts
        powers = base ** np.arange(size - 1, -1, -1, dtype=np.int64)
        return names[:, None] // powers % base

    def lay_out(self, documents: Documents) -> np.ndarray:
        """Tokens of documents in their columns, -1 where a document has none: int64 [n, width]."""
        unnamed = (documents.name < 0).astype(int)
        opening = self._name(self.openings[unnamed, documents.style], documents.name)
        statement = self.frames[documents.wording]
        noun = self.nouns.start + documents.attribute[..., None]
        number = documents.attribute * self.difficulty.values + documents.value
        value = self.values.start + number[..., None]
        statement = np.where(statement == _NOUN, noun, statement)
        statement = np.where(statement == _VALUE, value, statement)
        link = np.broadcast_to(self.links[documents.style, None, None], noun.shape)
        statements = np.concatenate([link, statement], axis=2)
        count, many, width = statements.shape
        first = self.difficulty.told * width  # columns of what is told for the first time
        columns = statements.reshape(count, many * width)
        recap = np.empty((count, 0), np.int64)
        if self.difficulty.restated:
            recap = self._name(self.recap[unnamed, 0], documents.name)
        end = np.full((count, 1), _EOD)
        return np.concatenate([opening, columns[:, :first], recap, columns[:, first:], end], axis=1)

    def _name(self, sentences: np.ndarray, names: np.ndarray) -> np.ndarray:
        """Sentences with names in their slots: int64 [n, width]."""
        for part, digit in enumerate(self.name_digits(names).T):
            first = (self.first_parts if part == 0 else self.parts).start
            sentences = np.where(sentences == _NAME - part, first + digit[:, None], sentences)
        return sentences

    def render(self, documents: Documents) -> Rows:
        """Tokens of documents, the end-of-document token included."""
        table = self.lay_out(documents)
        there = table != NONE
        starts = np.concatenate([[0], there.sum(axis=1)]).cumsum(dtype=np.int64)
        return Rows(table[there], starts)
