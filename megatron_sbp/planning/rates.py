"""Seconds of one device for one of each kind of work, by kind of stage."""

import json
from pathlib import Path

from megatron_sbp.errors import InputError
from megatron_sbp.planning import speed
from megatron_sbp.planning.machines import Device
from megatron_sbp.planning.work import Rates, Work

PATH = Path(__file__).with_name("stage_rates.json")
"""A CPU and its rates for every stage; ``python -m benchmarks.stages --publish`` writes it."""

ON_CPU = ("embed-lexical", "filter")
"""Kinds of stages that use no GPU where there is one."""

_START = 60.0  # seconds until all processes of a job on GPUs work, assumed


def of_gpu(device: Device, precision: str) -> dict[str, Rates]:
    """Rates of a GPU; see ``Device`` for where they come from."""
    reading = 1 / (device.flops["bf16"] * device.reading)
    training = 1 / (device.flops[precision] * device.training[precision])
    drawing = 1 / (device.bandwidth * device.decoding)
    work = {
        "embed": Work(products=reading),
        "train": Work(products=training),
        "synthesize": Work(products=reading, traffic=drawing),
    }
    return {stage: Rates(each=each, start=_START) for stage, each in work.items()}


def of_cpu(*, here: bool) -> dict[str, Rates]:
    """Rates of a core of the CPU that was measured.

    Args:
        here: Whether the plan is for this machine, whose speed is then measured; and it says
            nothing without rates.

    Raises:
        InputError: If none was measured, and the plan is for this machine.
    """
    if not PATH.exists() and not here:
        return {}
    if not PATH.exists():
        raise InputError(
            f"{PATH}: no such file; measure this CPU with `python -m benchmarks.stages --publish`"
        )
    measured = json.loads(PATH.read_text())
    slower = speed.task_seconds() / measured["task"] if here else 1.0
    return {
        stage: Rates(
            each=Work(**{name: slower * each for name, each in entry["each"].items()}),
            start=slower * entry["start"],
        )
        for stage, entry in measured["stages"].items()
    }
