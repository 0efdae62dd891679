"""What is true of pairs and of documents in a concepts corpus, against plain readings."""

import dataclasses
import itertools

import numpy as np
import pytest

from megatron_sbp.corpus.concepts.grammar import NAME, VALUE, Grammar, Rows
from megatron_sbp.corpus.concepts.make import MakeOptions
from megatron_sbp.corpus.concepts.parse import Parser
from megatron_sbp.corpus.concepts.truth import (
    Truth,
    concepts_of,
    pair_truth,
    read_documents,
    told,
)
from megatron_sbp.corpus.concepts.world import World
from tests.corpus.concepts_corpus import corpus_of, small_corpus


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> MakeOptions:
    return small_corpus(tmp_path_factory.mktemp("concepts") / "concepts")


def test_pairs_against_brute_force() -> None:
    random = np.random.default_rng(2)
    concepts = random.integers(6, size=30)
    anchor, neighbor = np.array(
        [pair for pair in itertools.permutations(range(30), 2) if random.random() < 0.3]
    ).T
    score = random.random(len(anchor))
    score[score < 0.2] = 0.2
    possible = {
        frozenset(pair)
        for pair in itertools.combinations(range(30), 2)
        if concepts[pair[0]] == concepts[pair[1]]
    }
    for row in pair_truth(concepts, anchor, neighbor, score, [0.0, 0.5, 0.9]):
        above = score >= row.similarity
        pairs = {frozenset(pair) for pair in zip(anchor[above], neighbor[above], strict=True)}
        assert row.pairs == len(pairs)
        assert row.precision == pytest.approx(len(pairs & possible) / len(pairs))
        assert row.recall == pytest.approx(len(pairs & possible) / len(possible))
        assert row.anchors == len(set(anchor[above].tolist()))


def test_planted_falsehoods_are_found(options: MakeOptions) -> None:
    """Training documents with defects: what is found is what was done to each."""
    world, corpus = World.open(options.output), corpus_of(options, "real")
    grammar, concepts = world.grammar, concepts_of(corpus)
    random = np.random.default_rng(8)
    heldout = corpus_of(options, "real-heldout")
    documents, seeds, wanted = [], [], []
    for number in range(len(heldout)):
        tokens = heldout.tokens(number).astype(np.int64)
        values = np.flatnonzero(grammar.kinds[tokens] == VALUE)
        names = np.flatnonzero(grammar.kinds[tokens] == NAME)
        statements = well_formed = true = 5
        whole, concept = True, int(concepts_of(heldout)[number])
        for place in random.choice(values, number % 3, replace=False):
            # Another value of the same attribute.
            first = (tokens[place] - grammar.values.start) // 32 * 32 + grammar.values.start
            tokens[place] = random.choice(np.setdiff1d(np.arange(first, first + 32), tokens[place]))
            true -= 1
        if number % 4 == 1:  # the last value lies in another attribute
            step = 32 if tokens[values[-1]] < grammar.values.stop - 32 else -32
            true -= int(is_true(world, concept, tokens, values[-1]))
            tokens[values[-1]] += step
            well_formed, whole = 4, False
        if number % 5 == 2:  # cut inside the last statement
            if number % 4 != 1:
                true -= int(is_true(world, concept, tokens, values[-1]))
            tokens = np.append(tokens[: values[-1]], tokens[-1])
            well_formed, whole = 4, False
        if number % 7 == 3:  # no concept has this name
            tokens[names] = nobody(world)
            concept, true = -1, 0
        documents.append(tokens)
        seeds.append(number)
        wanted.append((concept, whole, statements, well_formed, true, concept == concepts[number]))
    found = Truth(world, corpus).check(Rows.of(documents), np.array(seeds))
    columns = (
        found.named,
        found.whole,
        found.statements,
        found.well_formed,
        found.true,
        found.same_concept,
    )
    assert [tuple(row) for row in np.stack(columns, axis=1).tolist()] == [
        tuple(map(int, row)) for row in wanted
    ]


def is_true(world: World, concept: int, tokens: np.ndarray, place: int) -> bool:
    attribute, value = divmod(int(tokens[place]) - world.grammar.values.start, 32)
    return bool(world.values[concept, attribute] == value)


def nobody(world: World) -> np.ndarray:
    """Tokens of a name that no concept has."""
    number = np.setdiff1d(np.arange(world.difficulty.names), world.names)[:1]
    (digits,) = world.grammar.name_digits(number)
    starts = [world.grammar.first_parts.start] + [world.grammar.parts.start] * 2
    return digits + np.array(starts)


def test_copies_and_what_the_seed_told(options: MakeOptions) -> None:
    world, corpus = World.open(options.output), corpus_of(options, "real")
    real = read_documents(world, corpus)
    rows = world.grammar.render(
        dataclasses.replace(
            real,
            # The same statements in another order, style and wording.
            style=(real.style + 1) % 4,
            attribute=real.attribute[:, ::-1],
            value=real.value[:, ::-1],
            wording=(real.wording + 1) % 4,
        )
    )
    truth = Truth(world, corpus)
    found = truth.check(rows, np.roll(np.arange(len(real)), 1))
    assert found.copied.all() and (found.true == 5).all()
    told_by = [set(zip(a, v, strict=True)) for a, v in zip(real.attribute, real.value, strict=True)]
    common = [len(own & told_by[number - 1]) for number, own in enumerate(told_by)]
    true_of_both = truth.concepts == np.roll(truth.concepts, 1)
    assert found.same_concept.tolist() == true_of_both.tolist()
    assert found.from_seed.tolist() == common
    heldout = truth.check_corpus(corpus_of(options, "real-heldout"))
    statements = {
        (concept, frozenset(one)) for concept, one in zip(truth.concepts, told_by, strict=True)
    }
    own = read_documents(world, corpus_of(options, "real-heldout"))
    expected = [
        (concept, frozenset(zip(a, v, strict=True))) in statements
        for concept, a, v in zip(heldout.named, own.attribute, own.value, strict=True)
    ]
    assert heldout.copied.tolist() == expected


def test_statements_made_twice(options: MakeOptions) -> None:
    """A document that repeats itself is not whole; as a set it may still be a copy."""
    world, corpus = World.open(options.output), corpus_of(options, "real")
    real = read_documents(world, corpus)
    shorter = dataclasses.replace(world.difficulty, told=6)
    rows = Grammar(shorter).render(
        dataclasses.replace(
            real,
            attribute=real.attribute[:, [0, 1, 2, 3, 4, 2]],
            value=real.value[:, [0, 1, 2, 3, 4, 2]],
            wording=real.wording[:, [0, 1, 2, 3, 4, 0]],
        )
    )
    found = Truth(world, corpus).check(rows)
    assert not found.whole.any() and found.copied.all() and (found.true == 6).all()
    repeated = dataclasses.replace(
        real, attribute=real.attribute[:, [0, 1, 2, 3, 3]], value=real.value[:, [0, 1, 2, 3, 3]]
    )
    found = Truth(world, corpus).check(world.grammar.render(repeated))
    assert not found.whole.any() and (found.true == 5).all()


def test_what_the_seed_says_of_another_concept_is_not_true(options: MakeOptions) -> None:
    """The seed's statements under another name: true ones, and only they, are from the seed."""
    world, corpus = World.open(options.output), corpus_of(options, "real")
    truth = Truth(world, corpus)
    real, others = truth.training, np.roll(truth.concepts, 1)
    renamed = dataclasses.replace(real, name=world.names[others])
    found = truth.check(world.grammar.render(renamed), np.arange(len(real)))
    right = (world.values[others[:, None], real.attribute] == real.value).sum(axis=1)
    assert found.true.tolist() == found.from_seed.tolist() == right.tolist()
    assert right.sum() < right.size


def test_nothing_is_read_across_documents(options: MakeOptions) -> None:
    """Wherever a document is cut in two, no half says what only both together say."""
    world, corpus = World.open(options.output), corpus_of(options, "real")
    tokens = corpus.tokens(0).astype(np.int64)
    parser = Parser(world.grammar)
    ends = np.flatnonzero(tokens == world.grammar.vocabulary.index("."))
    (name,) = parser.names(Rows.of([tokens]))
    places = np.flatnonzero(world.grammar.kinds[tokens] == NAME)
    values = np.flatnonzero(world.grammar.kinds[tokens] == VALUE)
    for cut in range(1, len(tokens)):
        halves = Rows.of([tokens[:cut], tokens[cut:]])
        statements = parser.statements(halves)
        said = statements.document[statements.attribute >= 0]
        first = int((ends[np.searchsorted(ends, values)] < cut).sum())
        assert (said == 0).sum() == first
        assert len(said) in (4, 5)
        expected = [name if cut > places[-1] else -1, name if cut <= places[0] else -1]
        assert parser.names(halves).tolist() == expected


def test_told_values(options: MakeOptions) -> None:
    world, corpus = World.open(options.output), corpus_of(options, "real")
    documents = read_documents(world, corpus)
    table = told(world, concepts_of(corpus), documents)
    wanted = {
        (int(concept), int(attribute))
        for concept, row in zip(concepts_of(corpus), documents.attribute, strict=True)
        for attribute in row
    }
    assert set(map(tuple, np.argwhere(table).tolist())) == wanted


def test_anything_can_be_checked(options: MakeOptions) -> None:
    """Documents of random tokens, and empty ones, are no error."""
    world = World.open(options.output)
    random = np.random.default_rng(1)
    size = len(world.grammar.vocabulary)
    documents = [random.integers(size, size=length) for length in (0, 1, 40, 0, 300, 0)]
    found = Truth(world, corpus_of(options, "real")).check(Rows.of(documents))
    assert not found.whole.any() and not found.copied.any()
    assert len(found.true) == 6
