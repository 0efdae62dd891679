"""Megatron GPT checkpoint -> Hugging Face directory."""

import json
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.models.checkpoint import MegatronCheckpoint

# What both layouts compute. Anything else in a checkpoint's arguments has no place in them.
_SUPPORTED: dict[str, Any] = {
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
    "use_rope_scaling": False,
    "no_rope_freq": None,
    "normalization": "RMSNorm",
    "layernorm_zero_centered_gamma": False,
    "apply_residual_connection_post_layernorm": False,
    "swiglu": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "attention_output_gate": False,
    "qk_l2_norm": False,
    "window_size": None,
    "softmax_type": "vanilla",
    "multi_latent_attention": False,
    "experimental_attention_variant": None,
    "linear_attention_freq": None,
    "num_experts": None,
    "mtp_num_layers": None,
    "use_mup": False,
}

# Megatron's names within a layer -> Hugging Face's. The local layer spec saves its norms under the
# names of Transformer Engine's fused layers; checkpoints with the unfused names exist too.
_LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "self_attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "self_attention.k_layernorm.weight": "self_attn.k_norm.weight",
    "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_QKV, _FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
_TOP = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "decoder.final_layernorm.weight": "model.norm.weight",
    "output_layer.weight": "lm_head.weight",
}
_VOCABULARY = ("embedding.word_embeddings.weight", "output_layer.weight")
_LAYERS = "decoder.layers."


@dataclass(kw_only=True, slots=True)
class ExportOptions:
    """Options of ``tools/export_hf.py``."""

    load: str = field(metadata={"metavar": "CKPT"})
    """Directory that Megatron saved to; its newest checkpoint is taken."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the model; by default the one that the checkpoint's arguments name."""


def export(options: ExportOptions) -> Manifest:
    """Write a checkpoint as a Hugging Face directory, tokenizer included.

    Raises:
        InputError: If the checkpoint cannot be read, its architecture has no Hugging Face layout
            here, or the tokenizer is not the model's.
    """
    checkpoint = MegatronCheckpoint(options.load)
    with Stage.open(
        options.output,
        "export",
        options={"tokenizer": options.tokenizer},
        inputs=checkpoint.files(),
    ) as stage:
        if not stage.complete:
            tokenizer = Tokenizer(options.tokenizer or tokenizer_directory(checkpoint))
            stage.finish(counts=write_model(checkpoint, tokenizer, stage.workspace))
    return stage.manifest


def tokenizer_directory(checkpoint: MegatronCheckpoint) -> Path:
    """The tokenizer that the checkpoint's arguments name.

    Raises:
        InputError: If it is not there.
    """
    named = getattr(checkpoint.args, "tokenizer_model", None)
    if named is None or not Path(named).is_dir():
        raise InputError(
            f"{checkpoint.directory}: was trained with the tokenizer {named}, which is not a "
            "directory here; give it with --tokenizer DIR"
        )
    return Path(named)


def write_model(
    checkpoint: MegatronCheckpoint, tokenizer: Tokenizer, directory: Path
) -> dict[str, Any]:
    """Write configuration, weights and tokenizer into a directory.

    Rows of the embedding that only pad the vocabulary are left out.

    Returns:
        What was written, for a manifest.

    Raises:
        InputError: As ``export``.
    """
    from safetensors.torch import save_file

    check_architecture(checkpoint)
    check_vocabulary(checkpoint, tokenizer)
    weights = dict(_convert(checkpoint, tokenizer.vocab_size))
    config = _config(checkpoint.args, tokenizer)
    config["torch_dtype"] = str(weights["model.norm.weight"].dtype).removeprefix("torch.")
    directory.mkdir(parents=True, exist_ok=True)
    tokenizers.copy(str(tokenizer.directory), directory)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    return {
        "layout": config["architectures"][0],
        "parameters": sum(weight.numel() for weight in weights.values()),
        "vocabulary": tokenizer.vocab_size,
        "dtype": config["torch_dtype"],
        "iteration": checkpoint.directory.name,
    }


def check_architecture(checkpoint: MegatronCheckpoint) -> None:
    """Refuse what neither the Llama nor the Qwen3 layout computes.

    Raises:
        InputError: Naming the first such argument.
    """
    for name, supported in _SUPPORTED.items():
        value = getattr(checkpoint.args, name, supported)
        if value != supported:
            raise InputError(
                f"{checkpoint.directory}: was trained with {name} {value!r}; the Llama and Qwen3 "
                f"layouts have {supported!r} only, so it cannot be exported"
            )


def check_vocabulary(checkpoint: MegatronCheckpoint, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose vocabulary, padded by Megatron's rule, is not the model's.

    Raises:
        InputError: Naming both sizes.
    """
    args = checkpoint.args
    rows = checkpoint.shapes[_VOCABULARY[0]][0]
    unit = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    if not rows - unit < tokenizer.vocab_size <= rows:
        raise InputError(
            f"{tokenizer.directory}: has {tokenizer.vocab_size} ids, but the embedding of "
            f"{checkpoint.directory} has {rows} rows (padded to a multiple of {unit}); "
            "give the tokenizer that the model was trained with"
        )


def _config(args: Namespace, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ``config.json`` of a model."""
    heads = args.num_attention_heads
    layout = "Qwen3" if args.qk_layernorm else "Llama"
    return {
        "architectures": [f"{layout}ForCausalLM"],
        "model_type": layout.lower(),
        "vocab_size": tokenizer.vocab_size,
        "hidden_size": args.hidden_size,
        "intermediate_size": args.ffn_hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": args.num_query_groups if args.group_query_attention else heads,
        "head_dim": args.kv_channels,
        "hidden_act": "silu",
        "max_position_embeddings": args.max_position_embeddings,
        "rope_theta": float(args.rotary_base),
        "rms_norm_eps": args.layernorm_epsilon,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": not args.untie_embeddings_and_output_weights,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eod,
        "pad_token_id": tokenizer.pad,
    }


def _convert(checkpoint: MegatronCheckpoint, vocabulary: int) -> Iterator[tuple[str, Any]]:
    """Yield (Hugging Face name, tensor) of every weight."""
    args = checkpoint.args
    for name, tensor in checkpoint.read().items():
        if name in _TOP:
            rows = vocabulary if name in _VOCABULARY else len(tensor)
            yield _TOP[name], tensor[:rows].contiguous()
            continue
        for layer, part, weight in _layers(name, tensor):
            prefix = f"model.layers.{layer}."
            if part == _QKV:
                for target, piece in zip("qkv", _split_qkv(weight, args), strict=True):
                    yield f"{prefix}self_attn.{target}_proj.weight", piece
            elif part == _FC1:
                gate, up = weight.chunk(2)
                yield f"{prefix}mlp.gate_proj.weight", gate.contiguous()
                yield f"{prefix}mlp.up_proj.weight", up.contiguous()
            elif part in _LAYER:
                yield prefix + _LAYER[part], weight.contiguous()
            else:
                raise InputError(
                    f"{checkpoint.directory}: holds {name}, which has no place in the Llama and "
                    "Qwen3 layouts, so it cannot be exported"
                )


def _layers(name: str, tensor: Any) -> Iterator[tuple[int, str, Any]]:
    """Yield (layer, name within the layer, weight) of a tensor of one layer or of all, stacked."""
    part = name.removeprefix(_LAYERS)
    number, _, rest = part.partition(".")
    if number.isdecimal():
        yield int(number), rest, tensor
    elif part == name:
        yield -1, name, tensor
    else:
        yield from ((layer, part, weight) for layer, weight in enumerate(tensor))


def _split_qkv(weight: Any, args: Namespace) -> tuple[Any, Any, Any]:
    """Queries, keys and values of Megatron's ``linear_qkv``.

    Its rows are laid out by group: the group's query heads, its key head, its value head.

    Args:
        weight: [groups * (queries per group + 2) * channels, hidden].
        args: The checkpoint's arguments.

    Returns:
        [heads * channels, hidden], [groups * channels, hidden], [groups * channels, hidden].
    """
    heads = args.num_attention_heads
    groups = args.num_query_groups if args.group_query_attention else heads
    hidden = weight.shape[1]
    grouped = weight.view(groups, heads // groups + 2, args.kv_channels, hidden)
    query, key, value = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
    return query.reshape(-1, hidden), key.reshape(-1, hidden), value.reshape(-1, hidden)
