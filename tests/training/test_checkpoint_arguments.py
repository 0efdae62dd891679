"""A checkpoint that would load into another model without a word is refused."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp.errors import InputError
from megatron_sbp.training.checkpoint_arguments import check_checkpoints
from tests.models import megatron_models


def run(checkpoint: Path, flag: str, **changes: Any) -> Namespace:
    """The arguments of a run that starts from a checkpoint, equal to its own but for changes."""
    values = vars(megatron_models.arguments("qwen3")) | changes
    return Namespace(**values | {"load": None, "pretrained_checkpoint": None, flag: checkpoint})


@pytest.mark.parametrize("flag", ["load", "pretrained_checkpoint"])
def test_another_model_is_refused_by_name(flag: str, checkpoints: Path) -> None:
    directory = checkpoints / "qwen3"
    check_checkpoints(run(directory, flag))
    for name, value, spelled in (
        ("qk_layernorm", False, "--qk-layernorm"),
        ("layernorm_epsilon", 1e-6, "--norm-epsilon"),
        ("rotary_base", 500000, "--rotary-base"),
    ):
        with pytest.raises(InputError, match=rf"{name} .* but this run has {value}, .*{spelled}"):
            check_checkpoints(run(directory, flag, **{name: value}))


def test_a_directory_without_a_checkpoint_is_a_new_run(tmp_path: Path) -> None:
    check_checkpoints(run(tmp_path / "none", "load", qk_layernorm=False))
