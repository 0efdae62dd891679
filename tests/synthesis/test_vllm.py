"""The vllm engine, where vLLM is installed, against the hf engine."""

from collections.abc import Callable

import pytest
import torch

from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.engine import Engine, EngineOptions, Sampling
from megatron_sbp.synthesis.model import load_engine
from tests.synthesis import continuations as asked

pytest.importorskip("vllm", reason="needs vLLM")


EOD = 13  # ends some of the documents, and not all


@pytest.fixture(scope="module")
def load(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[EngineOptions, Sampling], Engine]:
    """Loads a random model whose heads have a size that vLLM has kernels for."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    directory = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=asked.VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=asked.CONTEXT,
        initializer_range=0.4,  # large, so that attention, order and every token matter
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        # Logits with a standard deviation of about 2, and ends of documents now and then.
        model.lm_head.weight.mul_(2 / (0.4 * 64**0.5))
        model.lm_head.weight[EOD].mul_(2)
    model.save_pretrained(directory)
    return lambda options, sampling: load_engine(
        options, directory, sampling, Ranks(), eod=EOD, vocab_size=asked.VOCABULARY
    )


def test_greedy_documents_are_those_of_the_hf_engine(
    load: Callable[[EngineOptions, Sampling], Engine],
) -> None:
    vllm = load(EngineOptions(engine="vllm", batch_size=5), asked.GREEDY)
    hf = load(EngineOptions(engine="hf"), asked.GREEDY)
    assert vllm.context == hf.context and vllm.vocab_size == hf.vocab_size
    found = asked.outcome(vllm.generate(asked.requests()))
    assert found == asked.outcome(hf.generate(asked.requests()))


def test_a_document_has_a_seed_of_its_own(
    load: Callable[[EngineOptions, Sampling], Engine],
) -> None:
    """Other documents at work, in another order, change nothing but rounding."""
    engine = load(EngineOptions(engine="vllm", batch_size=7), asked.NUCLEUS)
    for _ in engine.generate(asked.requests()):
        break  # as a run does that has enough
    found = asked.outcome(engine.generate(asked.requests()))
    assert {reason for _, reason in found.values()} == {0, 1}
    again = asked.outcome(engine.generate(reversed(asked.requests())))
    same = sum(again[number] == document for number, document in found.items())
    assert same >= 0.8 * len(found)
    other = asked.requests()
    for request in other:
        request.uniforms = request.uniforms[::-1].copy()
    changed = asked.outcome(engine.generate(other))
    long = [number for number, (tokens, _) in found.items() if len(tokens) > 4]
    assert all(changed[number] != found[number] for number in long)
