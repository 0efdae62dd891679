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
from megatron_sbp.embedding.shards import Embeddings, shard_name
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining.mine import mine
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import COLUMNS, PairStore
from megatron_sbp.ranks import Ranks
from tests.conftest import ROOT, flipped, run_command
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
    flags = command("--embeddings", shards, "--max-anchors-per-neighbor", "0", "--candidates", "5")
    runs: dict[str, tuple[int, list[str | Path]]] = {
        "one": (1, []),
        "two": (2, ["--precision", "bf16"]),
        "blocks": (2, ["--block-size", "100"]),
        "four": (4, ["--block-size", "377", "--precision", "fp32"]),
    }
    for name, (ranks, more) in runs.items():
        done = run_command(*flags, "--output", tmp_path / name, *more, ranks=ranks)
        assert done.returncode == 0, done.stderr
    reference = columns(tmp_path / "one")
    for name in runs:
        assert columns(tmp_path / name) == reference, name
    vectors = Embeddings(shards).rows(0, 1500)
    assert rows(tmp_path / "one") == brute_force(vectors, 0.6, depth=5), f"seed {SEED}"


def rows(directory: Path) -> list[tuple[int, int, float]]:
    store = PairStore(directory)
    columns = store.anchor.tolist(), store.neighbor.tolist(), store.score.tolist()
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("search", ["clusters", "faiss:IVF16,PQ8x4:nprobe=4"])
def test_other_searches_do_not_depend_on_ranks_and_measure_their_recall(
    search: str, shards: Path, tmp_path: Path
) -> None:
    flags = command("--embeddings", shards, "--max-anchors-per-neighbor", "0", "--candidates", "5")
    flags += ["--search", search, "--recall-sample", "300", "--target-recall", "0.9"]
    for ranks, more in ((1, []), (2, []), (4, ["--block-size", "377"])):
        done = run_command(*flags, "--output", tmp_path / str(ranks), *more, ranks=ranks)
        assert done.returncode == 0, done.stderr
        assert columns(tmp_path / str(ranks)) == columns(tmp_path / "1"), f"{ranks} ranks"
    exact = brute_force(Embeddings(shards).rows(0, 1500), 0.6, depth=5)
    found = rows(tmp_path / "1")
    # What is found has exact scores, but may stand in for a better one that is missed.
    assert set(found) <= set(brute_force(Embeddings(shards).rows(0, 1500), 0.6))
    truth = len(set(found) & set(exact)) / len(exact)
    measured = Manifest.read(tmp_path / "1").counts["recall"]
    assert measured["low"] - 0.02 <= truth <= measured["high"] + 0.02, f"seed {SEED}"
    if search == "clusters":
        assert truth >= 0.9 and Manifest.read(tmp_path / "1").counts["search"]["compared"] < 0.5


def test_a_ring_reads_only_what_lies_beside_each_rank(shards: Path, tmp_path: Path) -> None:
    """Three ranks, each with other shards in its directory; one shard is there twice."""
    flags = command("--neighbors", "7")
    whole = run_command(*flags, "--embeddings", shards, "--output", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    for rank, numbers in enumerate(([0], [2, 3], [1, 2])):
        (tmp_path / f"rank{rank}").mkdir()
        for number in numbers:
            shutil.copy(shards / shard_name(number, 4), tmp_path / f"rank{rank}")
    done = run_ring(tmp_path, *flags, "--output", tmp_path / "ring", "--block-size", "100")
    assert done.returncode == 0, done.stderr
    assert columns(tmp_path / "ring") == columns(tmp_path / "whole")
    broken = np.load(tmp_path / "rank1" / shard_name(3, 4))
    broken[-1, 0] = np.inf
    np.save(tmp_path / "rank1" / shard_name(3, 4), broken)
    failed = run_ring(tmp_path, *flags, "--output", tmp_path / "failed", "--block-size", "100")
    (line,) = failed.stderr.splitlines()
    assert failed.returncode == 2 and "rank 1: " in line and "document 1499" in line
    (tmp_path / "rank0" / shard_name(0, 4)).unlink()
    absent = run_ring(tmp_path, *flags, "--output", tmp_path / "absent")
    (line,) = absent.stderr.splitlines()
    assert absent.returncode == 2 and f"{shard_name(0, 4)} is missing" in line


def run_ring(directory: Path, *flags: str | Path) -> subprocess.CompletedProcess[str]:
    program = (
        "import os, runpy, sys\n"
        f"sys.argv += ['--embeddings', {str(directory)!r} + '/rank' + os.environ['PMI_RANK']]\n"
        f"runpy.run_path({str(ROOT / flags[0])!r}, run_name='__main__')\n"
    )
    return run_command("-c", program, *flags[1:], "--transfer", "ring", ranks=3)


def test_a_finished_output_is_recognised_and_others_are_refused(
    shards: Path, tmp_path: Path
) -> None:
    flags = command("--embeddings", shards, "--output", tmp_path / "p")
    first, again = run_command(*flags), run_command(*flags, ranks=2)
    assert first.returncode == again.returncode == 0 and first.stdout == again.stdout
    other = run_command(*flags, "--neighbors", "6", ranks=2)
    assert other.returncode == 2 and "neighbors: 5 -> 6" in other.stderr


@pytest.mark.parametrize("search", ["exact", "clusters"])
def test_killed_and_started_again_gives_the_same_bytes(
    search: str, shards: Path, tmp_path: Path
) -> None:
    flags = command("--embeddings", shards, "--block-size", "20", "--search", search)
    assert run_command(*flags, "--output", tmp_path / "whole").returncode == 0
    scratch = tmp_path / "p.partial" / "scratch"
    with subprocess.Popen(
        [sys.executable, *map(str, flags), "--output", str(tmp_path / "p")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None and not any(scratch.glob("*/found/**/0*.arrays")):
            pass
        process.kill()
    assert any(scratch.glob("*/found/**/0*.arrays")), "not killed in the middle"
    assert not (tmp_path / "p").exists(), "not killed in the middle"
    piece = next(scratch.glob("*/found/**/0*.arrays"))
    with flipped(piece):
        refused = run_command(*flags, "--output", tmp_path / "p")
        assert refused.returncode == 2 and f"error: {piece}: is damaged" in refused.stderr
    resumed = run_command(*flags, "--output", tmp_path / "p", ranks=2)
    assert resumed.returncode == 0, resumed.stderr
    assert columns(tmp_path / "p") == columns(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == {*(f"{name}.npy" for name in COLUMNS), "manifest.json"}


class Stop(Exception):
    pass


class FewUnits(Ranks):
    """Stops after some units, and remembers what was there when the first one was done."""

    def __init__(self, output: Path, limit: int):
        super().__init__()
        self.scratch, self.limit, self.begun = Path(f"{output}.partial/scratch"), limit, 0
        self.there: dict[Path, int] = {}

    def check(self) -> None:
        self.begun += 1
        if self.begun == 1:
            self.there = found_in(self.scratch)
        if self.begun > self.limit:
            raise Stop


def found_in(scratch: Path) -> dict[Path, int]:
    """Results of units, and when they were written."""
    files = [*scratch.glob("*/found/**/*.arrays"), *scratch.glob("*/parts/part-*.arrays")]
    return {path: path.stat().st_mtime_ns for path in files}


def test_units_that_are_done_are_not_done_again(shards: Path, tmp_path: Path) -> None:
    options = MineOptions(embeddings=str(shards), output=str(tmp_path / "p"), min_similarity=0.6)
    first, second = FewUnits(tmp_path / "p", 4), FewUnits(tmp_path / "p", 10_000)
    with pytest.raises(Stop):
        mine(options, first)
    done = found_in(first.scratch)
    assert len(done) == 4
    mine(options, second)
    assert second.there == done, "units were done again, or lost"
    # The same for the blocks that are filtered when all units are done.
    filtered = replace(options, output=str(tmp_path / "filtered"))
    units = Manifest.read(tmp_path / "p").counts["search"]["units"]
    first = FewUnits(tmp_path / "filtered", units + 2)
    second = FewUnits(tmp_path / "filtered", 10_000)
    with pytest.raises(Stop):
        mine(filtered, first)
    done = found_in(first.scratch)
    assert len([path for path in done if "parts" in path.parts]) == 2
    mine(filtered, second)
    assert second.there == done
    # Units of blocks of another size do not fit those that are there.
    other = replace(options, output=str(tmp_path / "other"))
    first, second = FewUnits(tmp_path / "other", 4), FewUnits(tmp_path / "other", 10_000)
    with pytest.raises(Stop):
        mine(replace(other, block_size=100), first)
    mine(other, second)
    assert not second.there
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
        ([shards, "--neighbors", "1500"], "--neighbors 1500: "),
        ([shards, "--min-similarity", "1.5"], "--min-similarity 1.5: "),
        ([shards, "--max-similarity", "0.1"], "--max-similarity 0.1: is below"),
        ([shards, "--min-similarity", "1"], "no two documents are that similar"),
        ([shards, "--search", "nearest"], "--search nearest: "),
        ([shards, "--search", "clusters", "--clusters", "39"], "support at most 38"),
        ([shards, "--search", "clusters", "--overlap", "3"], "--overlap 3 and --probes 0 go"),
        ([shards, "--memory", "8Q"], "--memory 8Q: is no size"),
        ([shards, "--memory", "300M"], "--memory: 0.29 GiB do not hold"),
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
    # What was found before the broken row was met is kept for the next attempt.
    done = run_command(*command("--embeddings", broken, "--output", output))
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and f"document {row} has length nan" in line
    assert not output.exists()


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
    assert "off: no --corpus given" in run_command(*flags).stdout
    manifest = Manifest.read(tmp_path / "p")
    assert manifest.options["token_filters"] is False
    assert "near_copies" not in manifest.counts["removed"]
