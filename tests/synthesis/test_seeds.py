"""What a document is written from: weighted seeds, several documents, synthetic seeds."""

import random
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.template import Template
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import generations, model, seeds
from megatron_sbp.synthesis.filter_options import FilterOptions
from megatron_sbp.synthesis.filters import filter_synthetic
from megatron_sbp.synthesis.options import SynthesizeOptions
from megatron_sbp.synthesis.prompts import Prompts
from megatron_sbp.synthesis.seeds import Neighbors, Seeds, write_cumulative
from megatron_sbp.synthesis.store import SyntheticCorpus
from megatron_sbp.synthesis.synthesize import synthesize
from tests.synthesis import fake_engine
from tests.synthesis.planted import sentence, write_synthetic

# Weights


def drawn(corpus: Corpus, path: Path, draws: int) -> np.ndarray:
    """How often each document is the seed, int64 [documents]."""
    some = Seeds(corpus, np.load(path, mmap_mode="r"))
    found = [some.draw(np.random.default_rng([11, number])) for number in range(draws)]
    return np.bincount(found, minlength=len(corpus))


def assert_drawn_by(counts: np.ndarray, weights: np.ndarray) -> None:
    expected = counts.sum() * weights / weights.sum()
    assert len(counts) == len(weights) and not counts[weights == 0].any()
    some = weights > 0
    # Chi-square: five standard deviations around its mean.
    statistic = ((counts - expected)[some] ** 2 / expected[some]).sum()
    assert abs(statistic - some.sum()) < 5 * np.sqrt(2 * some.sum())


def test_seeds_by_length(words_corpus: Corpus, tmp_path: Path) -> None:
    write_cumulative("tokens", words_corpus, tmp_path / "sums.npy")
    counts = drawn(words_corpus, tmp_path / "sums.npy", 8000)
    assert_drawn_by(counts, words_corpus.lengths.astype(float))


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_seeds_by_weights_of_a_file(words_corpus: Corpus, tmp_path: Path, dtype: Any) -> None:
    weights = np.random.default_rng(2).integers(0, 4, len(words_corpus)).astype(dtype)
    weights[-3:] = 0
    np.save(tmp_path / "weights.npy", weights)
    write_cumulative(str(tmp_path / "weights.npy"), words_corpus, tmp_path / "sums.npy")
    assert_drawn_by(drawn(words_corpus, tmp_path / "sums.npy", 8000), weights.astype(float))


@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (float(np.nextafter(1, 0)), 3)])
def test_the_ends_of_the_numbers_draw_documents_with_a_weight(number: float, expected: int) -> None:
    class Corner:
        def random(self) -> float:
            return number

    sums = np.cumsum([0, 0.1, 0.3, 2.7, 0, 0])
    found = Seeds(None, sums).draw(Corner())  # type: ignore[arg-type]
    assert found == expected


def test_pieces_change_no_sum(
    words_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.random.default_rng(3).random(len(words_corpus))
    np.save(tmp_path / "weights.npy", weights)
    monkeypatch.setattr(seeds, "_DOCUMENTS", 37)
    write_cumulative(str(tmp_path / "weights.npy"), words_corpus, tmp_path / "sums.npy")
    assert np.array_equal(np.load(tmp_path / "sums.npy"), np.cumsum(weights))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({4: -1.0}, "document 4 has weight -1.0"),
        ({5: np.nan}, "document 5 has weight nan"),
        ({slice(None): 0.0}, "the weights add up to 0.0"),
        ({}, r"float64 \[3\], but the corpus has 260 documents"),
    ],
)
def test_bad_weights_are_named(
    words_corpus: Corpus, tmp_path: Path, change: Mapping[Any, float], message: str
) -> None:
    weights = np.ones(len(words_corpus) if change else 3)
    for place, weight in change.items():
        weights[place] = weight
    np.save(tmp_path / "weights.npy", weights)
    with pytest.raises(InputError, match=message):
        write_cumulative(str(tmp_path / "weights.npy"), words_corpus, tmp_path / "sums.npy")


# Several documents


def neighbors(pairs: Path, anchor: int, most: int, among: range) -> list[int]:
    """By the letter: rows of the anchor, best score first."""
    columns = (np.load(pairs / f"{name}.npy").tolist() for name in ("anchor", "neighbor", "score"))
    rows = sorted((-score, n) for a, n, score in zip(*columns, strict=True) if a == anchor)
    return [n for _, n in rows if n in among][:most]


@pytest.mark.parametrize("turned", [False, True])
def test_related_documents_are_the_best_neighbors_in_the_seed_corpus(
    words_corpus: Corpus, words_pairs: Path, turned: bool
) -> None:
    prefixes = words_corpus.prefixes[::-1] if turned else words_corpus.prefixes[:1]
    corpus = Corpus(prefixes)
    # Id in the corpus of the seeds -> id in that of the pairs.
    real, heldout = words_corpus.counts.tolist()
    ids = [*range(real, real + heldout), *range(real)] if turned else list(range(real))
    found = Neighbors(PairStore(words_pairs), corpus, 3)
    fewer = 0
    for seed in range(len(corpus)):
        expected = neighbors(words_pairs, ids[seed], 3, range(len(corpus)))
        assert [ids[document] for document in found.of(seed)] == expected
        fewer += len(expected) < 3
    assert fewer


def test_the_prompt_has_the_seed_and_its_neighbors(words_corpus: Corpus, words_pairs: Path) -> None:
    tokenizer = words_corpus.tokenizer
    (separator,) = tokenizer.encode_template("<|sep|>")
    ids = {"bos": tokenizer.bos, "eod": tokenizer.eod}
    text = "{bos}{d1}{sep}{d2}{eod}"
    template = Template.parse(text, "<|sep|>", tokenizer.encode_template, **ids)
    some = Seeds(words_corpus, neighbors=Neighbors(PairStore(words_pairs), words_corpus, 2))
    options: dict[str, Any] = {"seed": 1, "template": template, "max_new_tokens": 9}
    whole = Prompts(some, 1000, max_seed_tokens=0, **options)
    short = Prompts(some, 1000, max_seed_tokens=50, **options)
    for number in range(20):
        request, provenance = whole.request(number)
        seed = provenance.seed
        documents = [seed, *neighbors(words_pairs, seed, 2, range(len(words_corpus)))]
        expected = [tokenizer.bos]
        for document in documents:
            expected += [*words_corpus.body(document).tolist(), separator]
        assert request.prompt.tolist() == expected
        assert (provenance.seed_tokens, provenance.seed_cut) == (len(expected) - 2, False)
        request, provenance = short.request(number)
        assert request.prompt.tolist() == [*expected[:-1][:51], separator]
        assert provenance.seed_cut == (len(expected) - 2 > 50)


def test_pairs_over_another_corpus_are_refused(
    words_pairs: Path, corpus_of_its_own: Corpus
) -> None:
    with pytest.raises(InputError, match=r"was not mined over .*own; give --pairs"):
        Neighbors(PairStore(words_pairs), corpus_of_its_own, 1)


@pytest.fixture(scope="module")
def corpus_of_its_own(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    prefix = tmp_path_factory.mktemp("own") / "box" / "own"
    write_synthetic(prefix, words_corpus, ["word1 word2"] * 3, [0, 1, 2])
    return Corpus([prefix])


# A second round


@pytest.fixture
def options(
    words_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SynthesizeOptions:
    monkeypatch.setattr(model, "load_engine", None)
    fake_engine.install()
    fake_engine.write_model(tmp_path / "model", words_corpus)
    return SynthesizeOptions(
        load=str(tmp_path / "model"),
        corpus=[str(words_corpus.prefixes[0])],
        output_prefix=str(tmp_path / "first" / "new"),
        num_documents=20,
    )


def make(options: SynthesizeOptions, **changes: Any) -> SyntheticCorpus:
    changed = replace(options, **changes)
    synthesize(changed, Ranks())
    return SyntheticCorpus(changed.output_prefix)


def test_synthetic_seeds(options: SynthesizeOptions, tmp_path: Path) -> None:
    """Of real and synthetic seeds in one corpus each gives the next generation."""
    first = make(options)
    assert (first.columns["generation"] == 1).all()
    given = [options.corpus[0], options.output_prefix]
    second = make(options, seed_corpus=given, output_prefix=str(tmp_path / "second" / "new"))
    corpus = Corpus(given)
    synthetic = second.seeds_in(corpus) >= corpus.offsets[1]
    assert 0 < synthetic.sum() < len(second)
    assert np.array_equal(second.columns["generation"], 1 + synthetic)
    entries = second.manifests[0].counts["corpus"]
    assert [entry["prefix"] for entry in entries] == given
    assert f"{options.output_prefix}.generation.npy" in second.manifests[0].inputs
    # What the seeds are read from where the given corpus lacks it.
    real = Corpus(options.corpus)
    beside = second.with_seeds(real)
    assert [str(prefix) for prefix in beside.prefixes] == given
    assert first.with_seeds(real) is real
    texts = list(corpus.texts(second.columns["seed"]))
    assert list(beside.texts(second.seeds_in(beside))) == texts
    third = make(
        options,
        seed_corpus=[str(tmp_path / "second" / "new")],
        output_prefix=str(tmp_path / "third" / "new"),
        model_generation=0,
    )
    expected = 1 + second.columns["generation"][third.columns["seed"]]
    assert np.array_equal(third.columns["generation"], expected)


def test_a_copy_of_a_synthetic_seed_is_filtered(words_corpus: Corpus, tmp_path: Path) -> None:
    """The seeds lie beside; --corpus names the real corpus alone."""
    source = random.Random(4)
    texts = [sentence(source) for _ in range(3)]
    write_synthetic(tmp_path / "first" / "s", words_corpus, texts[:2], [0, 1])
    first = Corpus([tmp_path / "first" / "s"])
    write_synthetic(tmp_path / "second" / "s", first, texts[1:], [1, 1])
    real = [str(prefix) for prefix in words_corpus.prefixes]
    second = [str(tmp_path / "second" / "s")]
    found = filter_synthetic(FilterOptions(synthetic=second, corpus=real, dry_run=True))
    assert found.counts["removed"]["copy_of_seed"] == 1
    assert found.counts["documents"] == 1


def test_a_model_that_was_trained_on_synthetic_documents(
    options: SynthesizeOptions, tmp_path: Path
) -> None:
    prefix = str(tmp_path / "stated" / "new")
    made = make(options, model_generation=3, output_prefix=prefix)
    assert (made.columns["generation"] == 4).all()
    assert made.manifests[0].counts["checkpoint"]["generation"] == 3
    with pytest.raises(InputError, match="would be of generation 256"):
        make(options, model_generation=255, output_prefix=str(tmp_path / "most" / "new"))


@pytest.fixture
def checkpoint(
    words_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Mapping[str, Namespace]:
    """Checkpoints that have nothing but arguments: tuned, from joint, from base; by name."""
    write_synthetic(tmp_path / "synthetic" / "s", words_corpus, ["word1"] * 3, [0, 1, 2])
    np.save(tmp_path / "synthetic" / "s.generation.npy", np.array([1, 2, 1], np.uint8))
    joint = [str(tmp_path / "synthetic" / "s")]
    runs = {
        "base": Namespace(load=None, save="base", sbp_synthetic_data=[]),
        "joint": Namespace(load="joint", save="joint", sbp_synthetic_data=joint),
        "tuned": Namespace(load="t", save="t", pretrained_checkpoint=str(tmp_path / "joint")),
    }
    for name in runs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "latest_checkpointed_iteration.txt").write_text("1")

    class Checkpoint:
        def __init__(self, load: Path):
            self.args = runs[Path(load).name]

    monkeypatch.setattr(generations, "MegatronCheckpoint", Checkpoint)
    return runs


@pytest.mark.parametrize(("name", "expected"), [("base", 0), ("joint", 2), ("tuned", 2)])
def test_the_generation_of_a_model_is_found(
    checkpoint: Mapping[str, Namespace], tmp_path: Path, name: str, expected: int
) -> None:
    assert generations.of_model(tmp_path / name) == expected
    exported = tmp_path / "exported"
    exported.mkdir()
    weights = str(tmp_path / name / "weights")
    entry = {"bytes": 0, "sha256": ""}
    Manifest(stage="export", options={}, inputs={weights: entry}).write(exported)
    assert generations.of_model(exported) == expected


def test_files_that_are_gone_are_named(checkpoint: Mapping[str, Namespace], tmp_path: Path) -> None:
    (tmp_path / "synthetic" / "s.generation.npy").unlink()
    (tmp_path / "synthetic" / "s.seed.npy").unlink()
    with pytest.raises(InputError, match=r"trained on .*s, of which .* --model-generation"):
        generations.of_model(tmp_path / "joint")
    (tmp_path / "joint" / "latest_checkpointed_iteration.txt").unlink()
    with pytest.raises(InputError, match=r"tuned: began with .*joint, .* --model-generation"):
        generations.of_model(tmp_path / "tuned")
