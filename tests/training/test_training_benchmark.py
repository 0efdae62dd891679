"""The benchmark of training: what its contenders train on, what they count, and the plain model."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.plain_model import Model, Shape, Training
from tests.conftest import run_command

SHAPE = Shape(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=48,
    num_attention_heads=4,
    num_query_groups=2,
    rotary_base=1000,
    vocab_size=64,
    seq_length=24,
)


def test_contenders_train_on_what_the_description_says(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    done = run_command(
        *("-m", "benchmarks.training", "--contenders", "megatron", "full", "product"),
        *("--layers", "1", "--length", "64", "--rows", "2", "--batch", "4", "--threads", "1"),
        *("--rounds", "1", "--steps", "2", "--warmup", "1", "--output", str(path)),
    )
    assert done.returncode == 0, done.stderr
    turns = {
        name: turn
        for name, (turn,) in json.loads(path.read_text())["precisions"]["fp32"]["turns"].items()
    }
    assert list(turns) == ["megatron", "full", "product"]
    assert {turn["steps"] for turn in turns.values()} == {2}
    # Pairs that fill a row: 31 tokens of d1 after bos, the separator, 31 of d2 and its end.
    assert turns["full"]["supervised"] == 2 * 4 * 32
    # Multiplications of a position forward; each has an addition, and there is as much as twice
    # that backward. Attention is queries with keys and weights with values, to half of the row.
    weights = 256 * (256 + 256 + 256) + 3 * 256 * 768 + 256 * 4096
    attention = 2 * 256 * 64 // 2
    expected = 2 * (4 * 64) * 6 * (weights + attention)
    assert turns["megatron"]["flop"] == pytest.approx(expected)
    assert turns["full"]["flop"] == pytest.approx(expected)
    for name in turns:
        assert f"\n{name} " in done.stdout
    assert "step, one packed segment a row / megatron" in done.stdout


def test_the_plain_model_is_the_architecture() -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(4)
    plain = Model(SHAPE)
    peer = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
            rope_theta=1000.0,  # as transformers below 5 reads it
            tie_word_embeddings=True,
        )
    )
    for weight in plain.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    state = {
        "model.embed_tokens.weight": plain.embedding.weight,
        "lm_head.weight": plain.embedding.weight,
        "model.norm.weight": plain.norm.weight,
    }
    for number, layer in enumerate(plain.layers):
        query, key, value = layer.attention.qkv.weight.split([32, 16, 16])
        gate, up = layer.gate_and_up.weight.chunk(2)
        named = {
            "self_attn.q_proj": query,
            "self_attn.k_proj": key,
            "self_attn.v_proj": value,
            "self_attn.o_proj": layer.attention.projection.weight,
            "self_attn.q_norm": layer.attention.query_norm.weight,
            "self_attn.k_norm": layer.attention.key_norm.weight,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down.weight,
            "input_layernorm": layer.attention_norm.weight,
            "post_attention_layernorm": layer.mlp_norm.weight,
        }
        state |= {f"model.layers.{number}.{name}.weight": held for name, held in named.items()}
    peer.load_state_dict(state)
    rows = torch.randint(64, (3, 25))
    logits = peer(rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
    torch.testing.assert_close(plain(rows[:, :-1], rows[:, 1:]), expected)


def test_micro_batches_are_parts_of_a_step() -> None:
    torch.manual_seed(5)
    training = Training(SHAPE, rows=2, batch=6)
    losses = [training.step() for _ in range(3)]
    # Of tokens that say nothing about each other, by a model that knows nothing.
    assert losses == pytest.approx([4.16] * 3, abs=0.2)


def test_a_contender_that_fails_is_named() -> None:
    done = run_command(
        *("-m", "benchmarks.training", "--contenders", "plain", "--megatron=--num-layers=x")
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: plain ended with status 2 and said: ")
    assert last.endswith("argument --num-layers: invalid int value: 'x'")
