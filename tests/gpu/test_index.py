"""FAISS indexes on a GPU find what they find on a CPU, and what it cannot do is refused."""

from pathlib import Path

import faiss
import pytest
import torch

from megatron_sbp.errors import InputError
from tests.mining.test_index import SEARCH_EVERYTHING, make_embeddings, search
from tests.mining.vectors import brute_force

if not torch.cuda.is_available():
    pytest.skip("torch sees no CUDA device", allow_module_level=True)
if not getattr(faiss, "get_num_gpus", int)():
    pytest.skip("needs faiss-gpu in the place of faiss-cpu", allow_module_level=True)


@pytest.mark.parametrize(("factory", "parameters"), SEARCH_EVERYTHING)
def test_whole_searches_are_brute_force(factory: str, parameters: str, tmp_path: Path) -> None:
    embeddings = make_embeddings(tmp_path)
    expected = brute_force(embeddings.rows(0, 400), 0.6, depth=20)
    assert search(embeddings, factory, parameters, tmp_path / "index", gpus=[0]) == expected


def test_what_a_partial_search_finds_is_scored_exactly(tmp_path: Path) -> None:
    embeddings = make_embeddings(tmp_path)
    found = set(search(embeddings, "IVF4,PQ4", "nprobe=2", tmp_path / "index", gpus=[0]))
    assert found and found <= set(brute_force(embeddings.rows(0, 400), 0.6))


def test_parameters_that_a_gpu_does_not_know_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="FAISS refuses search parameters"):
        search(make_embeddings(tmp_path), "IVF8,Flat", "efSearch=8", tmp_path / "index", gpus=[0])
