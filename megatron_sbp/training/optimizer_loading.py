"""Megatron's distributed optimizer, loaded from a checkpoint onto torch's Adam.

With Transformer Engine or Apex its Adam is theirs. On torch's, megatron-core 0.19.2 cannot load
what it saved: it asks for the number of steps before there was one, copies into weights that
require gradients where they are fp32, and loses the number, or gives all parameters one counter,
which each of them then counts up.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer


def mend() -> None:
    """Make ``DistributedOptimizer`` load checkpoints onto torch's Adam."""
    own: Any = DistributedOptimizer
    own.sharded_state_dict = _after_a_step(own.sharded_state_dict)
    own._set_main_param_and_optimizer_states = torch.no_grad()(
        own._set_main_param_and_optimizer_states
    )
    own.load_state_dict = _with_counters(own.load_state_dict)


def _after_a_step(sharded_state_dict: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(sharded_state_dict)
    def prepared(self: Any, state: Any, is_loading: bool = False, *args: Any, **kwargs: Any) -> Any:
        if is_loading and not self.optimizer.state:
            self._init_optimizer_states_with_dummy_values()
        return sharded_state_dict(self, state, is_loading, *args, **kwargs)

    return prepared


def _with_counters(load_state_dict: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(load_state_dict)
    def loaded(self: Any, state: Any) -> None:
        load_state_dict(self, state)
        steps = {group["step"] for group in state["optimizer"]["param_groups"]}
        for values in self.optimizer.state.values():
            values["step"] = torch.tensor(max(steps), dtype=torch.float32)

    return loaded
