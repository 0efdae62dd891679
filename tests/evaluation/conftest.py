"""Every box of a run and its report, and a judge small enough for tests."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp.corpus.documents import Corpus
from tests.evaluation.boxes import make, write_boxes


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, words_corpus: Corpus, words_pairs: Path) -> Path:
    """A directory with every box of a run."""
    directory = tmp_path_factory.mktemp("run")
    write_boxes(directory, words_corpus, words_pairs)
    return directory


@pytest.fixture(scope="session")
def content(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What report.json says of that run, and the page."""
    output = tmp_path_factory.mktemp("report") / "report"
    return make(output, run=str(run)) | {"page": (output / "report.html").read_text()}


@pytest.fixture(scope="session")
def tiny_judge(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights, without a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("judges") / "tiny"
    shutil.copytree(words_corpus.tokenizer.directory, directory)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=words_corpus.tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
