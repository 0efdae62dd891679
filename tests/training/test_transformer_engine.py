"""A run that Transformer Engine could not train is refused at its start, with the reason."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import utils as megatron_utils
from packaging.version import Version

from megatron_sbp.errors import InputError
from megatron_sbp.training.transformer_engine import check_engine, check_fp8


def arguments(**changes: Any) -> Any:
    values = {
        "fp8": "hybrid",
        "fp8_recipe": "blockwise",
        "transformer_impl": "transformer_engine",
        "spec": None,
        "tensor_model_parallel_size": 2,
        "context_parallel_size": 1,
        "sequence_parallel": True,
        "seq_length": 4096,
        "micro_batch_size": 1,
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "group_query_attention": True,
        "num_query_groups": 8,
        "kv_channels": 128,
        "ffn_hidden_size": 8192,
    }
    return SimpleNamespace(**(values | changes))


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine with a Hopper GPU and Transformer Engine 2.3 says of itself."""
    manager = SimpleNamespace(
        is_fp8_available=lambda: (True, ""),
        is_fp8_block_scaling_available=lambda: (True, ""),
        is_mxfp8_available=lambda: (False, "needs compute capability 10.0"),
    )
    module: Any = ModuleType("transformer_engine.pytorch.fp8")
    module.FP8GlobalStateManager = manager
    for name in ("transformer_engine", "transformer_engine.pytorch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch.fp8", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    version = Version("2.3.0")
    monkeypatch.setattr(megatron_utils, "get_te_version", lambda: version)


def test_what_can_run_is_let_through(hopper: None) -> None:
    check_fp8(arguments())
    check_fp8(arguments(fp8_recipe="delayed"))
    check_fp8(arguments(fp8=None, transformer_impl="local", seq_length=17))
    check_fp8(arguments(sequence_parallel=False, seq_length=48, hidden_size=48))
    check_fp8(arguments(fp8_recipe="tensorwise", seq_length=96, hidden_size=48))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_impl": "local"}, "needs --transformer-impl transformer_engine, not local"),
        (
            {"fp8_recipe": "mxfp8"},
            r"mxfp8 does not run on this GPU \(needs compute capability 10.0",
        ),
        (
            {"seq_length": 4104, "context_parallel_size": 2},
            "gives each rank 1026, .* blockwise with --sequence-parallel needs a multiple of 128",
        ),
        (
            {"seq_length": 4104, "sequence_parallel": False},
            "gives each rank 4104, .* blockwise needs a multiple of 16",
        ),
        ({"seq_length": 64, "micro_batch_size": 4, "eval_micro_batch_size": 1}, "eval.* rank 32,"),
        ({"hidden_size": 3136}, "--hidden-size gives each rank 3136, .* multiple of 128"),
        ({"num_attention_heads": 3, "kv_channels": 24}, "--num-attention-heads gives each rank 36"),
        ({"num_query_groups": 2, "kv_channels": 20}, "--num-query-groups gives each rank 40"),
        ({"ffn_hidden_size": 8200}, "--ffn-hidden-size gives each rank 4100"),
    ],
)
def test_what_cannot_is_named(hopper: None, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_fp8(arguments(**changes))


def test_an_old_transformer_engine_is_named(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    old = Version("2.2.1")
    monkeypatch.setattr(megatron_utils, "get_te_version", lambda: old)
    with pytest.raises(InputError, match=r"blockwise needs Transformer Engine 2.3 .*, not 2.2.1"):
        check_fp8(arguments())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_machine_without_a_gpu_is_named() -> None:
    with pytest.raises(InputError, match="--fp8-format hybrid needs a GPU"):
        check_fp8(arguments())


def hide_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed, though something may have imported it."""
    for name in list(sys.modules):
        if name.startswith("transformer_engine."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformer_engine", None)


def test_a_missing_transformer_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    hide_engine(monkeypatch)
    with pytest.raises(InputError, match=r"--fp8-format hybrid needs Transformer Engine .*; inst"):
        check_fp8(arguments())
    check_engine(arguments(transformer_impl="local"))
    check_engine(arguments(spec=["layers_of_ones_own", "spec"]))
    with pytest.raises(InputError, match=r"needs Transformer .*, or give --transformer-impl local"):
        check_engine(arguments())


def test_a_broken_transformer_engine_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "transformer_engine.py").write_text("raise OSError('libcudart.so: not found')")
    hide_engine(monkeypatch)
    monkeypatch.delitem(sys.modules, "transformer_engine")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"needs Transformer Engine \(libcudart.so: not found\)"):
        check_engine(arguments())
