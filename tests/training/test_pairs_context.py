"""Contexts of several documents: d1 and its best neighbors, in training and in synthesis alike."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.template import Template
from megatron_sbp.errors import InputError
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.synthesis.prompts import Prompts
from megatron_sbp.synthesis.seeds import Neighbors, Seeds
from megatron_sbp.training.pairs import index as pair_index
from tests.training.paired import (
    BOS,
    EOD,
    SEP,
    Expected,
    Pair,
    body,
    build,
    config,
    contents,
    epoch,
    rows_of,
    segments_of,
)

SEPARATOR = (SEP, 7)  # not what stands between d1 and d2, so that they cannot be mixed up


def related(store: Path, first: int, second: int, most: int, split: range) -> list[int]:
    """By the letter: the best neighbors of d1 in the split, without d2."""
    rows = _neighbors(store).get(first, [])
    return [other for _, other in sorted(rows) if other != second and other in split][: most - 1]


@cache
def _neighbors(store: Path) -> dict[int, list[tuple[float, int]]]:
    """Anchor -> (-score, neighbor)."""
    found: dict[int, list[tuple[float, int]]] = {}
    for (anchor, neighbor), score in zip(
        rows_of(store), np.load(store / "score.npy").tolist(), strict=True
    ):
        found.setdefault(anchor, []).append((-score, neighbor))
    return found


def joined(corpus: Corpus, documents: list[int], separator: tuple[int, ...]) -> list[int]:
    """Documents with the separator between them."""
    tokens = body(corpus, documents[0])
    for document in documents[1:]:
        tokens = [*tokens, *separator, *body(corpus, document)]
    return tokens


class ExpectedContexts(Expected):
    """As ``Expected``, with contexts of several documents."""

    def __init__(self, corpus: Corpus, store: Path, pairs: list[Pair], most: int, **options: Any):
        super().__init__(corpus, [], **options)
        split = range(corpus.counts[0])
        for first, second in pairs:
            others = related(store, first, second, most, split)
            self._add(joined(corpus, [first, *others], SEPARATOR), body(corpus, second))


@pytest.mark.parametrize(
    ("most", "options"),
    [
        (2, {"sequence_length": 400}),
        (3, {"direction": "backward", "multiple": 4}),
        (3, {"direction": "both", "truncate_d1": "head"}),
        (50, {"sequence_length": 160, "overflow": "skip"}),
    ],
    ids=["whole", "cut", "head", "skip"],
)
def test_an_epoch_holds_every_pair_with_its_context(
    words_corpus: Corpus, words_pairs: Path, most: int, options: dict[str, Any]
) -> None:
    """Of the pairs in the split, with neighbors from the split alone."""
    settings = {"context_documents": most, "separator": SEPARATOR, **options}
    train, _, _ = build(words_corpus, words_pairs, **settings)
    pairs = [pair for pair in rows_of(words_pairs) if max(pair) < words_corpus.counts[0]]
    turned = [(second, first) for first, second in pairs]
    read = {"backward": turned, "both": pairs + turned}.get(options.get("direction", ""), pairs)
    expected = ExpectedContexts(words_corpus, words_pairs, read, most, **options)
    assert contents(epoch(train)) == sorted(expected.segments)
    counts = train.counts()
    names = ("pairs", "cut_d1", "cut_d2", "skipped_long", "tokens", "supervised_tokens")
    assert {name: counts[name] for name in names} == {name: expected.counts[name] for name in names}
    assert any(SEPARATOR[1] in tokens for tokens, _, _ in expected.segments)


def test_chunks_change_nothing(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for number, chunk in enumerate((1 << 20, 37)):
        monkeypatch.setattr(pair_index, "_MEASURED", chunk)
        settings: dict[str, Any] = {"context_documents": 3, "separator": SEPARATOR}
        cache = str(tmp_path / str(number))
        train = build(words_corpus, words_pairs, path_to_cache=cache, **settings)[0]
        rows.append([sample["tokens"].tolist() for sample in epoch(train)])
    assert rows[0] == rows[1]


def test_contexts_of_another_number_have_an_index_of_their_own(
    words_corpus: Corpus, words_pairs: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"separator": SEPARATOR, "path_to_cache": str(tmp_path)}
    totals = [
        build(words_corpus, words_pairs, context_documents=most, sequence_length=400, **settings)[
            0
        ].counts()["tokens"]
        for most in (1, 2, 3)
    ]
    assert totals[0] < totals[1] < totals[2]


def test_controls_have_the_context_of_another_d1(words_corpus: Corpus, words_pairs: Path) -> None:
    """Whole, with its own best neighbors in the split, and never with the d2 of the pair."""
    settings: dict[str, Any] = {"context_documents": 3, "separator": SEPARATOR}
    _, valid, _ = build(words_corpus, words_pairs, sequence_length=400, **settings)
    split = range(int(words_corpus.counts[0]), len(words_corpus))
    documents = {tuple(body(words_corpus, document)): document for document in split}
    others = 0
    for index in range(0, len(valid), 2):
        own, control = (segments_of(valid[index + number]) for number in (0, 1))
        for mine, other in zip(own, control, strict=True):
            _, labels, mask = mine
            supervised = [label for label, one in zip(labels, mask, strict=True) if one]
            assert [label for label, one in zip(*other[1:], strict=True) if one] == supervised
            second = documents[tuple(supervised[:-1])]
            d1, another = (
                list(tokens[1 : segment_mask.index(1)]) for tokens, _, segment_mask in (mine, other)
            )
            assert another != d1
            contexts = [
                joined(
                    words_corpus,
                    [first, *related(words_pairs, first, second, 3, split)],
                    SEPARATOR,
                )
                for first in split
            ]
            cut = [text[: len(d1)] for text in contexts]
            assert d1 in cut and another in cut
            others += SEPARATOR[1] in another
    assert others


def test_a_row_without_its_d2_is_the_prompt_of_synthesis(
    words_corpus: Corpus, words_pairs: Path
) -> None:
    """Where d2 is none of the neighbors that synthesis gives, both have the same documents."""
    most, room = 3, 1000
    template = Template((BOS,), (SEP,), (EOD,), SEPARATOR)
    corpus = Corpus(words_corpus.prefixes[:1])
    neighbors = Neighbors(PairStore(words_pairs), corpus, most - 1)
    settings: dict[str, Any] = {"context_documents": most, "separator": SEPARATOR}
    train, _, _ = build(words_corpus, words_pairs, sequence_length=room, **settings)
    rows = contents(epoch(train))
    prompts = Prompts(
        Seeds(corpus, neighbors=neighbors),
        room,
        seed=0,
        template=template,
        max_seed_tokens=0,
        max_new_tokens=9,
    )
    compared = 0
    for number in range(300):
        request, provenance = prompts.request(number)
        prompt = tuple(request.prompt.tolist())
        given = [provenance.seed, *neighbors.of(provenance.seed)]
        for first, second in rows_of(words_pairs):
            if first == given[0] and second not in given and second < len(corpus):
                tokens = (*prompt, *body(corpus, second))
                found = [row for row in rows if row[0] == tokens]
                assert found and found[0][2].index(1) == len(prompt) - 1
                compared += 1
    assert compared > 50


def test_a_context_of_several_documents_needs_a_separator(
    words_corpus: Corpus, words_pairs: Path
) -> None:
    with pytest.raises(InputError, match="--sbp-context-documents 0: must be at least 1"):
        config(words_corpus, words_pairs, context_documents=0)
    with pytest.raises(InputError, match="needs --sbp-separator"):
        config(words_corpus, words_pairs, context_documents=2)
