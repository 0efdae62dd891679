"""Losses along training, of all seeds of an arm together."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from megatron_sbp.comparison.arm_run import ArmRun, Runs

_MOST_POINTS = 200


def collect(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """Held-out and training losses of every arm that has some.

    Returns:
        ``heldout`` and ``training``: per arm ``block`` (so many measurements are averaged into a
        point) and ``points`` (tokens trained on, mean over seeds, least, greatest; nats per token).
    """
    curves: dict[str, list[dict[str, Any]]] = {"heldout": [], "training": []}
    for arm, seeds in runs.items():
        chosen = list(seeds.values())
        for kind, series in (
            ("heldout", [run.curve for run in chosen]),
            ("training", [run.training_curve for run in chosen]),
        ):
            block, points = _together(series, chosen[0], kind == "training")
            if points:
                curves[kind].append({"arm": arm, "block": block, "points": points})
    return curves


def lowest(curve: dict[str, Any]) -> dict[str, float]:
    """Where the mean over seeds is lowest: what stopping early could give at best."""
    tokens, loss, *_ = min(curve["points"], key=lambda point: point[1])
    return {"tokens": tokens, "loss": loss}


def _together(
    series: Sequence[Sequence[tuple[int, float]]], run: ArmRun, averaged: bool
) -> tuple[int, list[list[float]]]:
    """Length of a block, and the points over the iterations at which every seed was measured."""
    measured = [
        {iteration: loss for iteration, loss in curve if np.isfinite(loss)} for curve in series
    ]
    iterations = sorted(set.intersection(*map(set, measured)))
    block = max(1, -(-len(iterations) // _MOST_POINTS)) if averaged else 1
    points = []
    for start in range(0, len(iterations), block):
        chunk = iterations[start : start + block]
        losses = [float(np.mean([losses[place] for place in chunk])) for losses in measured]
        tokens = run.training_tokens * chunk[-1] / run.iterations
        points.append([tokens, float(np.mean(losses)), min(losses), max(losses)])
    return block, points
