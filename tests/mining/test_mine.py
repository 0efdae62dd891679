import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.embed import EmbedOptions, embed
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining.mine import mine
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import COLUMNS, PairStore
from megatron_sbp.ranks import Ranks
from tests.conftest import ROOT, run_command
from tests.mining.vectors import brute_force, clustered, write_shards

SEED = 23


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of 1,500 documents that no manifest describes, three to six blocks of anchors."""
    vectors = clustered(1500, 32, 80, SEED)
    return write_shards(tmp_path_factory.mktemp("shards") / "e", vectors, shards=4)


@pytest.fixture(scope="module")
def words_embeddings(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("embeddings") / "e"
    prefixes = [str(prefix) for prefix in words_corpus.prefixes]
    embed(EmbedOptions(corpus=prefixes, output=str(directory), encoder="lexical", dimensions=32))
    return directory


def columns(directory: Path) -> dict[str, bytes]:
    return {name: (directory / f"{name}.npy").read_bytes() for name in COLUMNS}


def command(*flags: str | Path) -> list[str | Path]:
    return ["tools/mine_pairs.py", "--neighbors", "5", "--min-similarity", "0.6", *flags]


def test_ranks_blocks_and_brute_force_agree(shards: Path, tmp_path: Path) -> None:
    flags: list[str | Path] = ["--embeddings", shards, "--max-anchors-per-neighbor", "0"]
    runs = {"one": (1, "16384"), "two": (2, "16384"), "blocks": (2, "100"), "four": (4, "377")}
    for name, (ranks, block) in runs.items():
        output = command(*flags, "--candidates", "5", "--output", tmp_path / name)
        done = run_command(*output, "--block-size", block, ranks=ranks)
        assert done.returncode == 0, done.stderr
    reference = columns(tmp_path / "one")
    for name in runs:
        assert columns(tmp_path / name) == reference, name
    store = PairStore(tmp_path / "one")
    found = zip(store.anchor.tolist(), store.neighbor.tolist(), store.score.tolist(), strict=True)
    vectors = Embeddings(shards).rows(0, 1500)
    assert list(found) == brute_force(vectors, 0.6, depth=5), f"seed {SEED}"


def test_a_finished_output_is_recognised_and_others_are_refused(
    shards: Path, tmp_path: Path
) -> None:
    flags = command("--embeddings", shards, "--output", tmp_path / "p")
    first, again = run_command(*flags), run_command(*flags, ranks=2)
    assert first.returncode == again.returncode == 0 and first.stdout == again.stdout
    other = run_command(*flags, "--neighbors", "6", ranks=2)
    assert other.returncode == 2 and "neighbors: 5 -> 6" in other.stderr


def test_killed_and_started_again_gives_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    flags = command("--embeddings", shards, "--block-size", "20")
    assert run_command(*flags, "--output", tmp_path / "whole").returncode == 0
    parts = tmp_path / "p.partial" / "parts"
    with subprocess.Popen(
        [sys.executable, *map(str, flags), "--output", str(tmp_path / "p")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not (parts.exists() and any(parts.glob("0*.npz"))):
            pass
        process.kill()
    assert any(parts.glob("0*.npz")) and not (tmp_path / "p").exists(), "not killed in the middle"
    resumed = run_command(*flags, "--output", tmp_path / "p", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert columns(tmp_path / "p") == columns(tmp_path / "whole")


def test_finished_blocks_are_not_searched_again(shards: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class TwoBlocks(Ranks):
        """Stops after two blocks and remembers how many were begun."""

        limit, begun = 2, 0

        def check(self) -> None:
            self.begun += 1
            if self.begun > self.limit:
                raise Stop

    options = MineOptions(embeddings=str(shards), output=str(tmp_path / "p"), min_similarity=0.6)
    first, second = TwoBlocks(), TwoBlocks()
    with pytest.raises(Stop):
        mine(options, first)
    second.limit = 1000
    mine(options, second)
    assert second.begun == -(-1500 // 256) - 2
    # Blocks of another size do not fit those that are there.
    first, second = TwoBlocks(), TwoBlocks()
    other = replace(options, output=str(tmp_path / "other"))
    with pytest.raises(Stop):
        mine(replace(other, block_size=100), first)
    second.limit = 1000
    mine(other, second)
    assert second.begun == -(-1500 // 256)
    assert columns(tmp_path / "other") == columns(tmp_path / "p")


def test_filters_account_for_every_pair(
    words_corpus: Corpus, words_embeddings: Path, tmp_path: Path
) -> None:
    both = MineOptions(
        embeddings=str(words_embeddings),
        corpus=[str(prefix) for prefix in words_corpus.prefixes],
        output=str(tmp_path / "both"),
        min_similarity=0.3,
        max_similarity=0.97,
        neighbors=20,
        max_anchors_per_neighbor=0,
    )
    one = replace(both, output=str(tmp_path / "one"), direction="one", max_anchors_per_neighbor=4)
    for options in (both, one):
        counts = mine(options, Ranks()).counts
        store = PairStore(options.output, words_corpus)
        documents = len(words_corpus)
        assert len(store) == counts["pairs"]
        assert len(store) + sum(counts["removed"].values()) == documents * (documents - 1)
        assert store.score.min() >= 0.3 and store.score.max() <= np.float32(0.97)
    assert np.bincount(store.neighbor).max() == 4
    assert counts["removed"]["other_direction"] > 0
    assert counts["corpus"] == words_corpus.fingerprints


def test_control_has_the_same_size_and_anchors(shards: Path, tmp_path: Path) -> None:
    mined, control = tmp_path / "mined", tmp_path / "control"
    assert run_command(*command("--embeddings", shards, "--output", mined)).returncode == 0
    done = run_command(
        *command("--embeddings", shards, "--output", control, "--pairs", mined),
        *("--control", "random"),
        ranks=2,
    )
    assert done.returncode == 0, done.stderr
    pairs, random = PairStore(mined), PairStore(control)
    assert np.array_equal(pairs.anchor, random.anchor)
    assert not np.array_equal(pairs.neighbor, random.neighbor)
    assert random.score.mean() < pairs.score.mean()


def test_bad_input_is_one_line(
    shards: Path, words_corpus: Corpus, words_embeddings: Path, tmp_path: Path
) -> None:
    output = tmp_path / "p"
    broken = shutil.copytree(shards, tmp_path / "broken")
    vectors = np.load(broken / "embeddings-00003-of-00004.npy")
    vectors[7, 3] = np.nan
    np.save(broken / "embeddings-00003-of-00004.npy", vectors)
    row = 1500 - len(vectors) + 7
    prefixes = words_corpus.prefixes
    cases: list[tuple[list[str | Path], str]] = [
        ([tmp_path / "none"], "no such directory"),
        ([tmp_path], "holds no embeddings-00000-of-00001.npy"),
        ([broken], f"document {row} has length nan"),
        ([shards, "--neighbors", "1500"], "--neighbors 1500: "),
        ([shards, "--min-similarity", "1.5"], "--min-similarity 1.5: "),
        ([shards, "--max-similarity", "0.1"], "--max-similarity 0.1: is below"),
        ([shards, "--min-similarity", "1"], "no two documents are that similar"),
        ([shards, "--search", "nearest"], "--search nearest: "),
        ([shards, "--search", "faiss:Nonsense7"], "Nonsense7"),
        ([shards, "--control", "random"], "--control random and --pairs"),
        ([shards, "--corpus", prefixes[0]], "1,500 rows, but the corpus has"),
        ([words_embeddings, "--corpus", prefixes[0]], "made from 2 corpus prefixes"),
        ([words_embeddings, "--corpus", *prefixes[::-1]], "is not the corpus that"),
    ]
    for flags, message in cases:
        done = run_command(*command("--embeddings", *flags, "--output", output))
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and line.startswith("error: ") and message in line, line
        assert not output.exists() and not output.with_name("p.partial").exists()


def test_bad_input_on_two_ranks_is_one_line(shards: Path, tmp_path: Path) -> None:
    flags = command("--embeddings", shards, "--output", tmp_path / "p", "--neighbors", "1500")
    done = run_command(*flags, ranks=2)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


def test_a_control_needs_the_embeddings_it_was_mined_from(shards: Path, tmp_path: Path) -> None:
    mine(
        MineOptions(embeddings=str(shards), output=str(tmp_path / "p"), min_similarity=0.6), Ranks()
    )
    few = write_shards(tmp_path / "few", clustered(40, 32, 3, SEED))
    options = MineOptions(
        embeddings=str(few), output=str(tmp_path / "c"), control="random", pairs=str(tmp_path / "p")
    )
    with pytest.raises(InputError, match=r"has document 1\d\d\d"):
        mine(options, Ranks())


def test_the_manifest_says_what_was_left_out(shards: Path, tmp_path: Path) -> None:
    flags = command("--embeddings", shards, "--output", tmp_path / "p")
    assert "not looked for" in run_command(*flags).stdout
    manifest = Manifest.read(tmp_path / "p")
    assert manifest.options["token_filters"] is False
    assert "near_copies" not in manifest.counts["removed"]
