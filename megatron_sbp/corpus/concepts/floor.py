"""The entropy floor: how well any reader could predict a document, token by token.

A document comes about by independent uniform choices: a style, a concept, attributes without
repetition, some of these without repetition to be told again, a wording for each statement, and
whether the concept is named. In the grammar every choice shows in one token (in those of the name
for the concept), so that the probability of a token given those before it is a product of the
choices that it shows. Where the concept is named its values follow from it. Where it is not, they
are predicted by all concepts that fit what was told so far, in proportion to how well they fit.
What is told again has the value that it had before.
"""

from dataclasses import dataclass

import numpy as np

from megatron_sbp.corpus.concepts.grammar import NAME, NONE, STRUCTURE, VALUE, Documents, Rows
from megatron_sbp.corpus.concepts.world import World

_BATCH = 1 << 22  # numbers of a table of documents and concepts


@dataclass(frozen=True, slots=True, eq=False)
class Likelihood:
    """Negative log-likelihood of some documents."""

    rows: Rows
    """The documents."""
    nats: np.ndarray
    """float64 [tokens], of each token given those before it; inf for what cannot be"""
    kinds: np.ndarray
    """int64 [tokens]: STRUCTURE, NAME or VALUE"""

    @property
    def per_document(self) -> np.ndarray:
        """float64 [documents], nats of each."""
        return np.add.reduceat(self.nats, self.rows.starts[:-1])

    def summary(self, given: int = 0) -> dict[str, float]:
        """Nats per token and per document, and per token of each kind.

        Args:
            given: First tokens of every document that do not count.
        """
        predicted = np.ones(len(self.nats), bool)
        for place in range(given):
            predicted[self.rows.starts[:-1] + place] = False
        nats, kinds = self.nats[predicted], self.kinds[predicted]
        of_kind = {"structure": STRUCTURE, "name": NAME, "value": VALUE}
        means = {
            f"per_{name}_token": float(nats[kinds == kind].mean())
            for name, kind in of_kind.items()
            if (kinds == kind).any()
        }
        return {
            "per_token": float(nats.mean()),
            "per_document": float(nats.sum() / len(self.rows)),
        } | means


def likelihood(world: World, documents: Documents, known: np.ndarray) -> Likelihood:
    """How likely documents are to a reader that knows the grammar, all names, and some values.

    Args:
        world: The concepts.
        documents: What is read.
        known: bool [concepts, attributes], the values that the reader knows; any other is uniform
            to it. All of them: the process that wrote the documents. Those that documents told:
            the best that can be done with what these say, told which concept each is about.
    """
    grammar, sizes = world.grammar, world.difficulty
    table = grammar.lay_out(documents)
    nats = np.zeros(table.shape)
    rows = np.arange(len(documents))
    nats[:, 0] = np.log(sizes.styles)
    named = documents.name >= 0
    column = grammar.name_column[documents.style]
    with np.errstate(divide="ignore"):
        nats[rows, column] -= np.log(np.where(named, 1 - sizes.unnamed_share, sizes.unnamed_share))
    name_columns = column[named, None] + np.arange(sizes.name_tokens)
    nats[rows[named, None], name_columns] += _of_names(world, documents.name[named])
    values = np.empty(documents.value.shape)
    values[named] = _of_named_values(world, documents[named], known)
    values[~named] = _of_unnamed_values(world, documents[~named], known)
    values[:, sizes.told :] = np.where(documents.repeats(sizes.told), 0.0, np.inf)
    left = [sizes.attributes - statement for statement in range(sizes.told)]
    left += [sizes.told - statement for statement in range(sizes.restated)]
    for statement, first in enumerate(grammar.statement_columns):
        wording = documents.wording[:, statement]
        nats[:, first] = np.log(sizes.wordings)
        nats[rows, first + grammar.noun_column[wording]] = np.log(left[statement])
        nats[rows, first + grammar.value_column[wording]] = values[:, statement]
    there = table != NONE
    rendered = grammar.render(documents)
    return Likelihood(rendered, nats[there], grammar.kinds[rendered.tokens])


def _of_names(world: World, names: np.ndarray) -> np.ndarray:
    """Nats of the parts of names, all concepts being equally likely: float64 [n, name tokens]."""
    sizes = world.difficulty
    ordered = np.sort(world.names)
    counts = [np.full(len(names), len(ordered))]
    for left in range(sizes.name_tokens - 1, -1, -1):
        span = sizes.first_parts**left
        begin = names // span * span
        low, high = np.searchsorted(ordered, (begin, begin + span))
        counts.append(high - low)
    with np.errstate(divide="ignore"):
        nats = np.log(np.array(counts).T)
    # After a part that no name goes on with nothing is left to be predicted.
    return np.where(np.isfinite(nats[:, :-1]), nats[:, :-1] - nats[:, 1:], 0.0)


def _of_named_values(world: World, documents: Documents, known: np.ndarray) -> np.ndarray:
    """Nats of the values of concepts that are named: float64 [n, statements]."""
    concepts = world.find(documents.name)[:, None]
    wrong = np.where(world.values[concepts, documents.attribute] == documents.value, 0, np.inf)
    told = known[concepts, documents.attribute] & (concepts >= 0)
    return np.where(told, wrong, np.log(world.difficulty.values))


def _of_unnamed_values(world: World, documents: Documents, known: np.ndarray) -> np.ndarray:
    """Nats of the values of concepts that are not named: float64 [n, statements]."""
    step = max(1, _BATCH // world.difficulty.concepts)
    parts = [
        _of_some_unnamed(world, documents[start : start + step], known)
        for start in range(0, len(documents), step)
    ]
    return np.concatenate([np.empty((0, world.difficulty.statements)), *parts])


def _of_some_unnamed(world: World, documents: Documents, known: np.ndarray) -> np.ndarray:
    uniform = 1 / world.difficulty.values
    weight = np.ones((len(documents), world.difficulty.concepts))
    nats = np.zeros(documents.value.shape)
    for statement in range(world.difficulty.told):
        attribute, value = documents.attribute[:, statement], documents.value[:, statement]
        fits = world.values.T[attribute] == value[:, None]
        before = weight.sum(axis=1)
        weight *= np.where(known.T[attribute], fits, uniform)
        possible = before > 0
        with np.errstate(divide="ignore"):
            nats[possible, statement] = -np.log((weight.sum(axis=1) / before)[possible])
    return nats
