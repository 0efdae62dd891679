"""Runs that are killed at any moment, and runs in parts: nothing is lost, nothing is made twice."""

import filecmp
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import model
from megatron_sbp.synthesis.options import SynthesizeOptions
from megatron_sbp.synthesis.shards import Shards
from megatron_sbp.synthesis.store import COLUMNS, SyntheticCorpus
from megatron_sbp.synthesis.synthesize import synthesize
from tests.conftest import ROOT
from tests.synthesis import fake_engine

SUFFIXES = [".bin", ".idx", *(f".{name}.npy" for name in COLUMNS)]
PER_SHARD = 8
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(scope="module")
def options(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> SynthesizeOptions:
    directory = tmp_path_factory.mktemp("fake")
    fake_engine.write_model(directory / "model", words_corpus)
    return SynthesizeOptions(
        load=str(directory / "model"),
        corpus=[str(words_corpus.prefixes[0])],
        output_prefix=str(directory / "whole" / "new"),
        num_tokens=1500,
        documents_per_shard=PER_SHARD,
        seed=5,
    )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "load_engine", None)
    fake_engine.install()


@pytest.fixture
def whole(options: SynthesizeOptions, fake: None) -> SyntheticCorpus:
    synthesize(options, Ranks())
    return SyntheticCorpus(options.output_prefix)


def same_files(first: str | Path, second: str | Path) -> bool:
    return all(
        filecmp.cmp(f"{first}{suffix}", f"{second}{suffix}", shallow=False) for suffix in SUFFIXES
    )


def shards(box: Path) -> dict[int, int]:
    """Number -> time of writing of the shards of an interrupted run."""
    paths = (box.parent / f"{box.name}.partial").glob("scratch/shards/*/[0-9]*.npz")
    return {int(path.stem): path.stat().st_mtime_ns for path in paths}


def killed_in_a_child(options: SynthesizeOptions, change: int, log: Path) -> bool:
    """Run in a child that is killed at a change; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            fake_engine.install(str(log))
            fake_engine.kill_at(change)
            synthesize(options, Ranks())
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def check_nothing_is_made_again(box: Path, before: dict[int, int], log: Path) -> None:
    made = {int(line) // PER_SHARD for line in log.read_text().split()} if log.exists() else set()
    assert not made & before.keys()
    if after := shards(box):
        assert before.items() <= after.items()


@FORKS
def test_killed_at_any_change_nothing_is_lost_or_made_twice(
    options: SynthesizeOptions, whole: SyntheticCorpus, tmp_path: Path
) -> None:
    """Over and over at the first, second, ... change of a run, until one comes to its end."""
    box = tmp_path / "box"
    again = replace(options, output_prefix=str(box / "new"))
    for change in itertools.count(1):
        before, log = shards(box), tmp_path / f"log{change}"
        killed = killed_in_a_child(again, change, log)
        check_nothing_is_made_again(box, before, log)
        if not killed:
            break
    assert change > 20
    assert same_files(again.output_prefix, options.output_prefix)
    assert not (tmp_path / "box.partial").exists()


@FORKS
def test_killed_between_the_last_shard_and_the_final_name_no_document_is_asked_for_again(
    options: SynthesizeOptions,
    whole: SyntheticCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At each of the changes that putting the shards together and giving the name make."""
    box, log, complete = tmp_path / "box", tmp_path / "log", tmp_path / "complete"
    again = replace(options, output_prefix=str(box / "new"), documents_per_shard=32)
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "assemble", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        assert killed_in_a_child(again, 10**9, tmp_path / "before")
    (tmp_path / "box.partial").rename(complete)
    for change in itertools.count(1):
        shutil.copytree(complete, tmp_path / "box.partial")
        killed = killed_in_a_child(again, change, log)
        assert not killed_in_a_child(again, 10**9, log)
        assert not log.exists()
        assert same_files(again.output_prefix, options.output_prefix)
        assert not (tmp_path / "box.partial").exists()
        Manifest.read(box).check_outputs(box)
        if not killed:
            break
        shutil.rmtree(box)
    assert change > 20


def test_two_ranks_killed_at_random_changes(
    options: SynthesizeOptions, whole: SyntheticCorpus, tmp_path: Path
) -> None:
    box = tmp_path / "box"
    flags = ["--load", options.load, "--corpus", *options.corpus, "--output-prefix", box / "new"]
    flags += ["--num-tokens", "1500", "--documents-per-shard", PER_SHARD, "--seed", "5"]
    mpiexec = Path(sys.executable).parent / "mpiexec"
    program = [mpiexec, "-n", "2", sys.executable, "-m", "tests.synthesis.fake_engine", *flags]
    seed = random.randrange(1000)
    source = random.Random(seed)
    for attempt in range(4):
        kill = f"{source.randrange(2)}:{source.randint(5, 30)}" if attempt < 3 else "-1:0"
        before, log = shards(box), tmp_path / f"log{attempt}"
        process = subprocess.run(
            list(map(str, program)),
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1", "KILL": kill, "LOG": str(log)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        check_nothing_is_made_again(box, before, log)
        if process.returncode == 0:
            break
    assert process.returncode == 0, f"seed {seed}: {process.stderr}"
    assert same_files(box / "new", options.output_prefix), f"seed {seed}"


# Parts


@pytest.mark.parametrize("parts", [3, 7])
def test_parts_are_together_the_whole_run(
    options: SynthesizeOptions, fake: None, tmp_path: Path, parts: int
) -> None:
    """Row r of part I is document number I - 1 + N r."""
    run = replace(options, num_tokens=None, num_documents=45)
    whole = make(replace(run, output_prefix=str(tmp_path / "whole" / "new")))
    for part in range(parts):
        prefix = str(tmp_path / f"part{part}" / "new")
        made = make(replace(run, output_prefix=prefix, part=f"{part + 1}/{parts}"))
        numbers = range(part, 45, parts)
        assert len(made) == len(numbers)
        for row, number in enumerate(numbers):
            assert np.array_equal(made.documents.tokens(row), whole.documents.tokens(number))
        for name in COLUMNS:
            assert np.array_equal(made.columns[name], whole.columns[name][part::parts])


def test_every_part_ends_with_its_share_of_the_tokens(
    options: SynthesizeOptions, fake: None, tmp_path: Path
) -> None:
    keys = []
    for part in (1, 2, 3):
        prefix = str(tmp_path / f"part{part}" / "new")
        made = make(replace(options, output_prefix=prefix, part=f"{part}/3"))
        lengths = made.documents.lengths
        assert lengths[:-1].sum() < 500 <= lengths.sum()
        keys += made.columns["sampling_seed"].tolist()
    assert len(set(keys)) == len(keys)


def test_parts_are_read_as_one_corpus(
    options: SynthesizeOptions, fake: None, words_corpus: Corpus, tmp_path: Path
) -> None:
    prefixes = [str(tmp_path / f"part{part}" / "new") for part in (1, 2)]
    parts = [
        make(replace(options, output_prefix=prefix, part=f"{number}/2"))
        for number, prefix in enumerate(prefixes, start=1)
    ]
    joined = SyntheticCorpus(prefixes)
    assert len(joined) == sum(map(len, parts))
    for name in COLUMNS:
        column = np.concatenate([part.columns[name] for part in parts])
        assert np.array_equal(joined.columns[name], column)
    turned = Corpus(words_corpus.prefixes[::-1])
    seeds = np.concatenate([part.columns["seed"] for part in parts])
    assert np.array_equal(joined.seeds_in(turned), seeds + words_corpus.counts[1])


def make(options: SynthesizeOptions) -> SyntheticCorpus:
    synthesize(options, Ranks())
    return SyntheticCorpus(options.output_prefix)


@pytest.mark.parametrize("part", ["0/4", "5/4", "2", "a/b", "/3"])
def test_a_part_that_there_is_not_is_refused(options: SynthesizeOptions, part: str) -> None:
    with pytest.raises(InputError, match=f"--part {part}: must be from 1/N to N/N"):
        replace(options, part=part)


def test_more_parts_than_documents_are_refused(options: SynthesizeOptions) -> None:
    with pytest.raises(InputError, match="--num-documents 3: must be at least 4"):
        replace(options, num_tokens=None, num_documents=3, part="1/4")


# Shards


@pytest.mark.parametrize("part", [None, "7/1000"])
def test_a_run_of_any_size_has_a_bearable_number_of_shards(
    options: SynthesizeOptions, part: str | None
) -> None:
    """As --documents-per-shard says: 64 documents, or as many as make 65,536 shards."""
    tokens = 125_000_000_000
    run = replace(options, num_tokens=tokens, documents_per_shard=0, part=part)
    shards = run.shards(Path("shards"))
    per_shard = len(shards.numbers(0))
    documents = tokens // 256 // (1000 if part else 1)
    assert per_shard == max(64, -(-documents // 65_536))
    directories = Counter(shards.path(number).parent for number in range(5000))
    assert set(directories.values()) == {1000}
    for number in (0, 1, 999, 65_535):
        assert {shards.of(document) for document in shards.numbers(number)} == {number}
