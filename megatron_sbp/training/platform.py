"""Megatron's own training loop on a machine without CUDA.

Megatron allocates with ``device="cuda"``, asks ``torch.cuda`` for streams, memory and random
states, and starts only where a CUDA device exists. ``install()`` maps those calls to the CPU, so
that the very same ``pretrain()``, optimizer and checkpoint code runs on gloo. It does nothing on a
machine with CUDA.

What is mapped, and how:

* tensors: a ``torch.overrides.TorchFunctionMode`` sends every ``device`` that names CUDA to the
  CPU, makes ``.cuda()`` and ``.pin_memory()`` the identity and lets ``Tensor.type()`` answer with
  the CUDA type names that Megatron's optimizer asserts on;
* ``torch.cuda``: one device, streams and events that do nothing, memory statistics of zero, the
  CPU's random state;
* Megatron: no CUDA assertion at start, no torch.compile of small fused functions, no ``make`` of
  the dataset helpers, which the wheel ships compiled; a distributed optimizer that loads
  checkpoints without Transformer Engine; a faster rotary embedding of packed rows;
* Transformer Engine and Apex: Megatron takes optimizers and norms of theirs wherever they are
  installed, so that it is told here that they are not.
"""

import contextlib
import functools
import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU_ARGUMENTS = [
    *("--distributed-backend", "gloo"),
    *("--transformer-impl", "local"),
    "--use-cpu-initialization",
    "--no-gradient-accumulation-fusion",
    "--no-masked-softmax-fusion",
    "--no-persist-layer-norm",
    "--no-bias-swiglu-fusion",
    "--no-bias-gelu-fusion",
    "--no-bias-dropout-fusion",
    "--no-rope-fusion",
    "--disable-jit-fuser",
    "--no-create-attention-mask-in-dataloader",
]
"""Megatron arguments that the CPU needs; they come last on the command line, so they win."""

_CUDA_ONLY = ("transformer_engine", "apex", "amp_C")
"""Modules that Megatron imports where it finds them; their kernels need a GPU."""

_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}
_mode: "CudaToCpu | None" = None


class CudaToCpu(TorchFunctionMode):
    """Runs torch functions that name a CUDA device on the CPU."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda or func is torch.Tensor.pin_memory:
            return args[0]
        kwargs.pop("pin_memory", None)
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _TYPE_NAMES.get(args[0].dtype, func(*args))
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = torch.device("cpu")
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], torch.device("cpu"), *args[2:])
        return func(*args, **kwargs)


def _is_cuda(device: object) -> bool:
    """Whether ``device`` names CUDA: a bare index means a CUDA device to torch."""
    if isinstance(device, torch.device):
        return device.type == "cuda"
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) and not isinstance(device, bool)


class _Idle:
    """A CUDA stream or event of a machine that has none: every method returns at once."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: _Idle() if name == "record_event" else None

    def elapsed_time(self, _: Any) -> float:
        """Milliseconds between two events: there is no device time."""
        return 0.0


def install() -> bool:
    """Make Megatron run on the CPU if there is no CUDA device.

    Call it before anything of ``megatron`` is imported.

    Returns:
        Whether the CPU platform is in force.
    """
    global _mode
    if torch.cuda.is_available():
        return False
    if _mode is None:
        print("no CUDA device: Megatron's training loop runs on the CPU (gloo)", flush=True)
        # Megatron asks for it with tensor parallelism; it orders kernels of a device that is not.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        for name in _CUDA_ONLY:
            # "Cannot be imported"; what a command has imported before stays, since Megatron, which
            # did that for it, goes on from there. Training is the one that must not have it.
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
        _map_torch_cuda()
        _mode = CudaToCpu()
        _mode.__enter__()
        _map_megatron()
    return True


def _returning(value: Any) -> Callable[..., Any]:
    """A function of any arguments that returns ``value``.

    A new one each time: torch's own tables refuse one object under two names.
    """
    return lambda *args, **kwargs: value


def _map_torch_cuda() -> None:
    properties = SimpleNamespace(name="cpu", major=0, minor=0, total_memory=0)
    stand_ins: dict[str, Any] = {
        "device_count": _returning(1),
        "get_device_capability": _returning((0, 0)),
        "get_device_properties": _returning(properties),
        "get_device_name": _returning("cpu"),
        "memory_stats": _returning(defaultdict(int)),
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "Stream": _Idle,
        "Event": _Idle,
        "current_stream": _returning(_Idle()),
        "default_stream": _returning(_Idle()),
        "stream": _returning(contextlib.nullcontext()),
        "device": _returning(contextlib.nullcontext()),
    }
    no_result = "set_device set_stream synchronize empty_cache reset_peak_memory_stats"
    stand_ins |= {name: _returning(None) for name in [*no_result.split(), "manual_seed_all"]}
    memory = "memory_allocated max_memory_allocated memory_reserved max_memory_reserved"
    zero = ["current_device", "device_memory_used", *memory.split()]
    stand_ins |= {name: _returning(0) for name in zero}
    for name, stand_in in stand_ins.items():
        setattr(torch.cuda, name, stand_in)
    torch.nn.Module.cuda = lambda self, device=None: self
    # Megatron compiles functions of a few elementwise operations; on a CPU that costs more start-up
    # than it saves and needs a C++ compiler.
    torch.compile = _uncompiled


def _uncompiled(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    """``torch.compile`` as a function or decorator that leaves the function as it is."""
    return function if function is not None else _uncompiled


def _map_megatron() -> None:
    from megatron.core.datasets import utils as dataset_utils
    from megatron.core.tensor_parallel import random as megatron_random

    megatron_random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    skip_shipped_helpers(dataset_utils)

    from megatron_sbp.training import optimizer_loading, rotary

    optimizer_loading.mend()
    rotary.install()

    from megatron.training import training

    training.initialize_megatron = functools.partial(
        training.initialize_megatron, allow_no_cuda=True
    )


def skip_shipped_helpers(dataset_utils: Any) -> None:
    """Skip ``make`` where the compiled dataset helpers are already there.

    ``compile_helpers`` runs make in the installed package and ends the run where that fails, which
    it does in a wheel: no Makefile is in it.
    """
    if importlib.util.find_spec("megatron.core.datasets.helpers_cpp") is not None:
        dataset_utils.compile_helpers = lambda: None
