"""Every way from the shards to the device gives the rows of the shards, checked, in order."""

import importlib
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from threading import enumerate as threads

import numpy as np
import pytest
import torch

from megatron_sbp.embedding.shards import Embeddings, shard_name
from megatron_sbp.errors import InputError
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.loading import Loader, MapLoader, PinnedLoader, open_loader
from tests.embedding.test_huge import write_sparse
from tests.mining.vectors import unit

SEED = 17
CPU = torch.device("cpu")
ROWS = 700
try:
    importlib.import_module("nvidia.dali")
    HAS_DALI = True
except ImportError:
    HAS_DALI = False


def region(embeddings: Embeddings, device: torch.device) -> Loader:
    from megatron_sbp.mining.loading_dali import RegionLoader

    return RegionLoader(embeddings, device)


def whole(embeddings: Embeddings, device: torch.device) -> Loader:
    from megatron_sbp.mining.loading_dali import WholeShardLoader

    return WholeShardLoader(embeddings, device)


needs_dali = pytest.mark.skipif(not HAS_DALI, reason="nvidia-dali-cuda130 is not installed")
LOADERS = [
    pytest.param(lambda embeddings: MapLoader(embeddings), id="map"),
    pytest.param(lambda embeddings: PinnedLoader(embeddings, CPU), id="pinned"),
    pytest.param(lambda embeddings: region(embeddings, CPU), id="dali-cpu", marks=needs_dali),
    pytest.param(lambda embeddings: whole(embeddings, CPU), id="dali-gpu", marks=needs_dali),
]
every_loader = pytest.mark.parametrize("make", LOADERS)
Make = Callable[[Embeddings], Loader]


def shards(directory: Path, vectors: np.ndarray) -> Embeddings:
    """Shards of different sizes; some are empty, two hold a single row."""
    directory.mkdir()
    pieces = np.split(vectors, [0, 1, 90, 90, 91, 400, 650, 650])
    for number, piece in enumerate(pieces):
        np.save(directory / shard_name(number, len(pieces)), piece)
    return Embeddings(directory)


def random_vectors() -> np.ndarray:
    return unit(np.random.default_rng(SEED).standard_normal((ROWS, 40)))


@pytest.fixture
def embeddings(tmp_path: Path) -> Embeddings:
    return shards(tmp_path / "embeddings", random_vectors())


def random_ranges(count: int) -> list[Block]:
    source = np.random.default_rng(SEED)
    bounds = [sorted(source.choice(ROWS + 1, 2, replace=False).tolist()) for _ in range(count)]
    return [(0, ROWS), (0, 1), (ROWS - 1, ROWS), *((low, high) for low, high in bounds)]


@every_loader
def test_rows_are_those_of_the_shards_and_stay(make: Make, embeddings: Embeddings) -> None:
    """Blocks that the caller keeps are not overwritten by later ones."""
    ranges = random_ranges(25)
    blocks = list(make(embeddings).load(ranges))
    assert len(blocks) == len(ranges)
    for (start, stop), block in zip(ranges, blocks, strict=True):
        assert block.dtype == torch.float16
        expected = embeddings.rows(start, stop)
        assert np.array_equal(block.numpy(), expected), f"seed {SEED}, {start} to {stop}"


@every_loader
def test_two_loads_at_a_time_do_not_mix(make: Make, embeddings: Embeddings) -> None:
    loader, ranges = make(embeddings), random_ranges(8)
    pairs = zip(loader.load(ranges), loader.load(ranges[::-1]), strict=True)
    for (forth, back), there, again in zip(pairs, ranges, ranges[::-1], strict=True):
        assert np.array_equal(forth.numpy(), embeddings.rows(*there)), f"seed {SEED}"
        assert np.array_equal(back.numpy(), embeddings.rows(*again)), f"seed {SEED}"


@every_loader
def test_ranges_are_taken_one_ahead_and_blocks_let_go(make: Make, embeddings: Embeddings) -> None:
    taken = 0

    def ranges() -> Iterator[Block]:
        nonlocal taken
        for start in range(100, 600, 50):
            taken += 1
            yield start, start + 50

    alive: list[weakref.ref[torch.Tensor]] = []
    for number, block in enumerate(make(embeddings).load(ranges())):
        assert taken <= number + 2
        alive.append(weakref.ref(block))
        del block
        # What the caller has let go is gone when the next one comes.
        assert all(reference() is None for reference in alive[:-1])
    assert taken == len(alive) == 10


@every_loader
def test_stopping_early_ends_the_threads(make: Make, embeddings: Embeddings) -> None:
    before = set(threads())
    blocks = make(embeddings).load((start, start + 20) for start in range(0, ROWS - 20, 20))
    next(blocks)
    next(blocks)
    del blocks
    for thread in set(threads()) - before:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_stopping_does_not_wait_for_a_read(
    embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector may do the stopping while it holds a lock that the thread needs."""
    loader, reading, release = MapLoader(embeddings), Event(), Event()

    def check(rows: torch.Tensor, start: int) -> None:
        if start == 50:
            reading.set()
            release.wait()

    monkeypatch.setattr(loader, "check", check)
    with ExitStack() as stack:
        stack.callback(release.set)
        blocks = iter(loader.load([(0, 50), (50, 100), (100, 150)]))
        next(blocks)
        assert reading.wait(timeout=60)
        stopping = Thread(target=blocks.close, daemon=True)  # type: ignore[attr-defined]
        stopping.start()
        stopping.join(timeout=60)
        assert not stopping.is_alive()


@every_loader
def test_no_ranges_give_no_blocks(make: Make, embeddings: Embeddings) -> None:
    assert list(make(embeddings).load([])) == []


@every_loader
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.9])
def test_a_bad_row_is_named_when_its_range_is_asked_for(
    make: Make, value: float, tmp_path: Path
) -> None:
    vectors = random_vectors()
    vectors[413, 2] = value
    blocks = make(shards(tmp_path / "embeddings", vectors)).load([(0, 413), (412, 500), (0, 5)])
    assert np.array_equal(next(blocks).numpy(), vectors[:413])
    with pytest.raises(InputError, match="embedding of document 413 has length"):
        next(blocks)


@every_loader
def test_errors_of_the_ranges_reach_the_caller(make: Make, embeddings: Embeddings) -> None:
    with pytest.raises(IndexError, match="documents 600 to 701 of 700"):
        list(make(embeddings).load([(0, 9), (600, 701)]))


def test_a_map_inside_a_shard_is_not_copied(embeddings: Embeddings) -> None:
    first, second = MapLoader(embeddings).load([(100, 300), (100, 300)])
    assert first.data_ptr() == second.data_ptr()


def test_auto_on_a_cpu_is_the_memory_map(embeddings: Embeddings) -> None:
    assert open_loader(embeddings, CPU, "auto").name == "map"
    with pytest.raises(InputError, match="pinned: is not for device cpu; choose map"):
        open_loader(embeddings, CPU, "pinned")
    with pytest.raises(InputError, match="map: is not for device cuda:0; choose pinned"):
        open_loader(embeddings, torch.device("cuda", 0), "map")


@needs_dali
def test_dali_reads_regions_on_a_cpu(embeddings: Embeddings) -> None:
    assert open_loader(embeddings, CPU, "dali").name == "dali-cpu"


def test_without_dali_the_extra_is_named(
    embeddings: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with pytest.raises(InputError, match=r"pip install 'megatron_sbp\[gpu\]'"):
        open_loader(embeddings, CPU, "dali")
    assert open_loader(embeddings, torch.device("cuda", 0), "auto").name == "pinned"


@needs_dali
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU reader may work here")
def test_where_the_gpu_reader_fails_the_cpu_reader_is_taken(
    embeddings: Embeddings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert open_loader(embeddings, torch.device("cuda", 0), "dali").name == "dali-cpu"
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("warning: DALI's GPU reader does not work")


@pytest.mark.parametrize("make", LOADERS[:3])  # The last one would read holes of 4 GiB.
def test_rows_above_2_to_the_31(make: Make, tmp_path: Path) -> None:
    real = write_sparse(tmp_path / "embeddings", [2**30, 2**30 + 7, 2**30 - 3])
    first, second = 2**30, 2**31 + 7
    ranges = [(first - 9, first + 9), (second - 50, second + 50), (second - 1, second + 1)]
    for wanted, block in zip(
        ranges, make(Embeddings(tmp_path / "embeddings")).load(ranges), strict=True
    ):
        assert np.array_equal(block.numpy(), [real[document] for document in range(*wanted)])


@needs_dali
def test_a_shard_beyond_dalis_counting_is_refused(tmp_path: Path) -> None:
    write_sparse(tmp_path / "embeddings", [2**31 + 1000])
    with pytest.raises(InputError, match=r"a shard has 2,147,484,648 rows.*choose loader map"):
        open_loader(Embeddings(tmp_path / "embeddings"), CPU, "dali")
