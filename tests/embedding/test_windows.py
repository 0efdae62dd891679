"""Long documents: windows, heads that are cut before they are tokenised, and dimensions."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus import tokenizer
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding import heads, minilm
from megatron_sbp.embedding.huggingface import HuggingFaceSpec
from megatron_sbp.embedding.transformer import Machine
from megatron_sbp.errors import InputError
from tests.embedding.qwen3 import SPLIT, write_tokenizer

EXACT = Machine.resolve("fp32", "cpu")
TEXTS = [
    "A short one.",
    "The quick brown fox jumps over the lazy dog, and then some more of it. " * 3,
    "Ein längerer Satz mit Umlauten und Kommata, der kein Ende nimmt. " * 30,
    "",
    "def add(a, b):\n    return a + b\n" * 12,
]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_hand(texts: list[str], prompt: str, length: int, most: int) -> np.ndarray:
    """Every window by itself through transformers, weighted by its tokens."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    directory = minilm.locate()
    words = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()

    def ids(text: str) -> list[int]:
        return words(text, add_special_tokens=False)["input_ids"]

    before, room = ids(prompt), length - 2 - len(ids(prompt))
    rows = []
    for text in texts:
        body = ids(text)
        total, weight = np.zeros(384), 0
        for start in range(0, max(len(body), 1), room)[:most]:
            piece = [*before, *body[start : start + room]]
            window = [words.cls_token_id, *piece, words.sep_token_id]
            with torch.no_grad():
                (hidden,) = model(torch.tensor([window])).last_hidden_state
            total += len(window) * hidden.mean(0).double().numpy()
            weight += len(window)
        rows.append(total / weight)
    return unit(np.stack(rows))


@pytest.mark.parametrize(("prompt", "most"), [("", 3), ("search document: ", 100)])
def test_mean_over_windows(prompt: str, most: int, words_corpus: Corpus) -> None:
    spec = HuggingFaceSpec.resolve(
        "minilm",
        minilm.locate(),
        machine=EXACT,
        prompt=prompt,
        max_length=24,
        long_documents="mean",
        max_windows=most,
    )
    encoded = spec.load(words_corpus).encode(TEXTS)
    expected = by_hand(TEXTS, prompt, 24, most)
    assert (unit(encoded.vectors) * expected).sum(1).min() > 1 - 1e-5
    assert encoded.cut == (2 if most == 3 else 0)


def test_first_dimensions(words_corpus: Corpus) -> None:
    def encode(dimensions: int) -> np.ndarray:
        spec = HuggingFaceSpec.resolve(
            "minilm", minilm.locate(), machine=EXACT, dimensions=dimensions
        )
        return spec.load(words_corpus).encode(TEXTS[:2]).vectors

    assert np.array_equal(encode(64), encode(0)[:, :64])
    with pytest.raises(InputError, match="--dimensions 385: minilm has 384"):
        encode(385)


def test_a_prompt_that_leaves_no_room(words_corpus: Corpus) -> None:
    spec = HuggingFaceSpec.resolve(
        "minilm", minilm.locate(), machine=EXACT, prompt="a b c", max_length=5
    )
    with pytest.raises(InputError, match="--max-length 5: prompt and special tokens alone take 5"):
        spec.load(words_corpus)


# Heads


def fast(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory, words_corpus: Corpus) -> list[Any]:
    """WordPiece, byte-level BPE as GPT-2 splits it, and as Qwen does."""
    directory = tmp_path_factory.mktemp("tokenizers")
    tokenizer.train(texts(9), 600, directory / "gpt2")
    write_tokenizer(texts(9), directory / "qwen", SPLIT)
    return [fast(path) for path in (minilm.locate(), directory / "gpt2", directory / "qwen")]


def texts(seed: int) -> list[str]:
    """Texts of whatever splits words in odd ways."""
    print("seed", seed)
    source = random.Random(seed)
    pieces = [
        *("word", "don't", "we'LL", "a", "é", "e\u0301", "\u0301", "ÀÉ", "12345", "日本語", "Σας"),
        *(" ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "\x1c", "   \n "),
        *(".", "...", "!?\n", "[SEP]", "<|endoftext|>", "🙂", "\u200d", "ﬁ", "x" * 40, "##ing"),
    ]
    return [
        "".join(source.choice(pieces) for _ in range(source.randint(0, 400))) for _ in range(60)
    ]


def test_tokens_of_a_head_are_the_first_of_the_whole(
    tokenizers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_CHARACTERS", 2)
    for words in tokenizers:
        assert heads.cuts_are_safe(words)
        certain = unsure = 0
        for text in texts(10):
            for limit in (8, 9, 10, 30):
                head = heads.cut_where_safe(text, limit)
                kept, whole = (
                    words([given], truncation=True, max_length=limit).encodings[0]
                    for given in (head, text)
                )
                if len(head) == len(text) or not heads.is_certain(kept):
                    unsure += len(head) < len(text)
                    continue
                certain += 1
                assert kept.ids == whole.ids and bool(kept.overflowing) == bool(whole.overflowing)
        assert certain > 50 and unsure > 5


def test_heads_change_no_vector(
    tiny_bert: Path, words_corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = HuggingFaceSpec.resolve(
        "tiny", tiny_bert, machine=EXACT, max_length=20, long_documents="mean", max_windows=2
    )
    encoder = spec.load(words_corpus)
    given = [*texts(11), *words_corpus.texts(range(20))]
    monkeypatch.setattr(heads, "_CHARACTERS", 2)
    cut = encoder.encode(given)
    monkeypatch.setattr(heads, "_CHARACTERS", 1 << 40)
    whole = encoder.encode(given)
    assert np.array_equal(cut.vectors, whole.vectors) and cut.cut == whole.cut > 0


def test_other_tokenizers_are_given_whole_texts(tokenizers: list[Any]) -> None:
    from tokenizers import normalizers, pre_tokenizers

    words = tokenizers[1]
    words.backend_tokenizer.normalizer = normalizers.NFKC()
    assert not heads.cuts_are_safe(words)
    words.backend_tokenizer.normalizer = normalizers.NFC()
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    assert not heads.cuts_are_safe(words)
