"""The ways to find candidates, ready to work: what ``--search`` and ``--control`` name."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError, require
from megatron_sbp.mining import centroids, clusters, recall
from megatron_sbp.mining.arrays import map_arrays, save_arrays
from megatron_sbp.mining.control import RandomSearch
from megatron_sbp.mining.exact import ExactSearch, Triangle
from megatron_sbp.mining.findings import Found, map_pairs, save_pairs
from megatron_sbp.mining.index import (
    INDEX,
    IndexSearch,
    build_index,
    check_gpu_lists,
    share_of_gpus,
)
from megatron_sbp.mining.layout import Block, Layout, Unit, shares
from megatron_sbp.mining.loading import Loader, open_loader
from megatron_sbp.mining.options import MineOptions
from megatron_sbp.mining.pairs import Pairs, PairStore
from megatron_sbp.mining.products import Products, fastest, usable_device
from megatron_sbp.mining.ring import RingSearch, SpreadEmbeddings
from megatron_sbp.mining.window import Window
from megatron_sbp.ranks import Ranks


class Finder(Protocol):
    """Does units of work."""

    def find(self, units: Sequence[int]) -> Iterator[Found]:
        """What some units find, one after another, in their order."""


@dataclass(kw_only=True, slots=True, eq=False)
class Search:
    """A search that can begin."""

    units: Sequence[Unit]
    """The work; it does not depend on the number of ranks."""
    finder: Finder
    per_block: Sequence[Sequence[int]]
    """For every block the units that can find candidates for its anchors."""
    exact: Pairs | None = None
    """The exact candidates of a sample of anchors, where the search may miss some."""
    sample: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """These anchors, int64."""
    figures: dict[str, Any] = field(default_factory=dict)
    """What the manifest says about the search."""
    dealt: Sequence[Sequence[int]] | None = None
    """The units of every rank, in order; None if any rank can do any unit."""


class Preparation:
    """Makes the search of a job ready, on all ranks together.

    Args:
        options: Which search.
        embeddings: Every document's.
        pairs: Mined pairs, for a control set.
        layout: What a rank holds.
        blocks: The corpus, cut.
        scratch: What is prepared is kept here, for other ranks and for a resumed run.
        ranks: All take part.
    """

    def __init__(
        self,
        options: MineOptions,
        embeddings: Embeddings,
        pairs: PairStore | None,
        layout: Layout,
        blocks: Sequence[Block],
        scratch: Path,
        ranks: Ranks,
    ):
        self._options, self._embeddings, self._pairs = options, embeddings, pairs
        self._layout, self._scratch, self._ranks = layout, scratch, ranks
        self._blocks = blocks
        self.window = Window(
            minimum=options.min_similarity,
            maximum=np.inf if options.max_similarity is None else options.max_similarity,
            depth=options.depth(len(embeddings)),
        )

    def search(self) -> Search:
        """The search that the options name; collective.

        Raises:
            InputError: If it cannot be done with this data or on this machine.
        """
        if self._pairs is not None:
            pairs, seed = self._pairs, self._options.seed
            finder = self._ranks.together(
                lambda: RandomSearch(self._embeddings, pairs, seed, self._blocks)
            )
            return self._by_block(finder)
        self._ranks.together(lambda: require("faiss", package="faiss-cpu"))
        self._products, self._loader = self._ranks.together(self._devices)
        if self._options.search == "exact":
            return self._exact()
        return self._clusters() if self._options.search == "clusters" else self._index()

    def _devices(self) -> tuple[Products, Loader]:
        import torch

        torch.set_num_threads(self._ranks.cores)
        device = usable_device(self._options.device)
        if device.type == "cuda":
            device = torch.device("cuda", self._ranks.local_rank % torch.cuda.device_count())
        precision = self._options.precision
        chosen = fastest(device) if precision == "auto" else precision
        products = Products(chosen, device, self._embeddings.dimensions)
        return products, open_loader(self._embeddings, device, self._options.loader)

    def _figures(self) -> dict[str, Any]:
        return {
            "precision": self._products.precision,
            "device": self._products.device.type,
            "loader": self._loader.name,
        }

    def _by_block(self, finder: Finder, **more: Any) -> Search:
        """A search whose units are the blocks of anchors."""
        units = [Unit(f"{start:012}", stop - start) for start, stop in self._blocks]
        own = [[block] for block in range(len(self._blocks))]
        return Search(units=units, finder=finder, per_block=own, **more)

    def _exact(self) -> Search:
        triangle = Triangle(self._blocks)
        finder: ExactSearch | RingSearch
        tools = self._layout.resident, self._products, self._loader
        if isinstance(self._embeddings, SpreadEmbeddings):
            finder = RingSearch(self._embeddings, triangle, self.window, *tools, self._ranks)
        else:
            finder = ExactSearch(triangle, self.window, *tools)
        return Search(
            units=triangle.units(),
            finder=finder,
            per_block=[triangle.touching(block) for block in range(len(self._blocks))],
            figures=self._figures(),
            dealt=finder.dealt() if isinstance(finder, RingSearch) else None,
        )

    def _index(self) -> Search:
        options, path = self._options, self._scratch / INDEX
        gpus = self._gpus()
        if gpus:
            self._ranks.together(lambda: check_gpu_lists(self.window.depth))
        self._ranks.on_first(lambda: None if path.exists() else self._build(path))
        finder = self._ranks.together(
            lambda: IndexSearch(
                self._embeddings,
                self.window,
                self._blocks,
                path,
                options.search_parameters,
                gpus,
            )
        )
        sample, exact = self._sample()
        figures = self._figures() | {"device": "cuda" if gpus else "cpu"}
        return self._by_block(finder, exact=exact, sample=sample, figures=figures)

    def _build(self, path: Path) -> None:
        options = self._options
        build_index(
            self._embeddings, options.factory, path, seed=options.seed, memory=options.memory_bytes
        )

    def _gpus(self) -> list[int]:
        """CUDA devices that FAISS can search on; without one it would find nothing, silently."""
        import faiss

        count = int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0
        if self._products.device.type != "cuda" or not count:
            return []
        return share_of_gpus(count, self._ranks.local_rank, self._ranks.local_size)

    def _clusters(self) -> Search:
        options = self._options
        places = self._centroids()
        assignments = self._assignments(places)
        sizes = self._sizes(assignments, len(places))
        # Chosen by one half of the sample and measured on the other, or recall would look better
        # than it is.
        both, candidates = self._sample(2)
        sample = both[1::2]
        measured = np.isin(candidates.anchor, sample)
        deciding, exact = candidates[~measured], candidates[measured]
        nearest = [assignments.of(ids) for ids in (deciding.anchor, deciding.neighbor)]
        reach, expected = clusters.choose(
            clusters.probes_needed(*nearest),
            deciding.anchor,
            sizes,
            options.target_recall,
            clusters.Reach(options.overlap, options.probes) if options.overlap else None,
        )
        members = clusters.Members(
            self._scratch / "members", assignments, len(places), reach.probes
        )
        self._make(members, members.make)
        costs = clusters.costs(sizes, reach)
        groups = clusters.group(costs)
        finder = clusters.ClusterSearch(
            self._embeddings,
            self.window,
            assignments,
            members,
            groups,
            sizes[: reach.probes].sum(0),
            reach,
            self._products,
            self._layout.size,
            clusters.gathered_bytes(options.memory_bytes),
        )
        units = clusters.units(groups, costs)
        figures = self._figures() | {
            "clusters": len(places),
            **asdict(reach),
            "expected_recall": round(expected.value, 4),
            "compared": round(
                2 * float(clusters.compared(sizes, reach).sum()) / len(self._embeddings) ** 2, 6
            ),
        }
        return Search(
            units=units,
            finder=finder,
            per_block=[range(len(units))] * len(self._blocks),
            exact=exact,
            sample=sample,
            figures=figures,
        )

    def _centroids(self) -> np.ndarray:
        path = self._scratch / "centroids.arrays"
        if not self._ranks.share(path.exists()):
            number = self._ranks.together(self._number_of_clusters)
            made = centroids.train(
                self._embeddings, number, self._options.seed, self._ranks, self._products.device
            )
            self._ranks.on_first(lambda: save_arrays(path, {"centroids": made}, {}))
        return np.array(map_arrays(path)[0]["centroids"])

    def _number_of_clusters(self) -> int:
        documents, wanted = len(self._embeddings), self._options.clusters
        most = centroids.most(documents)
        if wanted > most:
            raise InputError(
                f"--clusters {wanted}: {documents:,} documents support at most {most}; give no "
                "more than that, or 0"
            )
        return wanted or centroids.suitable(documents)

    def _assignments(self, places: np.ndarray) -> clusters.Assignments:
        found = clusters.Assignments(self._scratch / "assigned", self._blocks)

        def make(block: int) -> None:
            rows = self._embeddings.rows(*self._blocks[block])
            found.make(block, rows, places, self._products.device)

        self._make(found, make)
        return found

    def _sizes(self, assignments: clusters.Assignments, number: int) -> np.ndarray:
        own = range(self._ranks.rank, len(self._blocks), self._ranks.size)
        counted = self._ranks.together(lambda: assignments.sizes(number, own))
        return self._ranks.total(counted)

    def _make(self, files: clusters.BlockFiles, make: Callable[[int], None]) -> None:
        """Make the files that are missing, every rank some of them; collective."""

        def work() -> None:
            missing = self._ranks.share(files.missing())
            for block in missing[self._ranks.rank :: self._ranks.size]:
                self._ranks.check()
                make(block)

        self._ranks.together(work)

    def _sample(self, times: int = 1) -> tuple[np.ndarray, Pairs]:
        """Samples of anchors, and their exact candidates, which all ranks find together."""
        options, path = self._options, self._scratch / "sample.arrays"
        size = times * options.recall_sample
        sample = recall.draw(len(self._embeddings), size, options.seed)
        if not self._ranks.share(path.exists()):
            share = shares([1.0] * len(self._blocks), self._ranks.size)[self._ranks.rank]
            device = self._products.device
            few = Products(fastest(device, coded_once=True), device, self._embeddings.dimensions)
            own = self._ranks.together(
                lambda: recall.exact_candidates(
                    self._embeddings,
                    sample,
                    self.window,
                    few,
                    self._loader,
                    self._blocks[share.start : share.stop],
                )
            )
            best = self.window.best(Pairs.join(self._ranks.gather(own)))
            self._ranks.on_first(lambda: save_pairs(path, best))
        return sample, map_pairs(path)[0]
