"""What texts say: statements, names and whole documents of the grammar, found in tokens."""

from dataclasses import dataclass

import numpy as np

from megatron_sbp.corpus.concepts.grammar import NONE, Documents, Grammar, Rows


@dataclass(frozen=True, slots=True, eq=False)
class Statements:
    """Statements found in some documents, in their order.

    A statement is found where its first word stands. It is well formed if it goes on as its wording
    does, with the name of an attribute, a value of this attribute and the end of the sentence.
    """

    document: np.ndarray
    """int64 [statements]"""
    wording: np.ndarray
    """int64 [statements]"""
    attribute: np.ndarray
    """int64 [statements]; -1 if it is not well formed"""
    value: np.ndarray
    """int64 [statements]; -1 if it is not well formed"""

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, rows: np.ndarray) -> "Statements":
        return Statements(
            self.document[rows], self.wording[rows], self.attribute[rows], self.value[rows]
        )


class Parser:
    """Reads what a grammar writes, and whatever else a model may write with its tokens.

    Args:
        grammar: The grammar.
    """

    def __init__(self, grammar: Grammar):
        self._grammar = grammar
        self._wording = self._places(grammar.frames[:, 0])
        self._style = self._places(grammar.openings[0, :, 0])
        self._lengths = (grammar.frames != NONE).sum(axis=1)

    def _places(self, tokens: np.ndarray) -> np.ndarray:
        """For every token its place among some, or -1: int64 [vocabulary]."""
        table = np.full(len(self._grammar.vocabulary), -1)
        table[tokens] = np.arange(len(tokens))
        return table

    def statements(self, rows: Rows) -> Statements:
        """Every statement of some documents, well formed or not."""
        grammar, sizes = self._grammar, self._grammar.difficulty
        begins = np.flatnonzero(self._wording[rows.tokens] >= 0)
        wording = self._wording[rows.tokens[begins]]
        document = _document_of(begins, rows)
        frame = grammar.frames[wording]
        found = _windows(rows.tokens, begins, frame.shape[1])
        order = np.arange(len(begins))
        attribute = found[order, grammar.noun_column[wording]] - grammar.nouns.start
        number = found[order, grammar.value_column[wording]] - grammar.values.start
        well_formed = (
            ((frame < 0) | (found == frame)).all(axis=1)
            & (begins + self._lengths[wording] <= rows.starts[document + 1])
            & (attribute >= 0)
            & (attribute < sizes.attributes)
            & (number >= 0)
            & (number // sizes.values == attribute)
        )
        return Statements(
            document=document,
            wording=wording,
            attribute=np.where(well_formed, attribute, -1),
            value=np.where(well_formed, number % sizes.values, -1),
        )

    def names(self, rows: Rows) -> np.ndarray:
        """Number of the first name in each document, or -1: int64 [n]."""
        grammar, size = self._grammar, self._grammar.difficulty.name_tokens
        first = grammar.first_parts
        begins = np.flatnonzero((rows.tokens >= first.start) & (rows.tokens < first.stop))
        found = _windows(rows.tokens, begins, size)
        number = found[:, 0] - first.start
        whole = np.ones(len(begins), dtype=bool)
        for part in found.T[1:]:
            digit = part - grammar.parts.start
            whole &= (digit >= 0) & (digit < len(grammar.parts))
            number = number * len(grammar.parts) + digit
        document = _document_of(begins, rows)
        whole &= begins + size <= rows.starts[document + 1]
        names = np.full(len(rows), -1)
        documents, places = np.unique(document[whole], return_index=True)
        names[documents] = number[whole][places]
        return names

    def documents(self, rows: Rows) -> tuple[np.ndarray, Documents]:
        """The documents that the grammar could have written, whatever is true.

        Returns:
            Which they are, bool [n], and what they say.
        """
        sizes = self._grammar.difficulty
        statements = self.statements(rows)
        statements = statements[statements.attribute >= 0]
        some = np.flatnonzero(rows.lengths > 0)
        style = np.full(len(rows), -1)
        style[some] = self._style[rows.tokens[rows.starts[some]]]
        whole = np.bincount(statements.document, minlength=len(rows)) == sizes.statements
        whole &= style >= 0
        statements = statements[whole[statements.document]]
        shape = (int(whole.sum()), sizes.statements)
        documents = Documents(
            style=style[whole],
            name=self.names(rows)[whole],
            attribute=statements.attribute.reshape(shape),
            value=statements.value.reshape(shape),
            wording=statements.wording.reshape(shape),
        )
        written = _equal(self._grammar.render(documents), rows.take(whole))
        written &= _consistent(documents, sizes.told)
        whole[whole] = written
        return whole, documents[written]


def _consistent(documents: Documents, told: int) -> np.ndarray:
    """Which documents tell nothing twice, and again only what they told: bool [n]."""
    new, again = documents.attribute[:, :told], documents.attribute[:, told:]
    return _all_different(new) & _all_different(again) & documents.repeats(told).all(axis=1)


def _all_different(rows: np.ndarray) -> np.ndarray:
    """Which rows have no number twice: bool [n]."""
    return (np.diff(np.sort(rows, axis=1), axis=1) > 0).all(axis=1)


def _document_of(places: np.ndarray, rows: Rows) -> np.ndarray:
    """Document that each of some tokens stands in."""
    return np.searchsorted(rows.starts, places, side="right") - 1


def _windows(tokens: np.ndarray, begins: np.ndarray, width: int) -> np.ndarray:
    """The tokens from some places on, int64 [n, width], -1 beyond the end."""
    padded = np.concatenate([tokens, np.full(width, -1)])
    return padded[begins[:, None] + np.arange(width)]


def _equal(rows: Rows, others: Rows) -> np.ndarray:
    """Which documents are equal to their partners, bool [n]."""
    equal = rows.lengths == others.lengths
    ours, theirs = rows.take(equal), others.take(equal)
    wrong = ours.tokens != theirs.tokens
    different = np.unique(_document_of(np.flatnonzero(wrong), ours))
    equal[np.flatnonzero(equal)[different]] = False
    return equal
