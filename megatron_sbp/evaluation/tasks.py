"""Scores in tasks of lm-evaluation-harness, on the exported checkpoint."""

import gc
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_sbp.errors import InputError, require

if TYPE_CHECKING:
    import torch

FILENAME = "tasks.json"
FORMAT = "megatron_sbp tasks 1"
SHOTS = {
    "arc_challenge": 0,
    "arc_easy": 0,
    "sciq": 0,
    "winogrande": 0,
    "triviaqa": 1,
    "webqs": 1,
}
"""The paper's tasks (arXiv 2509.15248) and how many solved examples stand before a question."""


def parse_shots(settings: Sequence[str], tasks: Sequence[str]) -> dict[str, int]:
    """Read ``TASK=NUMBER``, over the paper's numbers.

    Raises:
        InputError: If one is no such setting, or its task is not asked for.
    """
    shots = {task: SHOTS[task] for task in tasks if task in SHOTS}
    for setting in settings:
        task, _, number = setting.partition("=")
        if not number.isdecimal() or task not in tasks:
            raise InputError(
                f"--shots {setting}: give TASK=NUMBER with a task of --tasks, as triviaqa=5"
            )
        shots[task] = int(number)
    return shots


def measure(
    model: Path,
    tasks: Sequence[str],
    shots: Mapping[str, int],
    task_path: str | None,
    *,
    dtype: str,
    device: "torch.device",
    batch_size: int,
) -> dict[str, Any]:
    """The content of ``tasks.json``.

    Args:
        model: Hugging Face directory.
        tasks: Names of tasks, groups or tags.
        shots: Task -> solved examples before a question; the others have what their file says.
        task_path: Directory with task files besides those of lm-evaluation-harness.
        dtype: fp32 or bf16.
        device: Where to compute.
        batch_size: Sequences computed at a time.

    Raises:
        InputError: If lm-evaluation-harness is not there, a task is unknown, or none can be loaded.
    """
    require("lm_eval", package="lm_eval", extra="evaluation")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=task_path)
    not_loaded = _not_loaded(manager, tasks)
    language_model = _load(model, dtype, device, batch_size)
    results: dict[str, Any] = {}
    for task in tasks:
        if task in not_loaded:
            continue
        measured = simple_evaluate(
            language_model,
            tasks=[task],
            num_fewshot=shots.get(task),
            task_manager=manager,
            log_samples=False,
        )
        for name, values in measured["results"].items():
            results[name] = {
                "shots": measured["n-shot"].get(name),
                "version": measured["versions"].get(name),
                "samples": measured["n-samples"].get(name, {}).get("effective"),
                "metrics": _metrics(values),
            }
    del language_model
    gc.collect()  # before Megatron wants the memory
    if device.type == "cuda":
        import torch

        torch.cuda.empty_cache()
    return {
        "format": FORMAT,
        "lm_eval": importlib.metadata.version("lm_eval"),
        "tasks": results,
        "not_loaded": not_loaded,
    }


def _not_loaded(manager: Any, tasks: Sequence[str]) -> dict[str, str]:
    """Tasks whose data cannot be had, and why.

    Raises:
        InputError: If a task is unknown, or this holds for all of them.
    """
    reasons = {}
    for task in tasks:
        if task not in manager.all_tasks:
            raise InputError(
                f"--tasks {task}: neither lm-evaluation-harness nor --task-path has a task of "
                "that name; `lm-eval ls tasks` lists them"
            )
        try:
            manager.load(task)
        except Exception as error:  # of the Hub, of the network, of the data, of the task's code
            reason = " ".join(str(error).split()) or type(error).__name__
            reasons[task] = reason[:200]
    if len(reasons) == len(tasks):
        task, reason = next(iter(reasons.items()))
        raise InputError(
            f"--tasks: none can be loaded ({task}: {reason}); fetch their data where there is a "
            "network, give --task-path with tasks whose data are here, or leave --tasks out"
        )
    return reasons


def _load(directory: Path, dtype: str, device: "torch.device", batch_size: int) -> Any:
    """The model as lm-evaluation-harness takes it.

    It is loaded here, since lm-evaluation-harness would start process groups under torchrun.
    """
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM
    from tokenizers.processors import TemplateProcessing

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    bos, number = tokenizer.bos_token, tokenizer.bos_token_id
    # In training every document comes after this token, so that a prompt has to begin with it.
    if bos is not None and tokenizer("a")["input_ids"][0] != number:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, number)]
        )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    )
    return HFLM(pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=batch_size)


def _metrics(values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Metric -> value and standard error, of keys like ``acc,none`` and ``acc_stderr,none``."""
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        name, comma, chosen = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        error = values.get(f"{name}_stderr,{chosen}")
        title = name if chosen == "none" else f"{name} ({chosen})"
        metrics[title] = {
            "value": float(value),
            "standard_error": float(error) if isinstance(error, int | float) else None,
        }
    return metrics
