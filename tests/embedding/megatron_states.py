"""Megatron's own hidden states, and the same model saved with other parallelism.

Under torchrun with two processes, ``CHECKPOINT CASE OUTPUT``: saves the model of a checkpoint with
tensor parallelism into ``OUTPUT/tp2`` and with pipeline parallelism into ``OUTPUT/pp2``, then runs
it without either on every list of tokens in ``OUTPUT/windows.json``, one at a time, and writes the
states after layer 2 and at the end, float32 [tokens, hidden], to ``OUTPUT/states.npz``.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.models import megatron_models

ITERATION = "iter_0000007"


def load(checkpoint: Path, case: str, tensor: int, pipeline: int) -> Any:
    """The model of a checkpoint, in another layout than it was saved in."""
    from megatron.core import dist_checkpointing

    megatron_models.parallel(tensor, pipeline)
    model = megatron_models.build(megatron_models.arguments(case))
    state = dist_checkpointing.load(
        {"model": model.sharded_state_dict()}, str(checkpoint / ITERATION)
    )
    model.load_state_dict(state["model"])
    return model


def save(model: Any, case: str, tensor: int, pipeline: int, directory: Path) -> None:
    from megatron.core import dist_checkpointing

    args = megatron_models.arguments(case)
    args.tensor_model_parallel_size, args.pipeline_model_parallel_size = tensor, pipeline
    (directory / ITERATION).mkdir(parents=True, exist_ok=True)
    state = {"model": model.sharded_state_dict(), "args": args, "iteration": 7}
    dist_checkpointing.save(state, str(directory / ITERATION))
    (directory / "latest_checkpointed_iteration.txt").write_text("7")


def states(model: Any, window: list[int]) -> dict[str, np.ndarray]:
    """Hidden states [tokens, hidden] of one list of tokens."""
    import torch

    seen: dict[str, torch.Tensor] = {}
    hooks = [
        model.decoder.layers[1].register_forward_hook(
            lambda _, __, output: seen.update(layer2=output[0])
        ),
        model.decoder.register_forward_hook(lambda _, __, output: seen.update(last=output)),
    ]
    ids = torch.tensor([window])
    masked = torch.ones(len(window), len(window)).triu(1).bool()[None, None]
    with torch.no_grad():
        model(ids, torch.arange(len(window))[None], masked)
    for hook in hooks:
        hook.remove()
    return {name: state[:, 0].numpy() for name, state in seen.items()}


def main() -> None:
    from megatron_sbp.training import platform

    platform.install()
    import torch

    torch.distributed.init_process_group("gloo")
    checkpoint, case, output = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    for name, layout in {"tp2": (2, 1), "pp2": (1, 2)}.items():
        save(load(checkpoint, case, *layout), case, *layout, output / name)
    model = load(checkpoint, case, 1, 1)
    windows = json.loads((output / "windows.json").read_text())
    arrays: dict[str, Any] = {
        f"{name}-{number}": state
        for number, window in enumerate(windows)
        for name, state in states(model, window).items()
    }
    if torch.distributed.get_rank() == 0:
        np.savez(output / "states.npz", **arrays)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
