from pathlib import Path

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.huggingface import HuggingFaceSpec
from megatron_sbp.embedding.transformer import Machine
from tests.embedding import qwen3


@pytest.mark.parametrize("prompt", [None, "Instruct: Find it\nQuery:"])
def test_vectors_are_those_of_sentence_transformers(
    prompt: str | None, words_corpus: Corpus, tmp_path: Path
) -> None:
    peer = pytest.importorskip("sentence_transformers", reason="no sentence-transformers")
    texts = list(words_corpus.texts(range(40)))
    texts += ["", "one", "many words " * 200]
    qwen3.write_model(texts, tmp_path / "model")
    machine = Machine.resolve("fp32", "cpu", 300)
    spec = HuggingFaceSpec.resolve("q", tmp_path / "model", machine=machine, prompt=prompt)
    assert (spec.pooling, spec.prompt, spec.max_length) == ("last", prompt or "", 256)
    vectors = spec.load(words_corpus).encode(texts).vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    model = peer.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    expected = model.encode(texts, prompt=prompt, batch_size=5, normalize_embeddings=True)
    assert model.tokenizer.padding_side == "left"
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    others = expected @ expected.T - np.eye(len(texts))
    assert others.min() < 0.9  # The comparison is about something.
