"""A judge small enough for tests, with the tokenizer of the tests' corpus."""

import shutil
from pathlib import Path

import pytest

from megatron_sbp.corpus.documents import Corpus


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
