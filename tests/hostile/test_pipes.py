"""Pipes where files should be: to open one waits for a writer that never comes."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp import recipes
from megatron_sbp.corpus import readers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.metrics import read_metrics
from megatron_sbp.models.huggingface import HuggingFaceModel
from megatron_sbp.npy import open_npy, read_npz
from tests.hostile.fuzz import refused


@contextmanager
def no_waiting() -> Iterator[None]:
    """End a wait that would have no end."""

    def stop(*_: object) -> None:
        raise AssertionError("waits for the other end of a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def weights(directory: Path) -> Any:
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    return HuggingFaceModel(directory)


def as_input(directory: Path) -> None:
    with Stage.open(directory / "box", "mine", options={}, inputs=[directory / "input"]):
        pass


READERS: dict[str, Callable[[Path], Any]] = {
    "real.idx": lambda directory: Corpus([directory / "real"]),
    "real.bin": lambda directory: Corpus([directory / "real"]),
    "manifest.json": Manifest.read,
    "metrics.jsonl": read_metrics,
    "recipe.yaml": lambda directory: recipes.load(str(directory / "recipe.yaml")),
    "some.jsonl": lambda directory: readers.expand([str(directory / "some.jsonl")]),
    "model.safetensors": weights,
    "input": as_input,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused(name: str, words_corpus: Corpus, tmp_path: Path) -> None:
    for file in words_corpus.files():
        if file.suffix in (".bin", ".idx"):
            (tmp_path / f"real{file.suffix}").write_bytes(file.read_bytes())
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with no_waiting():
        refused(lambda: READERS[name](tmp_path), match=f"{name}.*pipe")


@pytest.mark.parametrize("read", [open_npy, read_npz])
def test_a_pipe_is_no_array(read: Callable[[Path], Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.npy")
    with no_waiting(), pytest.raises(OSError, match="pipe"):
        read(tmp_path / "pipe.npy")
