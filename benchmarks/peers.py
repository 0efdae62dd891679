"""Libraries that find nearest neighbours, set up to find all pairs of related documents."""

import math
from typing import Any

import numpy as np

type Lists = tuple[np.ndarray, np.ndarray]
"""Scores, float32 [n, k], the highest first, and ids, integers [n, k], -1 where there is none."""

_STEPS = [1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 512, 1024]


class Peer:
    """One library with one kind of index.

    Args:
        rows: Every document's, float32 [n, d], contiguous.
        threads: Threads to use.
    """

    least_recall = 0.0
    """The lowest of ``settings`` with this recall is used."""
    settings: tuple[int, ...] = ()
    """Values of the one setting that trades time for recall, rising."""
    flat = False
    """Whether a search compares with everything, so that its time is linear in the queries."""

    def __init__(self, rows: np.ndarray, threads: int):
        self.rows, self.threads = rows, threads

    def warm_up(self) -> None:
        """What a process does once, before the clock starts."""

    def build(self) -> None:
        """Index the rows."""

    def set(self, value: int) -> None:
        """Choose one of ``settings``."""

    def search(self, rows: np.ndarray, k: int) -> Lists:
        """The k nearest documents of some rows."""
        raise NotImplementedError

    def about(self) -> dict[str, int]:
        """Parameters of the index."""
        return {}


class Flat(Peer):
    """``faiss.IndexFlatIP``."""

    flat = True

    def build(self) -> None:
        """See ``Peer``."""
        import faiss

        self._index = faiss.IndexFlatIP(self.rows.shape[1])
        self._index.add(self.rows)

    def search(self, rows: np.ndarray, k: int) -> Lists:
        """See ``Peer``."""
        return self._index.search(rows, k)


def list_number(documents: int) -> int:
    """Lists of an inverted file: the power of two nearest to four square roots of the documents.

    FAISS's guide advises 4 to 16 square roots, and training wants 39 documents per list.
    """
    most = max(1, documents // 39)
    return min(2 ** round(math.log2(4 * math.sqrt(documents))), 2 ** int(math.log2(most)))


class Inverted(Peer):
    """``faiss.IndexIVFFlat``."""

    least_recall = 0.97

    def __init__(self, rows: np.ndarray, threads: int):
        super().__init__(rows, threads)
        self._lists = list_number(len(rows))
        self.settings = (*(step for step in _STEPS if step < self._lists), self._lists)

    def build(self) -> None:
        """See ``Peer``."""
        self._index = self._empty()
        self._index.train(self.rows)
        self._index.add(self.rows)

    def _empty(self) -> Any:
        import faiss

        dimensions = self.rows.shape[1]
        self._quantizer = faiss.IndexFlatIP(dimensions)  # The index does not keep it alive.
        inner = faiss.METRIC_INNER_PRODUCT
        return faiss.IndexIVFFlat(self._quantizer, dimensions, self._lists, inner)

    def set(self, value: int) -> None:
        """See ``Peer``."""
        self._index.nprobe = value

    def search(self, rows: np.ndarray, k: int) -> Lists:
        """See ``Peer``."""
        return self._index.search(rows, k)

    def about(self) -> dict[str, int]:
        """See ``Peer``."""
        return {"lists": self._lists, "probes": self._index.nprobe}


class BigBatch(Inverted):
    """``faiss.contrib.big_batch_search`` over an ``IndexIVFFlat``."""

    least_recall = 0.95

    def search(self, rows: np.ndarray, k: int) -> Lists:
        """See ``Peer``."""
        from faiss.contrib.big_batch_search import big_batch_search

        if len(rows) <= self._lists:  # FAISS cannot sort so few queries by list.
            return super().search(rows, k)
        return big_batch_search(self._index, rows, k, threaded=0)


class Hnsw(Peer):
    """``hnswlib``."""

    least_recall = 0.95
    links, construction = 16, 100
    settings = (40, 48, 64, 91, 128, 181, 256, 362, 512)

    def build(self) -> None:
        """See ``Peer``."""
        import hnswlib

        documents, dimensions = self.rows.shape
        self._index = hnswlib.Index(space="ip", dim=dimensions)
        self._index.init_index(documents, ef_construction=self.construction, M=self.links)
        self._index.add_items(self.rows, num_threads=self.threads)

    def set(self, value: int) -> None:
        """See ``Peer``."""
        self._ef = value

    def search(self, rows: np.ndarray, k: int) -> Lists:
        """See ``Peer``."""
        self._index.set_ef(max(self._ef, k))
        ids, distances = self._index.knn_query(rows, k=k, num_threads=self.threads)
        return 1 - distances, ids.astype(np.int64)

    def about(self) -> dict[str, int]:
        """See ``Peer``."""
        return {"M": self.links, "ef_construction": self.construction, "ef": self._index.ef}


class GpuFlat(Peer):
    """``faiss.knn_gpu`` in float32."""

    flat = True

    def warm_up(self) -> None:
        """See ``Peer``."""
        import faiss

        self._resources = faiss.StandardGpuResources()
        self.search(self.rows[:64], 2)

    def search(self, rows: np.ndarray, k: int) -> Lists:
        """See ``Peer``."""
        import faiss

        inner = faiss.METRIC_INNER_PRODUCT
        return faiss.knn_gpu(self._resources, rows, self.rows, k, metric=inner, device=0)


class GpuFlatHalf(GpuFlat):
    """``faiss.knn_gpu`` in float16."""

    def __init__(self, rows: np.ndarray, threads: int):
        super().__init__(rows.astype(np.float16), threads)

    def search(self, rows: np.ndarray, k: int) -> Lists:
        """See ``Peer``."""
        return super().search(rows.astype(np.float16, copy=False), k)


class GpuInverted(Inverted):
    """``faiss.GpuIndexIVFFlat``."""

    def warm_up(self) -> None:
        """See ``Peer``."""
        import faiss

        self._resources = faiss.StandardGpuResources()
        faiss.knn_gpu(self._resources, self.rows[:64], self.rows[:64], 2, device=0)

    def _empty(self) -> Any:
        import faiss

        library: Any = faiss  # faiss-cpu, which the types are of, has no such index.
        shape = self.rows.shape[1], self._lists
        return library.GpuIndexIVFFlat(self._resources, *shape, faiss.METRIC_INNER_PRODUCT)


PEERS: dict[str, type[Peer]] = {
    "flat": Flat,
    "ivf": Inverted,
    "big-batch": BigBatch,
    "hnsw": Hnsw,
    "gpu-flat": GpuFlat,
    "gpu-flat-fp16": GpuFlatHalf,
    "gpu-ivf": GpuInverted,
}
