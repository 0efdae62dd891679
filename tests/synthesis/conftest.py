"""Models small enough for tests, with the tokenizer of the tests' corpus."""

import shutil
from pathlib import Path

import pytest

from megatron_sbp.corpus.documents import Corpus

CONTEXT = 128


@pytest.fixture(scope="session")
def tiny_model(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    directory = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(words_corpus.tokenizer.directory, directory)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=words_corpus.tokenizer.vocab_size,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,  # large, so that attention, order and every token matter
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # Logits with a standard deviation of about 2, and ends of documents now and then.
        model.lm_head.weight.mul_(2 / (0.4 * 48**0.5))
        model.lm_head.weight[words_corpus.tokenizer.eod].mul_(2)
    model.save_pretrained(directory)
    return directory
