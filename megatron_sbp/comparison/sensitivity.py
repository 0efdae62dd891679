"""What turning one knob of the recipe does to SBP."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from megatron_sbp.comparison.arm_run import Runs

LINES = ("repetition", "repetition-tuned", "oracle")
"""Arms that a plot shows beside SBP."""
GIVEN = ("repetition", "oracle")
"""Arms that may be given with a row, where its corpus is another."""


def collect(
    rows: Sequence[Mapping[str, Any]],
    recipe_values: Mapping[str, Any],
    runs: Runs,
) -> list[dict[str, Any]]:
    """Rows of ``summarise`` by knob and value.

    Args:
        rows: ``knob``, ``value``, ``seed``, ``loss`` and perhaps ``repetition``, ``oracle``,
            ``truth``.
        recipe_values: Knob -> the recipe's value. Unless rows have it, its runs are those of arm
            sbp.
        runs: Those of the arms. Their seeds that no row of a knob has are left out, so that values
            are compared over the same seeds.

    Returns:
        Per knob ``recipe_value``, ``lines`` (arm -> mean loss; none if the corpus is another for
        every value) and ``points``: value, seeds, loss, low and high (mean, least, greatest over
        seeds), repetition and oracle (mean on this corpus, or None), truth (measure -> mean).
    """
    return [
        _knob(knob, [row for row in rows if row["knob"] == knob], recipe_values.get(knob), runs)
        for knob in dict.fromkeys(row["knob"] for row in rows)
    ]


def _knob(knob: str, rows: Sequence[Mapping[str, Any]], own: Any, runs: Runs) -> dict[str, Any]:
    seeds = {row["seed"] for row in rows}
    losses = {
        arm: [run.mean for seed, run in of.items() if seed in seeds] for arm, of in runs.items()
    }
    points = [
        _point(value, [row for row in rows if row["value"] == value])
        for value in dict.fromkeys(row["value"] for row in rows)
    ]
    other = any(arm in row for row in rows for arm in GIVEN)
    if own is not None and losses.get("sbp") and all(point["value"] != own for point in points):
        beside = {arm: _mean(losses.get(arm, ())) if other else None for arm in GIVEN}
        points.append(_point(own, [{"loss": loss} for loss in losses["sbp"]]) | beside)
    if not any(np.isnan(_number(point["value"])) for point in points):
        points.sort(key=lambda point: _number(point["value"]))
    return {
        "knob": knob,
        "recipe_value": own,
        "lines": {arm: _mean(losses[arm]) for arm in LINES if losses.get(arm) and not other},
        "points": points,
    }


def _number(value: Any) -> float:
    """What a flag's value counts, also where it is text; nan if it is no number."""
    try:
        return float(value)
    except ValueError:
        return float("nan")


def _point(value: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    losses = [float(row["loss"]) for row in rows]
    measures = dict.fromkeys(name for row in rows for name in row.get("truth", {}))
    return {
        "value": value,
        "seeds": len(rows),
        "loss": _mean(losses),
        "low": min(losses),
        "high": max(losses),
        **{arm: _mean(row[arm] for row in rows if arm in row) for arm in GIVEN},
        "truth": {
            name: _mean(row["truth"][name] for row in rows if name in row.get("truth", {}))
            for name in measures
        },
    }


def _mean(values: Iterable[float]) -> float | None:
    some = list(values)
    return float(np.mean(some)) if some else None
