"""A small tokenizer for the tests of the corpus."""

from pathlib import Path

import pytest

from megatron_sbp.corpus import tokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "Ein Satz mit Umlauten: äöü, und noch einer: ÄÖÜ.",
    "def add(a, b):\n    return a + b\n",
    "日本語のテキスト 🎉 <|endoftext|> <|sep|>",
]


@pytest.fixture(scope="session")
def tokenizer_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(TEXTS * 3, 400, directory)
    return directory
