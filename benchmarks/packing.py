"""How long indexing and packing pairs takes, what packing brings, and how fast rows are read.

    python -m benchmarks.packing
    python -m benchmarks.packing --pairs 100000000
    python -m benchmarks.packing --context-documents 4

Index: pairs of random documents, whose lengths are log-normal like those of web pages, are indexed
by the dataset itself, from files that it maps (the .bin is sparse: indexing does not read it).
Memory is the most that the process held of its own while it did, mapped files not counted.

Rows: on a smaller corpus with tokens, the rows that one worker makes in a second, and Megatron's
GPTDataset on the same corpus with the same sequence length.
"""

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, bin_path, write_index
from megatron_sbp.corpus.words import MIX, mixed
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.mining.pairs import COLUMNS
from megatron_sbp.npy import create_npy

_EOD = 0
_CHUNK = 1 << 22  # Pairs that are made at a time.
_TURNS = 50


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    pairs: int = 10_000_000
    """Pairs to index."""
    per_document: int = field(default=5, metadata={"metavar": "PAIRS"})
    """Pairs of a document as an anchor."""
    length: int = field(default=4096, metadata={"metavar": "POSITIONS"})
    """Sequence length."""
    median: int = field(default=400, metadata={"metavar": "TOKENS"})
    """Median length of a document."""
    sigma: float = 1.1
    """Standard deviation of the logarithm of a length."""
    documents: int = 20_000
    """Documents of the corpus that rows are read from."""
    rows: int = 5000
    """Rows that are read."""
    context_documents: int = field(default=1, metadata={"metavar": "K"})
    """Most documents of a context."""
    seed: int = 0
    """Of the lengths, pairs and tokens."""
    directory: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Where to make the files, 28 bytes for each pair; by default the system's place for temporary
    ones."""

    def __post_init__(self) -> None:
        for name in """pairs per_document length median documents rows
        context_documents""".split():
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be at least 1")


def make_lengths(count: int, median: int, sigma: float, seed: int) -> np.ndarray:
    """Lengths of documents, int32 [count]."""
    random = np.random.default_rng(seed)
    lengths = random.lognormal(np.log(median), sigma, count)
    return np.clip(lengths, 2, 1 << 20).astype(np.int32)


def make_pairs(directory: Path, corpus: Corpus, pairs: int, seed: int) -> None:
    """A pair store with the same number of neighbours, from a random one on, for every document."""
    directory.mkdir()
    key = np.uint64(seed) * MIX
    columns = {
        name: create_npy(directory / f"{name}.npy", dtype, pairs) for name, dtype in COLUMNS.items()
    }
    documents = len(corpus)
    for start in range(0, pairs, _CHUNK):
        row = np.arange(start, min(start + _CHUNK, pairs))
        anchor = row * documents // pairs
        place = row - anchor * pairs // documents
        first = mixed(key + anchor.astype(np.uint64)) % np.uint64(documents - 1)
        columns["anchor"][row] = anchor
        step = 1 + (first.astype(np.int64) + place) % (documents - 1)
        columns["neighbor"][row] = (anchor + step) % documents
        columns["score"][row] = -place  # falling for an anchor
    counts = {"pairs": pairs, "corpus": corpus.fingerprints}
    Manifest(stage="mine", options={}, inputs={}, counts=counts).write(directory)


def make_corpus(prefix: Path, lengths: np.ndarray, *, tokens: int | None) -> Corpus:
    """A corpus of documents that end in end-of-document.

    Args:
        prefix: Where.
        lengths: int32 [n].
        tokens: Seed of random tokens; None for a sparse file of end-of-documents.
    """
    if tokens is None:
        write_index(prefix, lengths, np.dtype(np.uint16))
        with open(bin_path(prefix), "wb") as file:
            file.truncate(2 * int(lengths.sum(dtype=np.int64)))
        return Corpus([prefix])
    random = np.random.default_rng(tokens)
    with IndexedWriter(prefix, np.uint16) as writer:
        for length in lengths.tolist():
            writer.append([*random.integers(10, 60_000, length - 1).tolist(), _EOD])
    return Corpus([prefix])


def build_pairs(prefix: Path, store: Path, options: Options, **changes: Any) -> Any:
    """The training dataset over a corpus and its pairs."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )

    from megatron_sbp.training.pairs.dataset import (
        PairedDocumentDataset,
        PairedDocumentDatasetConfig,
    )

    config = PairedDocumentDatasetConfig(
        random_seed=options.seed,
        sequence_length=options.length,
        blend=([str(prefix)], None),
        split="1,0,0",
        pairs=(str(store),),
        before=(_EOD,),
        between=(1,),
        separator=(1,),
        after=(_EOD,),
        eod=_EOD,
        context_documents=options.context_documents,
        **changes,
    )
    sizes = (None, None, None)
    return BlendedMegatronDatasetBuilder(
        PairedDocumentDataset, sizes, lambda: True, config
    ).build()[0]


class _Tokenizer:
    """What GPTDataset asks of a tokenizer."""

    def __init__(self) -> None:
        self.eod = _EOD
        self.pad = 2
        self.vocab_size = 1 << 16
        self.unique_identifiers = {"class": "none"}


def build_documents(prefix: Path, options: Options) -> Any:
    """Megatron's GPTDataset over a corpus."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=options.seed,
        sequence_length=options.length,
        blend=([str(prefix)], None),
        split="1,0,0",
        tokenizer=_Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    sizes = (options.rows, None, None)
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()[0]


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Watch the memory of this process that is not mapped files.

    Gives a function that returns the most bytes so far above what there was in the beginning.
    """
    before = most = _memory()
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, _memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: most - before
    finally:
        ended.set()
        thread.join()


def _memory() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise InputError("/proc/self/status: tells no RssAnon; run this on Linux")


def measure_index(directory: Path, options: Options) -> None:
    """Index random pairs and print what that took and brought."""
    import megatron_sbp.training.pairs.dataset  # noqa: F401  (imports are not timed)

    documents = max(2, options.pairs // options.per_document)
    lengths = make_lengths(documents, options.median, options.sigma, options.seed)
    corpus = make_corpus(directory / "lengths", lengths, tokens=None)
    make_pairs(directory / "pairs", corpus, options.pairs, options.seed)
    cache = str(directory / "cache")
    with peak_memory() as memory:
        started = time.perf_counter()
        dataset = build_pairs(corpus.prefixes[0], directory / "pairs", options, path_to_cache=cache)
        seconds = time.perf_counter() - started
        held = memory()
    started = time.perf_counter()
    build_pairs(corpus.prefixes[0], directory / "pairs", options, path_to_cache=cache)
    again = time.perf_counter() - started
    counts = dataset.counts()
    share = counts["tokens"] / (counts["rows"] * options.length)
    padded = counts["tokens"] / (counts["pairs"] * options.length)
    print(
        f"{options.pairs:,} pairs of {documents:,} documents, rows of {options.length:,}, contexts "
        f"of {options.context_documents}"
    )
    print(f"index            {seconds:9.1f} s   {options.pairs / seconds / 1e6:.2f} M pairs/s")
    print(f"found in cache   {again:9.1f} s")
    print(f"memory           {held / 2**20:9.0f} MiB")
    print(f"rows             {counts['rows']:9,}")
    print(f"pairs of a row   {counts['pairs'] / counts['rows']:9.2f}")
    print(f"real tokens      {share:9.2%}     one padded pair a row: {padded:.2%}")
    print(f"cut              {counts['cut_d1']:9,} d1  {counts['cut_d2']:,} d2")


def measure_rows(directory: Path, options: Options) -> None:
    """Read rows of both datasets and print the rates."""
    lengths = make_lengths(options.documents, options.median, options.sigma, options.seed)
    corpus = make_corpus(directory / "tokens", lengths, tokens=options.seed)
    pairs = options.documents * options.per_document
    make_pairs(directory / "token-pairs", corpus, pairs, options.seed)
    plain = build_documents(corpus.prefixes[0], options)
    packed, padded = (
        build_pairs(corpus.prefixes[0], directory / "token-pairs", options, packing=packing)
        for packing in (True, False)
    )
    datasets = {"GPTDataset": plain, "packed pairs": packed, "one pair a row": padded}
    print(f"\n{'one worker':<15}  {'tokens/s':>9}  ratio")
    rates = dict(zip(datasets, _rates(list(datasets.values()), options), strict=True))
    for name, dataset in datasets.items():
        if dataset is not plain:
            counts = dataset.counts()
            rates[name] *= counts["tokens"] / (counts["rows"] * options.length)
        ratio = rates[name] / rates["GPTDataset"]
        print(f"{name:<15}  {rates[name] / 1e6:7.2f} M   {ratio:.2f}")


def _rates(datasets: list[Any], options: Options) -> list[float]:
    """Positions that one process reads of each dataset in a second.

    The datasets take turns of some rows, so that whatever else the machine does slows them alike;
    the median turn counts.
    """
    seconds = np.zeros((_TURNS, len(datasets)))
    rows = max(1, options.rows // _TURNS)
    for turn in range(_TURNS):
        for number, dataset in enumerate(datasets):
            started = time.perf_counter()
            for index in range(turn * rows, (turn + 1) * rows):
                dataset[index % len(dataset)]
            seconds[turn, number] = time.perf_counter() - started
    return [rows * options.length / median for median in np.median(seconds, axis=0).tolist()]


def main() -> None:
    """Measure and print."""
    options = cli.parse(Options, str(__doc__))
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        measure_index(Path(directory), options)
        measure_rows(Path(directory), options)


if __name__ == "__main__":
    cli.run(main)
