"""What the weights and settings of a GPT are called in Megatron and in Hugging Face's layouts.

One table in both directions: ``split`` and ``join`` undo each other bit for bit, as do
``to_config`` and ``to_arguments``.
"""

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from megatron_sbp.errors import InputError

# What both layouts compute. Anything else in a checkpoint's arguments has no place in them.
SUPPORTED: dict[str, Any] = {
    "position_embedding_type": "rope",
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "rotary_seq_len_interpolation_factor": None,
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

LAYERS = "decoder.layers."
"""What stands before a weight's name, where a tensor stacks it over all layers."""
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
FINAL_NORM = "decoder.final_layernorm.weight"
_QKV, _FC1 = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
_QK_NORMS = ("self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight")

# Megatron's name -> Hugging Face's, of weights outside of the layers and of those of a layer.
TOP = {
    EMBEDDING: ("model.embed_tokens.weight",),
    FINAL_NORM: ("model.norm.weight",),
    OUTPUT: ("lm_head.weight",),
}
LAYER = {
    "self_attention.linear_qkv.layer_norm_weight": ("input_layernorm.weight",),
    _QKV: ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "self_attention.q_layernorm.weight": ("self_attn.q_norm.weight",),
    "self_attention.k_layernorm.weight": ("self_attn.k_norm.weight",),
    "self_attention.linear_proj.weight": ("self_attn.o_proj.weight",),
    "mlp.linear_fc1.layer_norm_weight": ("post_attention_layernorm.weight",),
    _FC1: ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": ("mlp.down_proj.weight",),
}
# The local layer spec saves its norms under the names of Transformer Engine's fused layers, as they
# stand above; checkpoints with the unfused names exist too.
UNFUSED = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}

# Megatron's --use-rope-scaling, which is Llama 3.1's; megatron-core 0.19 reads no other factor.
_ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# Fields of a configuration that both layouts may have, and what Megatron's layers here compute.
_COMPUTED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
}
_PLAIN = {
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
    "layernorm_epsilon": "rms_norm_eps",
}
_LAYOUTS = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def check_architecture(args: Namespace, where: object) -> None:
    """Refuse what neither the Llama nor the Qwen3 layout computes.

    Args:
        args: A checkpoint's arguments.
        where: The checkpoint, for the message.

    Raises:
        InputError: Naming the first such argument.
    """
    for name, value in SUPPORTED.items():
        found = getattr(args, name, value)
        if found != value:
            raise InputError(
                f"{where}: was trained with {name} {found!r}; the Llama and Qwen3 layouts have "
                f"{value!r} only, so it cannot be exported"
            )


def to_config(args: Namespace) -> dict[str, Any]:
    """The fields of a ``config.json`` that follow from Megatron's arguments.

    The vocabulary and the special tokens are left to the caller.
    """
    model_type = "qwen3" if args.qk_layernorm else "llama"
    scaled = getattr(args, "use_rope_scaling", False)
    return {
        "architectures": [_LAYOUTS[model_type]],
        "model_type": model_type,
        **{theirs: getattr(args, ours) for ours, theirs in _PLAIN.items()},
        "num_key_value_heads": _groups(args),
        "head_dim": args.kv_channels,
        "hidden_act": "silu",
        "rope_theta": float(args.rotary_base),
        "rope_scaling": _ROPE_SCALING if scaled else None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": not args.untie_embeddings_and_output_weights,
    }


def to_arguments(config: Any, where: object) -> Namespace:
    """Megatron's arguments for a configuration of Transformers.

    Args:
        config: A ``LlamaConfig`` or ``Qwen3Config``.
        where: The file, for messages.

    Raises:
        InputError: If Megatron's GPT cannot compute what the configuration says.
    """
    if config.model_type not in _LAYOUTS:
        raise InputError(
            f"{where}: model_type is {config.model_type!r}; give a model of type "
            f"{' or '.join(_LAYOUTS)}"
        )
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    values = {name: getattr(config, name, value) for name, value in _COMPUTED.items()}
    for name, supported, found in [
        *((name, _COMPUTED[name], value) for name, value in values.items()),
        ("layer_types", ["full_attention"], sorted(layers) or ["full_attention"]),
    ]:
        if found != supported:
            raise InputError(
                f"{where}: {name} is {found!r}, but the layers that are trained here compute "
                f"{supported!r}; give a model that has it"
            )
    groups = config.num_key_value_heads
    heads = config.num_attention_heads
    return Namespace(
        **SUPPORTED,
        **{ours: getattr(config, theirs) for ours, theirs in _PLAIN.items()},
        **_rope(config, where),
        num_query_groups=groups,
        group_query_attention=groups != heads,
        kv_channels=getattr(config, "head_dim", None) or config.hidden_size // heads,
        qk_layernorm=config.model_type == "qwen3",
        untie_embeddings_and_output_weights=not config.tie_word_embeddings,
        squared_relu=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )


def _rope(config: Any, where: object) -> dict[str, Any]:
    """Megatron's arguments of the rotary embedding; Transformers 5 moved the fields of 4."""
    scaling = dict(
        getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    )
    theta = scaling.pop("rope_theta", None) or config.rope_theta
    if theta != int(theta):
        raise InputError(
            f"{where}: rope_theta is {theta}, but Megatron's --rotary-base is a whole number; "
            "give a model with such a one"
        )
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(
            f"{where}: partial_rotary_factor is not 1; give a model that rotates whole heads"
        )
    if scaling.get("rope_type", "default") == "default":
        return {"rotary_base": int(theta), "use_rope_scaling": False}
    if scaling != _ROPE_SCALING:
        raise InputError(
            f"{where}: rope scaling is {scaling}, but Megatron's --use-rope-scaling computes "
            f"{_ROPE_SCALING} only; give a model with this or with none"
        )
    return {"rotary_base": int(theta), "use_rope_scaling": True, "rope_scaling_factor": 8.0}


def flags(args: Namespace) -> list[str]:
    """The architecture as Megatron's command line, a flag with its value each."""
    given = [
        f"--num-layers {args.num_layers}",
        f"--hidden-size {args.hidden_size}",
        f"--ffn-hidden-size {args.ffn_hidden_size}",
        f"--num-attention-heads {args.num_attention_heads}",
        f"--kv-channels {args.kv_channels}",
        f"--max-position-embeddings {args.max_position_embeddings}",
        "--position-embedding-type rope",
        f"--rotary-base {args.rotary_base}",
        "--normalization RMSNorm",
        f"--norm-epsilon {args.layernorm_epsilon}",
        "--swiglu",
        "--disable-bias-linear",
        "--attention-dropout 0",
        "--hidden-dropout 0",
    ]
    switches = {
        f"--group-query-attention --num-query-groups {args.num_query_groups}": (
            args.group_query_attention
        ),
        "--qk-layernorm": args.qk_layernorm,
        "--use-rope-scaling": args.use_rope_scaling,
        "--untie-embeddings-and-output-weights": args.untie_embeddings_and_output_weights,
    }
    return given + [flag for flag, on in switches.items() if on]


def shapes(args: Namespace, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Megatron's name -> shape of every weight that a model has; those of one layer once.

    Args:
        args: Megatron's arguments.
        vocabulary: Rows of the embedding.
    """
    hidden, channels, groups = args.hidden_size, args.kv_channels, _groups(args)
    heads = args.num_attention_heads
    found: dict[str, tuple[int, ...]] = {
        EMBEDDING: (vocabulary, hidden),
        FINAL_NORM: (hidden,),
        "self_attention.linear_qkv.layer_norm_weight": (hidden,),
        _QKV: ((heads + 2 * groups) * channels, hidden),
        "self_attention.linear_proj.weight": (hidden, heads * channels),
        "mlp.linear_fc1.layer_norm_weight": (hidden,),
        _FC1: (2 * args.ffn_hidden_size, hidden),
        "mlp.linear_fc2.weight": (hidden, args.ffn_hidden_size),
    }
    if args.qk_layernorm:
        found |= dict.fromkeys(_QK_NORMS, (channels,))
    if args.untie_embeddings_and_output_weights:
        found[OUTPUT] = (vocabulary, hidden)
    return found


def split(name: str, weight: Any, args: Namespace) -> tuple[Any, ...]:
    """Hugging Face's weights in one of Megatron's.

    The rows of ``linear_qkv`` are laid out by group: the group's query heads, its key head, its
    value head. Those of ``linear_fc1`` are the gate's, then what it gates.

    Args:
        name: Megatron's name, without the number of a layer.
        weight: The tensor of one layer, or the one outside of the layers.
        args: Megatron's arguments.

    Returns:
        In the order of ``TOP`` and ``LAYER``.
    """
    if name == _QKV:
        hidden, groups = weight.shape[1], _groups(args)
        grouped = weight.view(groups, -1, args.kv_channels, hidden)
        pieces = grouped[:, :-2], grouped[:, -2], grouped[:, -1]
        return tuple(piece.reshape(-1, hidden) for piece in pieces)
    return weight.chunk(2) if name == _FC1 else (weight,)


def parts(name: str, shape: Sequence[int], args: Namespace) -> list[tuple[int, ...]]:
    """Shapes of what ``split`` gives."""
    import torch

    pieces = split(name, torch.empty(tuple(shape), device="meta"), args)
    return [tuple(piece.shape) for piece in pieces]


def join(name: str, weights: Sequence[Any], args: Namespace) -> Any:
    """Megatron's weight of Hugging Face's; undoes ``split``."""
    import torch

    if name == _QKV:
        hidden, groups = weights[0].shape[1], _groups(args)
        grouped = [weight.view(groups, -1, args.kv_channels, hidden) for weight in weights]
        return torch.cat(grouped, dim=1).reshape(-1, hidden)
    return torch.cat(tuple(weights)) if len(weights) > 1 else weights[0]


def _groups(args: Namespace) -> int:
    return args.num_query_groups if args.group_query_attention else args.num_attention_heads
