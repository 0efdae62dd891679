import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding import shards
from megatron_sbp.embedding.shards import Embeddings, check_corpus, open_shard, shard_name
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest

SEED = 3


def unit(documents: int, dimensions: int = 8) -> np.ndarray:
    vectors = np.random.default_rng(SEED).standard_normal((documents, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def write(directory: Path, pieces: list[np.ndarray]) -> Path:
    directory.mkdir(exist_ok=True)
    for number, piece in enumerate(pieces):
        np.save(directory / shard_name(number, len(pieces)), piece)
    return directory


def test_rows_and_take_are_the_concatenation(tmp_path: Path) -> None:
    vectors = unit(50)
    pieces = [vectors[:0], vectors[:7], vectors[7:7], vectors[7:30], vectors[30:]]
    embeddings = Embeddings(write(tmp_path, pieces))
    assert len(embeddings) == 50 and embeddings.dimensions == 8 and embeddings.manifest is None
    source = np.random.default_rng(SEED)
    for _ in range(30):
        start, stop = sorted(source.choice(51, 2, replace=False).tolist())
        assert np.array_equal(embeddings.rows(start, stop), vectors[start:stop]), f"seed {SEED}"
        documents = source.integers(0, 50, 9)
        assert np.array_equal(embeddings.take(documents), vectors[documents])
    assert embeddings.rows(0, 50).dtype == np.float16


@pytest.mark.parametrize(("most", "opened"), [(10, 600), (100, 100)])
def test_shards_are_kept_open_as_far_as_that_is_allowed(
    most: int, opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, paths = unit(200), list[Path]()
    monkeypatch.setattr(shards, "most_open", lambda: most)
    embeddings = Embeddings(write(tmp_path, np.split(vectors, 100)))

    def spied(path: Path) -> np.ndarray:
        paths.append(path)
        return open_shard(path)

    monkeypatch.setattr(shards, "open_shard", spied)
    for _ in range(3):
        assert np.array_equal(embeddings.rows(0, 200), vectors)
        assert np.array_equal(embeddings.take(np.arange(200)[::-1]), vectors[::-1])
    assert len(paths) == opened


@pytest.mark.parametrize(("soft", "hard", "most"), [(20, 400, 64), (256, 1600, 200)])
def test_the_soft_limit_of_open_files_is_raised(soft: int, hard: int, most: int) -> None:
    program = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from megatron_sbp.files import most_open\n"
        "print(most_open(), *resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.split() == [b"%d" % number for number in (most, hard, hard)]


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.9])
def test_bad_rows_are_named(value: float, tmp_path: Path) -> None:
    vectors = unit(20)
    vectors[13, 2] = value
    embeddings = Embeddings(write(tmp_path, [vectors[:9], vectors[9:]]))
    embeddings.rows(0, 13)
    with pytest.raises(InputError, match="document 13 has length"):
        embeddings.rows(10, 20)
    with pytest.raises(InputError, match="document 13 has length"):
        embeddings.take(np.array([2, 13, 4]))


def test_damaged_directories_are_named(tmp_path: Path) -> None:
    vectors = unit(20)

    def refused(message: str, pieces: list[np.ndarray], remove: int | None = None) -> None:
        directory = tmp_path / message.split()[0]
        write(directory, pieces)
        if remove is not None:
            (directory / shard_name(remove, len(pieces))).unlink()
        with pytest.raises(InputError, match=message):
            Embeddings(directory)

    refused("embeddings-00001-of-00003.npy is missing", np.split(vectors, [5, 9]), remove=1)
    refused("rows of 7 numbers", [vectors, vectors[:, :7]])
    refused("float32 with 2 axes", [vectors.astype(np.float32)])
    refused("float16 with 1 axes", [vectors[0]])
    refused("hold no rows", [vectors[:0]])
    mixed = write(write(tmp_path / "mixed", [vectors]), [vectors, vectors])
    with pytest.raises(InputError, match="shards of 1 and of 2"):
        Embeddings(mixed)
    truncated = write(tmp_path / "truncated", [vectors]) / shard_name(0, 1)
    truncated.write_bytes(truncated.read_bytes()[:-3])
    with pytest.raises(InputError, match="not a complete"):
        Embeddings(truncated.parent)
    Manifest(stage="mine", options={}, inputs={}).write(write(tmp_path / "other", [vectors]))
    with pytest.raises(InputError, match="stage 'mine'"):
        Embeddings(tmp_path / "other")


def test_corpora_are_told_apart_by_content(words_corpus: Corpus, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in words_corpus.files():
        (moved / path.name).write_bytes(path.read_bytes())
    again = Corpus([moved / prefix.name for prefix in words_corpus.prefixes])
    check_corpus(words_corpus.fingerprints, again, "box")
    with pytest.raises(InputError, match="is not the corpus"):
        check_corpus(words_corpus.fingerprints[::-1], again, "box")
    with pytest.raises(InputError, match="made from 1 corpus"):
        check_corpus(words_corpus.fingerprints[:1], again, "box")
