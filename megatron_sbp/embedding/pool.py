"""Encoding pieces of a corpus in order, in this process or in several."""

import os
import signal
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from megatron_sbp import lifeline
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.encoders import Encoder, EncoderSpec
from megatron_sbp.errors import InputError


@dataclass(slots=True, eq=False)
class Rows:
    """Embeddings of a piece."""

    vectors: np.ndarray
    """float16 [documents, d], unit rows."""
    cut: int
    """Documents longer than the encoder reads."""


def encode_pieces(
    spec: EncoderSpec,
    corpus: Corpus,
    prepared: Path,
    pieces: Iterable[Sequence[int]],
    *,
    workers: int = 1,
    gpu: int = 0,
) -> Generator[Rows]:
    """Encode pieces of a corpus and yield the results in the order of the pieces.

    The result of a piece depends on nothing but the piece: not on the number of workers, each of
    which has one thread, nor on what was encoded before it.

    Args:
        spec: The encoder.
        corpus: The documents.
        prepared: Directory that ``spec.prepare`` wrote.
        pieces: Documents of each piece.
        workers: Processes; 1 encodes in this one.
        gpu: Number of the CUDA device, if the encoder runs on one.

    Raises:
        InputError: If a document cannot be embedded, or a worker process died.
    """
    if workers == 1:
        encoder = spec.open(corpus, prepared, threads=1, gpu=gpu)
        yield from (_encode(encoder, corpus, piece) for piece in pieces)
        return
    # "spawn": threads of torch and of the tokenizers do not survive a fork.
    context = get_context("spawn")
    line, grip = context.Pipe(duplex=False)
    setup = _Setup(spec, corpus, prepared, line)
    executor = ProcessPoolExecutor(workers, context, _start_worker, (setup,))
    waiting: deque[Future[Rows]] = deque()
    try:
        for piece in pieces:
            waiting.append(executor.submit(_work, piece))
            if len(waiting) > 2 * workers:  # enough that no worker is ever idle
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a worker process died, which happens when memory runs out: give fewer than "
            f"--workers {workers}"
        ) from None
    finally:
        grip.close()
        executor.shutdown(cancel_futures=True)


@dataclass(slots=True)
class _Setup:
    """What a worker process is told at its start."""

    spec: EncoderSpec
    corpus: Corpus
    prepared: Path
    lifeline: Connection


_setup: _Setup


def _start_worker(setup: _Setup) -> None:
    global _setup
    _setup = setup
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # An interrupt is the parent's to handle.
    lifeline.hold(setup.lifeline)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@cache
def _loaded() -> Encoder:
    """This worker's model; loaded by the first piece, as the pool loses errors of the start."""
    return _setup.spec.open(_setup.corpus, _setup.prepared, threads=1)


def _work(piece: Sequence[int]) -> Rows:
    return _encode(_loaded(), _setup.corpus, piece)


def _encode(encoder: Encoder, corpus: Corpus, piece: Sequence[int]) -> Rows:
    """Vectors of a piece, scaled to length 1."""
    encoded = encoder.encode_documents(corpus, piece)
    norms = np.linalg.norm(encoded.vectors, axis=1)
    wrong = ~(np.isfinite(norms) & (norms > 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        prefix, row = corpus.locate(piece[at])
        what = "a zero vector" if norms[at] == 0 else "a vector that is not finite"
        raise InputError(
            f"{corpus.prefixes[prefix]}: document {row} (id {piece[at]}) got {what} from the "
            "encoder; remove the document, or choose another --encoder or --dtype fp32"
        )
    return Rows((encoded.vectors / norms[:, None]).astype(np.float16), encoded.cut)
