"""The corpus whose truth is known, against plain readings of its definitions."""

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from math import log, perm
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.concepts.difficulty import Difficulty
from megatron_sbp.corpus.concepts.floor import likelihood
from megatron_sbp.corpus.concepts.grammar import NAME, VALUE, Documents, Grammar, Rows
from megatron_sbp.corpus.concepts.make import MakeOptions, floor, make_concepts
from megatron_sbp.corpus.concepts.parse import Parser
from megatron_sbp.corpus.concepts.truth import (
    concepts_of,
    read_documents,
)
from megatron_sbp.corpus.concepts.vocabulary import save_tokenizer
from megatron_sbp.corpus.concepts.words import FRAMES, NOUNS, OPENINGS
from megatron_sbp.corpus.concepts.world import World, permuted
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from tests.corpus.concepts_corpus import corpus_of, small_corpus

TINY = Difficulty(
    concepts=3,
    attributes=3,
    values=2,
    told=2,
    wordings=2,
    styles=2,
    name_tokens=2,
    name_syllables=2,
    unnamed_share=0.3,
    seed=4,
)
FULL = Difficulty(
    concepts=40,
    attributes=len(NOUNS),
    values=9,
    told=6,
    restated=2,
    wordings=len(FRAMES),
    styles=len(OPENINGS),
    name_tokens=3,
    name_syllables=980,
    unnamed_share=0.2,
    seed=11,
)


def text_of(grammar: Grammar, tokens: np.ndarray) -> str:
    return "".join(grammar.vocabulary[token] for token in tokens[:-1])


def split(rows: Rows) -> list[np.ndarray]:
    return np.split(rows.tokens, rows.starts[1:-1])


def some_documents(world: World, count: int, seed: int = 0) -> tuple[np.ndarray, Documents]:
    random = np.random.default_rng(seed)
    concepts = random.integers(world.difficulty.concepts, size=count)
    return concepts, world.write(concepts, random.integers(world.difficulty.documents, size=count))


# The order of documents


@pytest.mark.parametrize("size", [1, 2, 3, 16, 17, 100])
def test_every_permutation_takes_every_number_once(size: int) -> None:
    keys = np.repeat(np.arange(300, dtype=np.uint64) << np.uint64(40), size)
    images = permuted(np.tile(np.arange(size), 300), size, keys).reshape(300, size)
    assert (np.sort(images, axis=1) == np.arange(size)).all()
    if size > 3:
        # Where a number goes is uniform over the keys: chi-square by column, mean size - 1.
        counts = np.stack([np.bincount(column, minlength=size) for column in images.T])
        expected = 300 / size
        statistic = ((counts - expected) ** 2 / expected).sum() / size
        assert abs(statistic - (size - 1)) < 0.35 * size


@pytest.mark.parametrize(("restated", "ways"), [(0, 1), (1, 2 * 2), (2, 2 * 2**2)])
def test_a_concept_is_told_in_every_way_once(restated: int, ways: int) -> None:
    tiny = dataclasses.replace(TINY, unnamed_share=0.0, restated=restated)
    world = World.draw(tiny)
    count = tiny.documents
    assert count == 2 * perm(3, 2) * 2**2 * ways
    documents = world.write(np.ones(count, np.int64), np.arange(count))
    rows = split(world.grammar.render(documents))
    assert len({tokens.tobytes() for tokens in rows}) == count
    assert (documents.value == world.values[1, documents.attribute]).all()


def test_documents_without_a_name_are_drawn_one_by_one() -> None:
    world = World.draw(dataclasses.replace(TINY, unnamed_share=0.3, wordings=2, styles=2))
    concepts = np.repeat(np.arange(3), 48)
    unnamed = world.write(concepts, np.tile(np.arange(48), 3)).name.reshape(3, 48) < 0
    # 0.3 +- 5 standard deviations of all, and both kinds of every concept.
    assert abs(unnamed.mean() - 0.3) < 5 * (0.3 * 0.7 / 144) ** 0.5
    assert unnamed.any(axis=1).all() and not unnamed.all(axis=1).any()


# The grammar


@pytest.mark.parametrize(
    "difficulty", [TINY, FULL, dataclasses.replace(FULL, name_tokens=1)], ids=["tiny", "full", "1"]
)
def test_what_is_written_is_read(difficulty: Difficulty, tmp_path: Path) -> None:
    """Parsing gives back what was rendered, and the tokenizer the tokens of its text."""
    world = World.draw(difficulty)
    _, documents = some_documents(world, 500)
    rows = world.grammar.render(documents)
    whole, found = Parser(world.grammar).documents(rows)
    assert whole.all()
    for name in ("style", "name", "attribute", "value", "wording"):
        assert (getattr(found, name) == getattr(documents, name)).all(), name
    kinds = world.grammar.kinds[rows.tokens]
    assert (kinds == VALUE).sum() == documents.value.size
    mentions = 2 if difficulty.restated else 1
    assert (kinds == NAME).sum() == mentions * difficulty.name_tokens * (documents.name >= 0).sum()
    assert len(set(world.grammar.vocabulary)) == len(world.grammar.vocabulary)
    tokenizer = save_tokenizer(world.grammar.vocabulary, tmp_path / "tokenizer")
    bodies = [tokens[:-1] for tokens in split(rows)]
    texts = [text_of(world.grammar, tokens) for tokens in split(rows)]
    assert tokenizer.decode_batch(bodies) == texts
    assert tokenizer.encode_batch(texts) == [body.tolist() for body in bodies]
    assert {int(tokens[-1]) for tokens in split(rows)} == {tokenizer.eod}


def test_text_is_sentences() -> None:
    """The text by a pattern of its own, written from the words of the grammar."""
    world = World.draw(FULL)
    concepts, documents = some_documents(world, 200)
    statements = [
        re.escape(frame)
        .replace(r"\{noun\}", "(?P<noun>[a-z]+)")
        .replace(r"\{value\}", "(?P<value>[A-Z][a-z]{4})")
        for frame in FRAMES
    ]
    first_value = world.grammar.values.start
    for concept, tokens in zip(concepts, split(world.grammar.render(documents)), strict=True):
        text = text_of(world.grammar, tokens)
        opening, link = next(
            (start.partition("{name}"), link)
            for start, link in OPENINGS
            if text.startswith(start.partition("{name}")[0])
        )
        place = len(opening[0])
        end = text.index(opening[2], place)
        assert re.fullmatch(r"a town|[A-Z][a-z]{8}", text[place:end])
        place = end + len(opening[2])
        for number in range(FULL.statements):
            if number == FULL.told:
                recap = f" Once more about {text[len(opening[0]) : end]}:"
                assert text.startswith(recap, place)
                place += len(recap)
            assert text.startswith(link, place)
            place += len(link)
            (found,) = filter(None, (re.compile(one).match(text, place) for one in statements))
            attribute = NOUNS.index(found["noun"])
            value_number = attribute * FULL.values + int(world.values[concept, attribute])
            assert world.grammar.vocabulary[first_value + value_number] == f" {found['value']}"
            place = found.end()
        assert place == len(text)


def test_every_change_of_a_token_is_noticed() -> None:
    """A document with one token changed is another document, or none."""
    world = World.draw(dataclasses.replace(FULL, restated=0))
    random = np.random.default_rng(3)
    _, documents = some_documents(world, 60)
    originals = split(world.grammar.render(documents))
    changed = []
    for tokens in originals:
        copy = tokens.copy()
        place = random.integers(len(copy))
        others = np.delete(np.arange(len(world.grammar.vocabulary)), copy[place])
        copy[place] = random.choice(others)
        changed.append(copy)
    whole, found = Parser(world.grammar).documents(Rows.of(changed))
    assert 0 < whole.sum() < len(whole)
    again = split(world.grammar.render(found))
    expected = [tokens.tolist() for tokens, kept in zip(changed, whole, strict=True) if kept]
    assert [tokens.tolist() for tokens in again] == expected


# The floor


def by_hand(world: World, concepts: np.ndarray) -> Iterator[tuple[tuple[int, ...], float]]:
    """Every document that can be written, as tokens, with the probability of writing it."""
    sizes = world.difficulty
    arrangements = [
        told + again
        for told in itertools.permutations(range(sizes.attributes), sizes.told)
        for again in itertools.permutations(told, sizes.restated)
    ]
    wordings = list(itertools.product(range(sizes.wordings), repeat=sizes.statements))
    choices = list(itertools.product(range(sizes.styles), arrangements, wordings))
    for (concept, values), named in itertools.product(enumerate(concepts), (True, False)):
        name = world.names[concept] if named else -1
        chance = 1 - sizes.unnamed_share if named else sizes.unnamed_share
        documents = Documents(
            style=np.array([style for style, _, _ in choices]),
            name=np.full(len(choices), name),
            attribute=np.array([order for _, order, _ in choices]),
            value=np.array([values[list(order)] for _, order, _ in choices]),
            wording=np.array([wording for _, _, wording in choices]),
        )
        for tokens in split(world.grammar.render(documents)):
            yield tuple(tokens.tolist()), chance / len(choices) / len(concepts)


@pytest.mark.parametrize("restated", [0, 1])
@pytest.mark.parametrize("reader", ["all", "some", "none"])
def test_the_floor_is_the_probability_of_every_token(reader: str, restated: int) -> None:
    """Against all documents of a tiny world, averaged over all values that are not known."""
    world = World.draw(dataclasses.replace(TINY, restated=restated))
    known = np.ones(world.values.shape, dtype=bool)
    if reader != "all":
        known[:] = False
    if reader == "some":
        known[0, :2] = known[1, 2] = True
    unknown = np.argwhere(~known)[:5]  # of five or none that are not known: 32 worlds
    known[:] = True
    known[tuple(unknown.T)] = False
    chances: dict[tuple[int, ...], float] = defaultdict(float)
    filled = list(itertools.product(range(TINY.values), repeat=len(unknown)))
    for guess in filled:
        values = world.values.copy()
        values[tuple(unknown.T)] = guess
        for tokens, chance in by_hand(world, values):
            chances[tokens] += chance / len(filled)
    prefixes: dict[tuple[int, ...], float] = defaultdict(float)
    for tokens, chance in chances.items():
        for end in range(len(tokens) + 1):
            prefixes[tokens[:end]] += chance
    assert prefixes[()] == pytest.approx(1)

    texts = list(chances)
    rows = Rows.of([np.array(tokens) for tokens in texts])
    whole, documents = Parser(world.grammar).documents(rows)
    assert whole.all()
    found = likelihood(world, documents, known)
    assert (found.rows.tokens == rows.tokens).all()
    assert np.exp(-found.per_document).sum() == pytest.approx(1)
    for tokens, nats in zip(texts, np.split(found.nats, rows.starts[1:-1]), strict=True):
        wanted = [
            log(prefixes[tokens[:end]] / prefixes[tokens[: end + 1]]) for end in range(len(tokens))
        ]
        assert nats == pytest.approx(wanted, abs=1e-9)


def test_what_is_told_again_must_be_what_was_told() -> None:
    world = World.draw(dataclasses.replace(FULL, unnamed_share=0.0))
    _, documents = some_documents(world, 50)
    every = np.ones(world.values.shape, dtype=bool)
    assert np.isfinite(likelihood(world, documents, every).per_document).all()
    value, attribute = documents.value.copy(), documents.attribute.copy()
    value[:, -1] = (value[:, -1] + 1) % FULL.values
    untold = [min(set(range(FULL.attributes)) - set(row)) for row in attribute.tolist()]
    attribute[:, -1] = untold
    parser = Parser(world.grammar)
    for changed in ({"value": value}, {"attribute": attribute}):
        other = dataclasses.replace(documents, **changed)
        assert np.isinf(likelihood(world, other, every).per_document).all()
        assert not parser.documents(world.grammar.render(other))[0].any()


def test_what_cannot_be_has_no_probability() -> None:
    world = World.draw(dataclasses.replace(TINY, unnamed_share=0.0))
    _, documents = some_documents(world, 20)
    every = np.ones(world.values.shape, dtype=bool)
    for name, wrong in (("value", 1 - documents.value), ("name", np.full(20, -1))):
        changed = dataclasses.replace(documents, **{name: wrong})
        assert np.isinf(likelihood(world, changed, every).per_document).all()
    (nobody,) = set(range(TINY.names)) - set(world.names.tolist())
    changed = dataclasses.replace(documents, name=np.full(20, nobody))
    assert np.isinf(likelihood(world, changed, every).per_document).all()


# The corpus


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> MakeOptions:
    return small_corpus(tmp_path_factory.mktemp("concepts") / "concepts")


def texts(corpus: Corpus) -> list[str]:
    return list(corpus.texts(range(len(corpus))))


def test_the_seed_decides_everything(options: MakeOptions, tmp_path: Path) -> None:
    for seed, same in ((9, True), (10, False)):
        other = dataclasses.replace(options, output=str(tmp_path / f"{seed}"), seed=seed)
        make_concepts(other)
        for name in ("real.bin", "oracle.concept.npy", "concepts.npz"):
            ours, theirs = (Path(some.output, name).read_bytes() for some in (options, other))
            assert (ours == theirs) == same, name


def test_splits_share_concepts_and_no_documents(options: MakeOptions) -> None:
    world, every = World.open(options.output), []
    for name, each in (("real-heldout", 1), ("real", 3), ("oracle", 12)):
        corpus = corpus_of(options, name)
        concepts = concepts_of(corpus)
        assert Counter(concepts.tolist()) == dict.fromkeys(range(60), each)
        assert (read_documents(world, corpus).name == world.names[concepts]).all()
        # In random order: neighbours are no more often of one concept than by chance.
        assert (concepts[1:] == concepts[:-1]).mean() < 0.1
        every += texts(corpus)
    assert len(set(every)) == len(every) == 60 * 16


def test_the_floor_of_the_held_out_documents(options: MakeOptions) -> None:
    """Choices counted by hand; told values by the text of the training documents."""
    readers = floor(World.open(options.output), Path(options.output))
    found = {name: reader.summary() for name, reader in readers.items()}
    after_first = {name: reader.summary(given=1) for name, reader in readers.items()}
    sentence = re.compile(r"(?:Its|The|People call the|Everybody knows the) (\w+)(?: \w+)* (\w+)\.")

    def statements(text: str) -> tuple[str, list[str]]:
        (name,) = re.findall(r"\b(?!Everybody)[A-Z][a-z]{8}\b", text)
        return name, [noun for noun, _ in sentence.findall(text)]

    known = set()
    for text in texts(corpus_of(options, "real")):
        name, nouns = statements(text)
        known |= {(name, noun) for noun in nouns}
    heldout = corpus_of(options, "real-heldout")
    asked = [(name, noun) for name, nouns in map(statements, texts(heldout)) for noun in nouns]
    assert len(asked) == 5 * len(heldout)
    untold = sum(one not in known for one in asked) / len(heldout)
    choices = log(4) + log(60) + 5 * log(4) + log(perm(10, 5))
    for reader, values in (("all", 0), ("told", untold), ("none", 5)):
        wanted = choices + values * log(32)
        assert found[reader]["per_document"] == pytest.approx(wanted)
        # The first token tells the style.
        rest = (wanted - log(4)) * len(heldout) / (heldout.num_tokens - len(heldout))
        assert after_first[reader]["per_token"] == pytest.approx(rest)
        assert found[reader]["per_token"] == pytest.approx(
            wanted * len(heldout) / heldout.num_tokens
        )
        assert found[reader]["per_value_token"] == pytest.approx(values / 5 * log(32))
        assert found[reader]["per_name_token"] == pytest.approx(log(60) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"told": 11}, "--told 11: must be from 1 to 10"),
        ({"name_syllables": 2}, "8 names, but there are 60 concepts"),
        ({"attributes": 24, "told": 24}, "more than 2^62"),
        ({"told": 1, "wordings": 1, "styles": 1}, "only 10 can be written"),
        ({"unnamed_share": 1.5}, "--unnamed-share 1.5"),
        ({"oracle_factor": -1}, "--oracle-factor -1: must be at least 0"),
    ],
)
def test_what_cannot_be_made(options: MakeOptions, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        dataclasses.replace(options, **change)
