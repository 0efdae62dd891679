"""A Megatron GPT model for generation, built from the arguments in its checkpoint."""

import atexit
import logging
import socket
from argparse import ArgumentParser, Namespace
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.extensions.transformer_engine import HAVE_TE
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.training.argument_utils import gpt_config_from_args
from megatron.training.arguments import add_megatron_arguments
from megatron.training.models.gpt import GPTModelBuilder

from megatron_sbp.errors import InputError
from megatron_sbp.models.checkpoint import STATE, MegatronCheckpoint
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.engine import EngineOptions
from megatron_sbp.training.local_layers import local_block_spec
from megatron_sbp.training.transformer_engine import check_fp8

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What only training wants, or what the checkpoint was saved with and this run need not have.
_FOR_GENERATION: dict[str, Any] = {
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "context_parallel_size": 1,
    "sequence_parallel": False,
    "expert_model_parallel_size": 1,
    "tensor_parallel_num_weight_shards": None,
    "expert_tensor_parallel_num_weight_shards": None,
    "virtual_pipeline_model_parallel_size": None,
    "pipeline_model_parallel_layout": None,
    "decoder_first_pipeline_num_layers": None,
    "decoder_last_pipeline_num_layers": None,
    "account_for_embedding_in_pipeline_split": False,
    "account_for_loss_in_pipeline_split": False,
    "recompute_granularity": None,
    "gradient_accumulation_fusion": False,
    "tp_comm_overlap": False,
    "overlap_p2p_comm": False,
    "cuda_graph_impl": "none",
    "perform_initialization": False,
}


def start(options: EngineOptions, ranks: Ranks, device: torch.device) -> Any:
    """Begin torch's and Megatron's process groups; the ranks of one model follow each other.

    Returns:
        A group of this rank's model that passes Python objects, on the CPU.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo", store=_store(ranks), rank=ranks.rank, world_size=ranks.size
    )
    parallel_state.initialize_model_parallel(
        options.tensor_model_parallel_size,
        options.pipeline_model_parallel_size,
        order="tp-cp-ep-pp-dp",
    )
    model_parallel_cuda_manual_seed(0)
    worker, _ = torch.distributed.new_subgroups(options.ranks_per_worker, backend="gloo")
    atexit.register(stop)
    return worker


def stop() -> None:
    """End the process groups; one that is there when the interpreter goes can abort the process."""
    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


def _store(ranks: Ranks) -> torch.distributed.Store:
    """What the ranks find each other through."""
    if ranks.size == 1:
        return torch.distributed.HashStore()
    host = "localhost" if ranks.local_size == ranks.size else socket.getfqdn()
    if ranks.rank == 0:
        store = torch.distributed.TCPStore(host, 0, ranks.size, True, wait_for_workers=False)
        ranks.share((host, store.port))
        return store
    host, port = ranks.share((host, 0))
    return torch.distributed.TCPStore(host, port, ranks.size, False)


def build(
    checkpoint: MegatronCheckpoint, options: EngineOptions, device: torch.device
) -> torch.nn.Module:
    """This rank's part of the model, with its weights.

    Raises:
        InputError: If a size does not divide what it must, a layer cannot compute what is asked,
            or the weights do not fit the arguments.
    """
    # It warns that GPTModel will go, which is what the checkpoint has.
    logging.getLogger("megatron.core.models.gpt.gpt_model").setLevel(logging.ERROR)
    args = arguments(checkpoint, options, device)
    _check(checkpoint, args, options)
    config = gpt_config_from_args(args)
    if device.type == "cpu":
        from megatron_sbp.synthesis.megatron_cpu import block_spec

        config.transformer_layer_spec = block_spec
    elif args.transformer_impl == "local":
        config.transformer_layer_spec = local_block_spec
    model = GPTModelBuilder(config).build_model(ProcessGroupCollection.use_mpu_process_groups())
    model = model.to(device=device, dtype=_DTYPES[options.dtype]).eval().requires_grad_(False)
    _load(model, checkpoint)
    return model


def arguments(
    checkpoint: MegatronCheckpoint, options: EngineOptions, device: torch.device
) -> Namespace:
    """Megatron's arguments: the checkpoint's, with the parallelism and type of this run.

    What an older Megatron had no argument for takes its default.
    """
    parser = ArgumentParser()
    add_megatron_arguments(parser)
    given = vars(parser.parse_args([])) | vars(checkpoint.args) | _FOR_GENERATION
    given |= {
        "tensor_model_parallel_size": options.tensor_model_parallel_size,
        "pipeline_model_parallel_size": options.pipeline_model_parallel_size,
        "params_dtype": _DTYPES[options.dtype],
        "bf16": options.dtype == "bf16",
        "fp16": False,
        "fp8": options.fp8_format,
        "fp8_recipe": options.fp8_recipe,
        "use_cpu_initialization": device.type == "cpu",
    }
    if device.type == "cpu":
        given["transformer_impl"] = "local"
        fusions = "bias_swiglu_fusion bias_gelu_fusion bias_dropout_fusion masked_softmax_fusion"
        given |= dict.fromkeys([*fusions.split(), "apply_rope_fusion"], False)
        given["no_persist_layer_norm"] = True
    elif options.fp8_format is not None:
        given["transformer_impl"] = "transformer_engine"
    elif not HAVE_TE:
        given["transformer_impl"] = "local"
    return Namespace(**given)


def _check(checkpoint: MegatronCheckpoint, args: Namespace, options: EngineOptions) -> None:
    tensor, pipeline = options.tensor_model_parallel_size, options.pipeline_model_parallel_size
    groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    for flag, parts, name, size in (
        ("--tensor-model-parallel-size", tensor, "num_attention_heads", args.num_attention_heads),
        ("--tensor-model-parallel-size", tensor, "num_query_groups", groups),
        ("--tensor-model-parallel-size", tensor, "ffn_hidden_size", args.ffn_hidden_size),
        ("--tensor-model-parallel-size", tensor, "padded_vocab_size", args.padded_vocab_size),
        ("--pipeline-model-parallel-size", pipeline, "num_layers", args.num_layers),
    ):
        if size % parts:
            raise InputError(
                f"{flag} {parts}: does not divide {name} {size} of {checkpoint.directory}; give a "
                "divisor"
            )
    check_fp8(args)


def _load(model: torch.nn.Module, checkpoint: MegatronCheckpoint) -> None:
    """Read this rank's part of the weights.

    States of Transformer Engine, which hold scales of past FP8 steps, are left out.
    """
    path = str(checkpoint.directory)
    parts = model.sharded_state_dict(metadata=dist_checkpointing.load_content_metadata(path))
    wanted = {name: part for name, part in parts.items() if not name.endswith(STATE)}
    try:
        weights = dist_checkpointing.load({"model": wanted}, path)["model"]
    except (CheckpointingException, KeyError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: its weights do not fit its arguments ({reason}); save it again"
        ) from None
    model.load_state_dict(weights, strict=False)
