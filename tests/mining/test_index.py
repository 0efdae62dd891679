import errno
import resource
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.mining.control import RandomSearch
from megatron_sbp.mining.findings import Found
from megatron_sbp.mining.index import IndexSearch, build_index, check_gpu_lists, share_of_gpus
from megatron_sbp.mining.layout import cut
from megatron_sbp.mining.pairs import PairStore
from megatron_sbp.mining.window import Window
from tests.mining.test_join import SEED, random_vectors, rows
from tests.mining.test_pairs import Row, save
from tests.mining.vectors import brute_force, clustered, write_shards

WINDOW = Window(minimum=0.6, maximum=np.inf, depth=20)
SEARCH_EVERYTHING = [("Flat", ""), ("IVF8,Flat", "nprobe=8"), ("IVF8,SQ8", "nprobe=8")]


def search(
    embeddings: Embeddings, factory: str, parameters: str, path: Path, gpus: Sequence[int] = ()
) -> list[Row]:
    build_index(embeddings, factory, path, seed=0, memory=1 << 30)
    finder = IndexSearch(embeddings, WINDOW, cut(400, 150), path, parameters, gpus)
    return listed(list(finder.find(range(3))))


def listed(found: list[Found]) -> list[Row]:
    return [row for one in found for row in rows(one.pairs)]


def make_embeddings(box: Path) -> Embeddings:
    return Embeddings(write_shards(box / "e", clustered(400, 24, 12, SEED), shards=2))


@pytest.fixture
def embeddings(tmp_path: Path) -> Embeddings:
    return make_embeddings(tmp_path)


@pytest.mark.parametrize(("factory", "parameters"), SEARCH_EVERYTHING)
def test_index_that_searches_everything_is_brute_force(
    factory: str, parameters: str, embeddings: Embeddings, tmp_path: Path
) -> None:
    expected = brute_force(embeddings.rows(0, 400), 0.6, depth=20)
    # SQ8 ranks by rounded rows, but enough are taken that all are scored exactly.
    assert search(embeddings, factory, parameters, tmp_path / "index") == expected, f"seed {SEED}"


@pytest.mark.parametrize("factory", ["PQ4x4", "HNSW8", "IVF8,PQ4x4", "HNSW8,SQ8"])
def test_index_that_finds_a_part_scores_it_exactly(
    factory: str, embeddings: Embeddings, tmp_path: Path
) -> None:
    found = set(search(embeddings, factory, "", tmp_path / "index"))
    assert found and found <= set(brute_force(embeddings.rows(0, 400), 0.6))


@pytest.mark.parametrize("factory", ["IVF1000,Flat", "Nonsense7"])
def test_index_that_faiss_refuses(factory: str, embeddings: Embeddings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=factory):
        build_index(embeddings, factory, tmp_path / "index", seed=0, memory=1 << 30)


def test_index_that_does_not_fit_into_memory(embeddings: Embeddings, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--memory"):
        build_index(embeddings, "Flat", tmp_path / "index", seed=0, memory=10_000)
    build_index(embeddings, "PQ4x4", tmp_path / "index", seed=0, memory=10_000)


@pytest.mark.parametrize("missing", [1, 5000, 30_000])
def test_index_that_does_not_fit_on_the_disk(
    missing: int, embeddings: Embeddings, tmp_path: Path
) -> None:
    build_index(embeddings, "Flat", tmp_path / "whole", seed=0, memory=1 << 30)
    size = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, most))
    try:
        with pytest.raises(OSError) as raised:
            build_index(embeddings, "Flat", tmp_path / "index", seed=0, memory=1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert raised.value.errno == errno.EFBIG
    assert not (tmp_path / "index").exists()


def test_lists_that_a_gpu_cannot_give() -> None:
    check_gpu_lists(2047)
    with pytest.raises(InputError, match=r"--candidates 2048: FAISS returns at most 2048"):
        check_gpu_lists(2048)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 7])
def test_ranks_divide_the_gpus_of_a_machine(ranks: int) -> None:
    shares = [share_of_gpus(4, rank, ranks) for rank in range(ranks)]
    held = sorted(gpu for share in shares for gpu in share)
    # Each once, or one for each rank.
    assert held == sorted([*range(4), *(rank % 4 for rank in range(4, ranks))])
    assert {len(share) for share in shares} <= {4 // ranks, -(-4 // ranks)} - {0}


def test_control_has_the_anchors_and_true_scores(tmp_path: Path) -> None:
    vectors = clustered(90, 24, 5, SEED)
    mined = brute_force(vectors, 0.7)
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors, shards=2))
    store = PairStore(save(tmp_path, mined))
    two = RandomSearch(embeddings, store, 3, [(0, 31), (31, 90)])
    drawn = listed(list(two.find([0, 1])))
    assert [row[0] for row in drawn] == [row[0] for row in mined]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(brute_force(vectors, -1))
    # As many random pairs are above the threshold as there are among all pairs, roughly.
    share = np.mean([row[2] >= 0.7 for row in drawn])
    assert abs(share - len(mined) / (90 * 89)) < 0.1
    # A document is drawn about as often as it is a neighbour of mined pairs.
    often = np.bincount([row[1] for row in mined], minlength=90)
    control = np.bincount([row[1] for row in drawn], minlength=90)
    assert np.corrcoef(often, control)[0, 1] > 0.5 and not control[often == 0].any()
    one = RandomSearch(embeddings, store, 3, [(0, 90)])
    assert drawn == listed(list(one.find([0]))), "draws depend on the block"


def test_control_with_a_single_neighbour_in_the_store(tmp_path: Path) -> None:
    embeddings = Embeddings(write_shards(tmp_path / "e", clustered(20, 24, 5, SEED)))
    store = PairStore(save(tmp_path, [(3, 7, 0.9), (5, 7, 0.8), (7, 3, 0.9)]))
    (found,) = RandomSearch(embeddings, store, 3, [(0, 20)]).find([0])
    assert found.pairs.anchor.tolist() == [3, 5, 7]
    first, second, third = found.pairs.neighbor.tolist()
    assert first == 7 and second in (3, 7) and third == 3


def test_search_sees_rows_that_are_not_unit_vectors(tmp_path: Path) -> None:
    vectors = random_vectors()
    vectors[123] *= 2
    embeddings = Embeddings(write_shards(tmp_path / "e", vectors))
    with pytest.raises(InputError, match="document 123 "):
        build_index(embeddings, "Flat", tmp_path / "index", seed=0, memory=1 << 30)
