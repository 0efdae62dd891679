"""A Hugging Face model small enough for tests: random weights, the tests' own tokenizer."""

import json
import shutil
from pathlib import Path

import pytest

from megatron_sbp.corpus.documents import Corpus


@pytest.fixture(scope="session")
def tiny_bert(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    directory = tmp_path_factory.mktemp("models") / "tiny-bert"
    shutil.copytree(words_corpus.tokenizer.directory, directory)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words_corpus.tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.5,  # large, so that attention and order matter
    )
    BertModel(config).save_pretrained(directory)
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    return directory
