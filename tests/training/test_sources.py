"""What a run is to read of each source: the shares asked for, synthetic documents once."""

import random
from argparse import Namespace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import get_blend_from_list

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.training.ledger import differences, ledger
from megatron_sbp.training.sources import announce, planned, set_weights
from tests.training.forked import pretrain
from tests.training.runs import data

LENGTH = 16
SEED = random.randrange(1 << 30)
"""Of the documents' lengths; named by every assertion."""


def write(prefix: Path, documents: int, draw: np.random.Generator) -> str:
    """A corpus of documents of random lengths; its prefix."""
    with IndexedWriter(prefix, np.uint16) as writer:
        for _ in range(documents):
            writer.append(draw.integers(0, 9, draw.integers(1, 60)))
    return str(prefix)


def tokens(prefix: str) -> int:
    dataset = IndexedDataset(prefix)  # its lengths are gone as soon as it is
    return int(dataset.sequence_lengths.sum())


def arguments(real: list[str], synthetic: list[str], rows: int, share: float | None) -> Namespace:
    """Those of Megatron's arguments and the SBP group that say what is read."""
    nothing = """data_path data_args_path per_split_data_args_path valid_data_path test_data_path
        split""".split()
    return Namespace(
        **dict.fromkeys(nothing),
        train_data_path=real,
        train_samples=rows,
        seq_length=LENGTH,
        mid_level_dataset_surplus=0.005,
        rank=0,
        sbp_objective="lm",
        sbp_synthetic_data=synthetic,
        sbp_synthetic_share=share,
        sbp_allow_synthetic_repeats=False,
    )


@pytest.fixture
def corpora(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Two real sources and two synthetic ones, of different sizes."""
    draw = np.random.default_rng(SEED)
    real = [write(tmp_path / name, documents, draw) for name, documents in (("a", 40), ("b", 90))]
    return real, [write(tmp_path / name, n, draw) for name, n in (("s", 300), ("t", 200))]


def built(args: Namespace, cache: Path) -> BlendedDataset | GPTDataset:
    """The training set that Megatron makes of these arguments."""
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=LENGTH,
        blend_per_split=[get_blend_from_list(args.train_data_path), None, None],
        path_to_cache=str(cache),
        tokenizer=Namespace(eod=0, vocab_size=9, unique_identifiers={}),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        mid_level_dataset_surplus=args.mid_level_dataset_surplus,
    )
    sizes = (args.train_samples, 0, 0)
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]


@pytest.mark.parametrize("share", [0, 0.1, 0.2, 0.375])
@pytest.mark.parametrize("several", [True, False])
def test_megatron_reads_the_share_that_was_asked_for(
    share: float, several: bool, corpora: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    real, synthetic = corpora if several else (corpora[0][:1], corpora[1][:1])
    rows = int(0.9 * sum(map(tokens, synthetic)) / LENGTH / max(share, 0.375))
    args = arguments(real, synthetic, rows, share)
    set_weights(args)
    plan = announce(args)
    train = built(args, tmp_path / "cache")
    entries = ledger(train, rows, synthetic, plan)

    # By the letter: S of the rows, over the sources by their tokens.
    chosen = [*real, *(synthetic if share else [])]
    for prefix, entry, source in zip(chosen, entries, plan, strict=True):
        kind, part = (real, 1 - Fraction(share)) if prefix in real else (synthetic, Fraction(share))
        wanted = part * rows * tokens(prefix) / sum(map(tokens, kind))
        assert entry["prefix"] == source.path == prefix
        assert entry["kind"] == ("real" if prefix in real else "synthetic")
        assert abs(entry["tokens_seen"] / LENGTH - wanted) < len(chosen), SEED
        assert abs(source.rows - wanted) <= 1, SEED
        assert source.epochs == pytest.approx(entry["epochs"], abs=len(chosen) * LENGTH / 500)
        assert source.documents == entry["documents"] and source.tokens == entry["tokens"]
    assert not differences(entries, LENGTH)
    assert sum(entry["tokens_seen"] for entry in entries) == rows * LENGTH


def test_synthetic_documents_are_refused_exactly_where_megatron_would_repeat_them(
    corpora: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    real, (synthetic, _) = corpora
    there = tokens(synthetic) / LENGTH
    outcomes = set()
    for rows in range(int(there / 0.2 / 1.02), int(there / 0.2 / 0.99), 7):
        args = arguments(real[:1], [synthetic], rows, 0.2)
        set_weights(args)
        member = built(args, tmp_path / str(rows)).datasets[1]
        repeats = len(member.document_index) > len(member.indices)
        outcomes.add(repeats)
        if not repeats:
            announce(args)
            continue
        with pytest.raises(InputError, match=rf"{synthetic}: .*{tokens(synthetic):,}.* 2 times"):
            announce(args)
        args.sbp_allow_synthetic_repeats = True
        announce(args)
    assert outcomes == {True, False}, "the cases lie on one side: test nothing"


def test_sources_without_weights_are_read_once(
    corpora: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    real, _ = corpora
    there = sum((tokens(prefix) - 1) // LENGTH for prefix in real)
    for rows in (there // 2, there):
        args = arguments(real, [], rows, None)
        plan = planned(args)
        assert abs(sum(source.rows for source in plan) - rows) < len(real)
        entries = ledger(built(args, tmp_path / str(rows)), rows, [], plan)
        assert not differences(entries, LENGTH)
    with pytest.raises(InputError, match=f"read once: {there:,} rows, but the run needs"):
        planned(arguments(real, [], there + 1, None))


def test_a_run_that_read_something_else_is_told_of(
    corpora: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    real, synthetic = corpora
    asked, other = (arguments(real, synthetic, 400, share) for share in (0.1, 0.3))
    set_weights(asked)
    set_weights(other)
    entries = ledger(built(other, tmp_path / "cache"), 400, synthetic, planned(asked))
    told = differences(entries, LENGTH)
    assert any(synthetic[0] in line and "were planned" in line for line in told), told


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "1": ({"sbp_synthetic_share": 1.0}, "--sbp-synthetic-share 1: must be from 0"),
    "below": ({"sbp_synthetic_share": -0.1}, "--sbp-synthetic-share -0.1: must be from 0"),
    "objective": ({"sbp_objective": "synthesis"}, "is for --sbp-objective lm"),
    "data path": ({"train_data_path": None}, "weights of --train-data-path; give that"),
    "weights": ({"train_data_path": ["1", "a"]}, "leave them out there"),
    "no data": ({"sbp_synthetic_data": []}, "needs --sbp-synthetic-data"),
    "twice": ({"train_data_path": ["s"], "sbp_synthetic_data": ["s"]}, "s: is in .* and in"),
    "missing": ({}, r"nowhere.idx: no such file; check the prefix"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_share_that_cannot_be_is_refused(case: str) -> None:
    changes, message = BAD[case]
    args = arguments(["nowhere"], ["neither"], 10, 0.1)
    vars(args).update(changes)
    with pytest.raises(InputError, match=message):
        set_weights(args)


def test_the_run_prints_and_records_what_it_reads(words_corpus: Corpus, tmp_path: Path) -> None:
    heldout = str(words_corpus.prefixes[1])
    samples = 8 * 6
    line = ["--sbp-synthetic-data", heldout, "--sbp-synthetic-share", "0.2"]
    run = pretrain(*data(words_corpus), *line, "--train-iters", "6", "--save", str(tmp_path / "x"))
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    entries = {entry["prefix"]: entry for entry in Manifest.read(tmp_path / "x").counts["ledger"]}
    assert entries[heldout]["kind"] == "synthetic"
    assert abs(entries[heldout]["tokens_seen"] - 0.2 * samples * 128) <= 128
    assert entries[heldout]["tokens_planned"] == round(0.2 * samples) * 128
    (said,) = [text for text in run.stdout.splitlines() if text.startswith(f"{heldout}: synthetic")]
    assert f"{round(0.2 * samples) * 128:,} tokens are read of its {tokens(heldout):,}" in said
    assert "were planned" not in run.stdout
