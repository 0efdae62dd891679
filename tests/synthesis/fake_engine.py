"""Runs of the synthesize stage with an engine that needs no model, and that can be killed.

As a program it is ``tools/synthesize.py`` with this engine: ``python -m tests.synthesis.fake_engine
FLAGS``. The environment says ``KILL=RANK:N`` to have a rank killed at the N-th change that it makes
in its workspace, and ``LOG=FILE`` for a line with the number of every document it is asked for.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import model
from megatron_sbp.synthesis.engine import END_OF_DOCUMENT, LENGTH, Continuation, Request
from megatron_sbp.synthesis.options import SynthesizeOptions
from megatron_sbp.synthesis.synthesize import synthesize

_CONTEXT, _MOST, _AT_WORK = 256, 30, 5
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


class FakeEngine:
    """Writes what follows from prompt and random numbers; a few documents are at work at a time.

    Args:
        vocab_size: Number of token ids.
        eod: The one that it does not write.
        log: File for the numbers of the documents; none if empty.
    """

    def __init__(self, vocab_size: int, eod: int, log: str = ""):
        self.context, self.vocab_size = _CONTEXT, vocab_size
        self._eod, self._log = eod, log

    def generate(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """See ``Engine.generate``; of those at work the shortest document ends first."""
        waiting = iter(requests)
        at_work: list[Continuation] = []
        while True:
            while len(at_work) < _AT_WORK and (request := next(waiting, None)):
                at_work.append(self._continue(request))
            if not at_work:
                return
            shortest = min(range(len(at_work)), key=lambda place: len(at_work[place].tokens))
            yield at_work.pop(shortest)

    def _continue(self, request: Request) -> Continuation:
        if self._log:
            with open(self._log, "a") as file:
                file.write(f"{request.number}\n")
        length = 1 + int(request.uniforms[0] * _MOST)
        values = request.uniforms[:length] * self.vocab_size + int(request.prompt.sum())
        tokens = values.astype(np.int64) % self.vocab_size
        tokens[tokens == self._eod] = self._eod + 1
        reason = LENGTH if length == _MOST else END_OF_DOCUMENT
        return Continuation(number=request.number, tokens=tokens, finish_reason=reason)


def write_model(directory: Path, corpus: Corpus) -> None:
    """What has to lie in the directory of a model for the stage to take it."""
    directory.mkdir()
    config = {"vocab_size": corpus.tokenizer.vocab_size, "max_position_embeddings": _CONTEXT}
    (directory / "config.json").write_text(json.dumps(config))


def install(log: str = "") -> None:
    """Have the stage load this engine, in this process."""

    def load_engine(*_: Any, eod: int, vocab_size: int) -> FakeEngine:
        return FakeEngine(vocab_size, eod, log)

    model.load_engine = load_engine  # type: ignore[assignment]


def kill_at(change: int) -> None:
    """Kill this process just before so many changes were made in a workspace."""
    left = change

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_WRONLY
        if (writes or event in _CHANGES) and ".partial" in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def main() -> None:
    install(os.environ.get("LOG", ""))
    options = cli.parse(SynthesizeOptions, "")
    with Ranks.open() as ranks:
        rank, change = os.environ.get("KILL", "-1:0").split(":")
        if ranks.rank == int(rank):
            kill_at(int(change))
        synthesize(options, ranks)


if __name__ == "__main__":
    cli.run(main)
