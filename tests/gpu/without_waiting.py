"""``megatron_sbp.pretrain``, which fails where getting a micro-batch waits for the GPU."""

from typing import Any
from unittest import mock

import torch

from megatron_sbp import pretrain
from megatron_sbp.cli import run
from megatron_sbp.training import objective

_get_batch = objective.get_batch


def _without_waiting(*args: Any) -> Any:
    torch.cuda.set_sync_debug_mode("error")
    try:
        return _get_batch(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    with mock.patch.object(objective, "get_batch", _without_waiting):
        run(pretrain.main)
