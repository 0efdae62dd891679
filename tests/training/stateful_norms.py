"""``megatron_sbp.pretrain`` with norms that have a state, as Transformer Engine's do."""

import sys
from typing import Any

import torch

from megatron_sbp import pretrain
from megatron_sbp.cli import run
from megatron_sbp.training import platform

ARGUMENT = "--state"
"""What the states of a new model hold."""


def remember(state: int) -> None:
    """Give every norm a state: one number."""
    from megatron_sbp.training import local_layers

    class Stateful(torch.nn.RMSNorm):
        held = torch.tensor([state])

        def get_extra_state(self) -> torch.Tensor:
            return self.held

        def set_extra_state(self, state: Any) -> None:
            self.held = state
            print(f"a norm has taken {int(state)}")

    stateless = local_layers.TorchNorm.__new__

    def stateful(*args: Any, **kwargs: Any) -> Any:
        norm = stateless(*args, **kwargs)
        norm.__class__ = Stateful
        return norm

    local_layers.TorchNorm.__new__ = stateful  # type: ignore[method-assign]


if __name__ == "__main__":
    assert platform.install()
    place = sys.argv.index(ARGUMENT)
    _, state = sys.argv[place : place + 2]
    del sys.argv[place : place + 2]
    remember(int(state))
    run(pretrain.main)
