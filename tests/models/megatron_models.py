"""Small Megatron GPT models with random weights: save checkpoints, compute logits.

Under torchrun with two processes: writes one checkpoint per case into ``DIRECTORY/<case>``, then
loads each without model parallelism and writes Megatron's logits on ``tokens()`` to
``DIRECTORY/<case>.npy``.
"""

import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

SHARED = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "kv_channels": 24,  # not hidden_size / num_attention_heads
    "max_position_embeddings": 64,
    "position_embedding_type": "rope",
    "rotary_base": 10000,
    "rotary_percent": 1.0,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-5,
    "swiglu": True,
    "add_bias_linear": False,
    "padded_vocab_size": 512,
    "make_vocab_size_divisible_by": 64,
    "tensor_model_parallel_size": 1,
    "tokenizer_model": None,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen3": {
        "qk_layernorm": True,
        "group_query_attention": True,
        "num_query_groups": 2,
        "untie_embeddings_and_output_weights": True,
    },
    "llama": {
        "qk_layernorm": False,
        "group_query_attention": False,
        "num_query_groups": None,
        "untie_embeddings_and_output_weights": False,
        "rotary_base": 500000,
        "layernorm_epsilon": 1e-6,
        "dataloader_inter_document_masking": True,
    },
}
PARALLEL = {"qwen3": (2, 1), "llama": (1, 2)}
"""Tensor- and pipeline-parallel ranks that save a case."""


def arguments(case: str) -> Namespace:
    """What Megatron would save as the arguments of a case."""
    return Namespace(**SHARED | CASES[case])


def tokens() -> np.ndarray:
    """int64 [3, 50]; the vocabulary without padding has 500 ids."""
    return np.random.default_rng(8).integers(0, 500, (3, 50))


def build(args: Namespace) -> Any:
    """Megatron's GPT model, every weight random, the norms' included."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    config = TransformerConfig(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_hidden_size=args.ffn_hidden_size,
        num_attention_heads=args.num_attention_heads,
        num_query_groups=args.num_query_groups,
        kv_channels=args.kv_channels,
        normalization=args.normalization,
        layernorm_epsilon=args.layernorm_epsilon,
        qk_layernorm=args.qk_layernorm,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        tensor_model_parallel_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline_model_parallel_size=parallel_state.get_pipeline_model_parallel_world_size(),
        pipeline_dtype=torch.float32,
    )
    spec = get_gpt_layer_local_spec(
        qk_layernorm=args.qk_layernorm, normalization=args.normalization
    )
    torch.manual_seed(6)
    model = GPTModel(
        config,
        spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type=args.position_embedding_type,
        rotary_base=args.rotary_base,
        rope_scaling=getattr(args, "use_rope_scaling", False),
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                # Equal on all tensor-parallel ranks, which hold copies of the norms.
                parameter.copy_(0.5 + torch.linspace(0, 1, len(parameter)).sin().abs())
            else:
                parameter.mul_(6.0)  # so that attention is far from even
    return model.eval()


def parallel(tensor: int, pipeline: int) -> None:
    """Begin anew with so many tensor- and pipeline-parallel ranks."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tensor, pipeline)
    model_parallel_cuda_manual_seed(6)


def save(directory: Path, case: str) -> None:
    """Save a case as Megatron's training loop lays it out."""
    from megatron.core import dist_checkpointing

    args = arguments(case)
    args.tensor_model_parallel_size, args.pipeline_model_parallel_size = PARALLEL[case]
    parallel(*PARALLEL[case])
    iteration = directory / case / "iter_0000007"
    iteration.mkdir(parents=True, exist_ok=True)
    state = {"model": build(args).sharded_state_dict(), "args": args, "iteration": 7}
    dist_checkpointing.save(state, str(iteration))
    (directory / case / "latest_checkpointed_iteration.txt").write_text("7")


def logits(directory: Path, case: str) -> np.ndarray:
    """Megatron's logits of a case, float32 [3, 50, padded vocabulary]."""
    import torch
    from megatron.core import dist_checkpointing

    parallel(1, 1)
    ids = torch.from_numpy(tokens())
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    masked = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()[None, None]
    model = build(arguments(case))
    state = {"model": model.sharded_state_dict()}
    loaded = dist_checkpointing.load(state, str(directory / case / "iter_0000007"))
    model.load_state_dict(loaded["model"])
    with torch.no_grad():
        return model(ids, positions, masked).numpy()


def main() -> None:
    from megatron_sbp.training import platform

    platform.install()
    import torch

    torch.distributed.init_process_group("gloo")
    directory = Path(sys.argv[1])
    for case in CASES:
        save(directory, case)
        values = logits(directory, case)
        if torch.distributed.get_rank() == 0:
            np.save(directory / f"{case}.npy", values)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
