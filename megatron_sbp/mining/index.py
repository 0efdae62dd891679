"""Search through any FAISS index: what it finds is scored exactly, what it misses is missing."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError
from megatron_sbp.mining.findings import Found
from megatron_sbp.mining.layout import Block
from megatron_sbp.mining.window import Window, scored
from megatron_sbp.sealed import sealed_directory

INDEX = "index"
"""Directory of the index, among what a job keeps."""
_FILENAME = "index.faiss"
_TRAIN_ROWS = 262_144  # Sample that an index is trained on.
_PIECE = 4096  # Documents searched or added at a time.
_GPU_NEIGHBORS = 2048  # Longest list that FAISS returns on a GPU.
_SPARE = 4  # Times as many neighbours are taken from an index of coded rows, to be scored exactly.


class IndexSearch:
    """The candidates among those that a FAISS index finds; its units are blocks of anchors.

    Args:
        embeddings: Every document's.
        window: Which neighbours are wanted.
        blocks: The corpus, cut.
        directory: That of the index; see ``build_index``.
        parameters: Of FAISS's ParameterSpace, such as ``nprobe=16``; may be empty.
        gpus: CUDA devices to search on, each with a copy of the index; none for the CPU.

    Raises:
        InputError: If the index does not have such parameters, or a GPU has no such index or
            cannot give such long lists.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        window: Window,
        blocks: Sequence[Block],
        directory: Path,
        parameters: str,
        gpus: Sequence[int] = (),
    ):
        import faiss

        self._embeddings, self._window, self._blocks = embeddings, window, blocks
        index = faiss.read_index(str(directory / _FILENAME))
        spare = 1 if _holds_vectors(index, embeddings.dimensions) else _SPARE
        self._wanted = min(spare * window.depth + 1, len(embeddings))
        if gpus:
            check_gpu_lists(window.depth)
            self._wanted = min(self._wanted, _GPU_NEIGHBORS)
            try:
                index = faiss.index_cpu_to_gpus_list(index, gpus=list(gpus))
            except RuntimeError as error:
                raise _refused("this index on a GPU", error) from None
        self._index = index
        space: Any = faiss.GpuParameterSpace() if gpus else faiss.ParameterSpace()
        try:
            space.set_index_parameters(self._index, parameters)
        except RuntimeError as error:
            raise _refused(f"search parameters {parameters!r}", error) from None

    def find(self, units: Sequence[int]) -> Iterator[Found]:
        """Search for the anchors of some blocks; see ``Finder``."""
        for unit in units:
            yield self._search(*self._blocks[unit])

    def _search(self, start: int, stop: int) -> Found:
        numbers = np.arange(start, stop)
        anchors, neighbors = [], []
        for low in range(start, stop, _PIECE):
            high = min(low + _PIECE, stop)
            rows = self._embeddings.rows(low, high).astype(np.float32)
            _, ids = self._index.search(rows, self._wanted)
            row, place = np.nonzero((ids >= 0) & (ids != numbers[low - start : high - start, None]))
            anchors.append(low + row)
            neighbors.append(ids[row, place])
        listed = scored(self._embeddings, np.concatenate(anchors), np.concatenate(neighbors))
        return Found(
            pairs=self._window.best(listed),
            above=int(np.sum(self._window.above(listed.score))),
            highest=float(listed.score.max(initial=-1)),
        )


def share_of_gpus(count: int, local_rank: int, local_size: int) -> list[int]:
    """The devices of a rank: a part of its machine's, or one that it shares where ranks are more.

    Args:
        count: Devices of the machine.
        local_rank: Of the ranks on the machine.
        local_size: How many ranks are on it.
    """
    return list(range(count))[local_rank::local_size] or [local_rank % count]


def check_gpu_lists(depth: int) -> None:
    """Refuse lists that FAISS cannot return on a GPU.

    Raises:
        InputError: If an anchor's list would be too long.
    """
    if depth + 1 > _GPU_NEIGHBORS:
        raise InputError(
            f"--candidates {depth}: FAISS returns at most {_GPU_NEIGHBORS} neighbours on a GPU, "
            f"the anchor itself among them; give at most {_GPU_NEIGHBORS - 1}, or --device cpu, or "
            "--search exact"
        )


def build_index(
    embeddings: Embeddings, factory: str, directory: Path, *, seed: int, memory: int
) -> None:
    """Train a FAISS index on a sample, add every document, and save it with its checksum.

    Args:
        embeddings: Every document's; the index holds them in memory in its own encoding.
        factory: String for ``faiss.index_factory``, such as ``IVF256,Flat``.
        directory: Where to save, made whole or not at all.
        seed: Of the sample.
        memory: Bytes that the index may take.

    Raises:
        InputError: If FAISS refuses the string or the data, or the index would be too large.
        OSError: If it cannot be written whole.
    """
    import faiss

    draw = np.random.default_rng(seed)
    count = min(len(embeddings), _TRAIN_ROWS)
    sample = np.sort(draw.choice(len(embeddings), count, replace=False))
    try:
        index = faiss.index_factory(embeddings.dimensions, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(embeddings.take(sample).astype(np.float32))
        _check_memory(index, len(embeddings), memory, factory)
        for first in range(0, len(embeddings), _PIECE):
            last = min(first + _PIECE, len(embeddings))
            index.add(embeddings.rows(first, last).astype(np.float32))
    except RuntimeError as error:
        raise _refused(factory, error) from None
    with sealed_directory(directory) as partial, open(partial / _FILENAME, "wb") as file:
        # FAISS's own writer does not notice that its last bytes did not fit.
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


def _check_memory(index: Any, documents: int, memory: int, factory: str) -> None:
    """Refuse an index whose codes and ids alone do not fit."""
    needed = documents * (_code_bytes(index) + 8)
    if needed > memory:
        raise InputError(
            f"--search faiss:{factory}: the index of {documents:,} documents takes at least "
            f"{needed / (1 << 30):.1f} GiB on every rank, more than --memory; give more, a "
            "factory with smaller codes (PQ), or --search clusters"
        )


def _code_bytes(index: Any) -> int:
    """Bytes of a document's code; 0 where FAISS does not say."""
    import faiss

    whole = faiss.downcast_index(index)
    try:
        return int(getattr(whole, "storage", whole).sa_code_size())  # A graph has a storage.
    except RuntimeError:
        return 0


def _holds_vectors(index: Any, dimensions: int) -> bool:
    """Whether the index keeps whole float32 rows, so that its order is the true one."""
    return _code_bytes(index) >= 4 * dimensions or _code_bytes(index) == 0


def _refused(what: str, error: RuntimeError) -> InputError:
    reason = str(error).strip().splitlines()[-1]
    return InputError(
        f"--search faiss: FAISS refuses {what} ({reason}); see its documentation of "
        "index_factory, or choose exact"
    )
