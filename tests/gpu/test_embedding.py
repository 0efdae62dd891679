"""Embedding on a GPU gives the vectors of a CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.huggingface import HuggingFaceSpec
from megatron_sbp.embedding.transformer import Device, Dtype, Machine
from tests.embedding import qwen3

if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)


@pytest.fixture(scope="module")
def model(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "qwen3"
    qwen3.write_model(list(words_corpus.texts(range(100))), directory)
    return directory


def unit_vectors(model: Path, corpus: Corpus, dtype: Dtype, device: Device) -> np.ndarray:
    """Of every document and of texts that are odd, float32 [texts, 32]."""
    texts = [*corpus.texts(range(len(corpus))), "", "one", "many words " * 200]
    machine = Machine.resolve(dtype, device, 2000)
    spec = HuggingFaceSpec.resolve("q", model, machine=machine, prompt=None)
    vectors = spec.load(corpus).encode(texts).vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(("dtype", "least"), [("fp32", 0.9999), ("bf16", 0.98)])
def test_vectors_are_those_of_the_cpu(
    dtype: Dtype, least: float, model: Path, words_corpus: Corpus
) -> None:
    expected = unit_vectors(model, words_corpus, "fp32", "cpu")
    found = unit_vectors(model, words_corpus, dtype, "cuda")
    assert (expected * found).sum(axis=1).min() > least
    assert (expected @ expected.T).min() < 0.9  # The comparison is about something.
