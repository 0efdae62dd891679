"""A prompt of another form than the pairs that the model was tuned on is refused."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_sbp.errors import InputError
from megatron_sbp.models import checkpoint_writer
from megatron_sbp.models.checkpoint_writer import StoredWeight
from megatron_sbp.synthesis.options import SynthesizeOptions
from megatron_sbp.synthesis.tuning import check_prompt

PROMPT = {"template": "{d1}{sep}{d2}{eod}", "separator": "<|new|>", "context_documents": 2}


@pytest.fixture(params=["synthesis", "lm"])
def objective(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tuned(objective: str, tmp_path: Path) -> Path:
    """A checkpoint whose arguments say what it was tuned with."""
    args = Namespace(
        num_layers=1, sbp_objective=objective, **{f"sbp_{k}": v for k, v in PROMPT.items()}
    )
    weight = StoredWeight("decoder.final_layernorm.weight", None, (2,), lambda: torch.ones(2))
    checkpoint_writer.write(tmp_path / "tuned", args, [weight], torch.float32)
    return tmp_path / "tuned"


def options(load: Path, **changes: Any) -> SynthesizeOptions:
    values: dict[str, Any] = PROMPT | changes
    common: dict[str, Any] = {"corpus": ["c"], "output_prefix": "o", "num_tokens": 1, "pairs": "p"}
    return SynthesizeOptions(load=str(load), **common | values)


def test_a_prompt_must_be_that_of_the_tuning(tuned: Path, objective: str) -> None:
    check_prompt(options(tuned))
    for name, other in (
        ("template", "{d1}{d2}{eod}"),
        ("separator", "x"),
        ("context_documents", 3),
    ):
        flag = name.replace("_", "-")
        changed = options(tuned, **{name: other})
        if objective == "lm":  # a base model, which may be asked anything
            check_prompt(changed)
            continue
        with pytest.raises(InputError, match=f"--{flag} .*was tuned with --sbp-{flag}") as error:
            check_prompt(changed)
        assert repr(PROMPT[name]) in str(error.value)
