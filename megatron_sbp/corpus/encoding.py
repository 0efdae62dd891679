"""Text to tokens on several processes, in order and in bounded memory."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from megatron_sbp import lifeline
from megatron_sbp.corpus.indexed import optimal_dtype
from megatron_sbp.corpus.readers import Document
from megatron_sbp.corpus.tokenizer import Tokenizer

_BATCH_DOCUMENTS = 512
_BATCH_CHARACTERS = 1 << 20
_AHEAD = 4  # batches in flight per process
_worker: Tokenizer  # of the process
_append_eod: bool


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Some consecutive documents."""

    documents: list[Document]
    tokens: np.ndarray
    """[sum of lengths], the documents one after another, of the vocabulary's ``optimal_dtype``."""
    lengths: np.ndarray
    """int64 [documents], tokens per document."""


def encode(
    documents: Iterable[Document], tokenizer: str | Path, workers: int, *, append_eod: bool
) -> Generator[Batch]:
    """Tokenise documents, in their order.

    Args:
        documents: Read as they are needed: a few batches ahead per worker.
        tokenizer: Directory of the tokenizer.
        workers: Processes; with 1 the work is done in this one.
        append_eod: Whether to end every document with the end-of-document token.
    """
    batches = _batches(documents)
    if workers == 1:
        _open(tokenizer, append_eod)
        for batch in batches:
            yield Batch(batch, *_encode([document.text for document in batch]))
        return
    # Forking after the tokenizer library has started threads may hang: begin afresh.
    context = multiprocessing.get_context("spawn")
    line, grip = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, _begin, (tokenizer, append_eod, line))
    pending: deque[tuple[list[Document], Future[tuple[np.ndarray, np.ndarray]]]] = deque()
    try:
        for batch in batches:
            pending.append((batch, pool.submit(_encode, [document.text for document in batch])))
            if len(pending) >= _AHEAD * workers:
                begun, future = pending.popleft()
                yield Batch(begun, *future.result())
        for begun, future in pending:
            yield Batch(begun, *future.result())
    finally:
        grip.close()
        pool.shutdown(cancel_futures=True)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents so that a batch is neither many nor long."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _begin(tokenizer: str | Path, append_eod: bool, line: Connection) -> None:
    """Start a worker process."""
    lifeline.hold(line)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the work
    _open(tokenizer, append_eod)


def _open(tokenizer: str | Path, append_eod: bool) -> None:
    """Prepare a process for ``_encode``."""
    global _append_eod, _worker
    # One thread per process: their number is the user's choice.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker, _append_eod = Tokenizer(tokenizer), append_eod


def _encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of the texts one after another, and the number of each."""
    ids = _worker.encode_batch(texts)
    if _append_eod:
        for tokens in ids:
            tokens.append(_worker.eod)
    lengths = np.array([len(tokens) for tokens in ids], dtype=np.int64)
    dtype = optimal_dtype(_worker.vocab_size)
    flat = np.fromiter(chain.from_iterable(ids), dtype=dtype, count=int(lengths.sum()))
    return flat, lengths
