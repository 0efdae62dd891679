"""Random Hugging Face models, and what Megatron computes with them once they are imported.

Under torchrun with four processes, ``DIRECTORY``: loads ``DIRECTORY/<case>/megatron`` in every
layout, writes Megatron's logits on ``megatron_models.tokens()`` to
``DIRECTORY/<case>/<layout>.npy`` and saves the model with TP 2 x PP 2 into
``DIRECTORY/<case>/tp2pp2``.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import megatron_models

LAYOUTS = {"tp1": (1, 1), "tp2": (2, 1), "pp2": (1, 2), "tp2pp2": (2, 2)}
SHAPE = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,  # not hidden_size / num_attention_heads
    "max_position_embeddings": 128,
    "initializer_range": 0.12,  # so that attention is far from even
}
LLAMA31 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CASES: dict[str, dict[str, Any]] = {
    "qwen3-tied": {"model_type": "qwen3", "tie_word_embeddings": True, "rope_theta": 1000000.0},
    "llama-untied": {
        "model_type": "llama",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA31,
    },
    "qwen3-untied": {"model_type": "qwen3", "num_key_value_heads": 4, "rope_theta": 10000.0},
    "llama-tied": {"model_type": "llama", "tie_word_embeddings": True},
}


def config(case: str, **changes: Any) -> dict[str, Any]:
    """The fields of a case's ``config.json``."""
    return SHAPE | {"tie_word_embeddings": False} | CASES[case] | changes


def save_random(case: str, directory: Path, **changes: Any) -> None:
    """Write a model with random weights, the norms' included (seed 11)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config(case, **changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(directory)


def load(checkpoint: Path, tensor: int, pipeline: int) -> Any:
    """The model of a checkpoint in a layout."""
    from megatron.core import dist_checkpointing

    from megatron_sbp.models.checkpoint import MegatronCheckpoint

    found = MegatronCheckpoint(checkpoint)
    megatron_models.parallel(tensor, pipeline)
    model = megatron_models.build(found.args)
    state = {"model": model.sharded_state_dict()}
    model.load_state_dict(dist_checkpointing.load(state, str(found.directory))["model"])
    return model


def logits(model: Any) -> np.ndarray | None:
    """float32 [3, 50, padded vocabulary] on the ranks of the last stage, None on the others."""
    import torch
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region

    ids = torch.from_numpy(megatron_models.tokens())
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    masked = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()[None, None]
    hidden = torch.empty(ids.shape[1], ids.shape[0], SHAPE["hidden_size"])
    if not parallel_state.is_pipeline_first_stage():
        torch.distributed.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    with torch.no_grad():
        output = model(ids, positions, masked)
        if not parallel_state.is_pipeline_last_stage():
            after = parallel_state.get_pipeline_model_parallel_next_rank()
            torch.distributed.send(output.contiguous(), after)
            return None
        return gather_from_tensor_model_parallel_region(output).numpy()


def save(model: Any, checkpoint: Path, output: Path) -> None:
    """Save a model in the layout that it is in, as Megatron's training loop does."""
    from megatron.core import dist_checkpointing

    from megatron_sbp.models.checkpoint import MegatronCheckpoint

    args = MegatronCheckpoint(checkpoint).args
    args.tensor_model_parallel_size = args.pipeline_model_parallel_size = 2
    iteration = output / "iter_0000009"
    iteration.mkdir(parents=True, exist_ok=True)
    state = {"model": model.sharded_state_dict(), "args": args, "iteration": 9}
    dist_checkpointing.save(state, str(iteration))
    (output / "latest_checkpointed_iteration.txt").write_text("9")


def main() -> None:
    from megatron_sbp.training import platform

    platform.install()
    import torch

    torch.distributed.init_process_group("gloo")
    last = torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
    for case in CASES:
        directory = Path(sys.argv[1]) / case
        for name, layout in LAYOUTS.items():
            model = load(directory / "megatron", *layout)
            values = logits(model)
            if last and values is not None:
                np.save(directory / f"{name}.npy", values)
        save(model, directory / "megatron", directory / "tp2pp2")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
