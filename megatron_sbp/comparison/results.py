"""What the runs of several arms say together, as plain data: report.json is this."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_sbp.comparison import curves, differences, reading, sensitivity
from megatron_sbp.comparison.arm_run import ARMS, ArmRun, Runs
from megatron_sbp.comparison.statistics import t_interval
from megatron_sbp.errors import InputError

__all__ = ["ARMS", "FORMAT", "ArmRun", "summarise"]

FORMAT = "megatron_sbp comparison 1"

type Floor = Mapping[str, Mapping[str, float]]
"""Reader -> ``per_token`` and of each kind of token ``per_KIND_token``, nats."""


def summarise(
    runs: Sequence[ArmRun],
    *,
    floor: Floor | None = None,
    truth: Sequence[Mapping[str, Any]] = (),
    sweep: Sequence[Mapping[str, Any]] = (),
    varied: Sequence[Mapping[str, Any]] = (),
    recipe_values: Mapping[str, Any] | None = None,
    setting: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Losses, differences and recovered shares with their intervals, and all that explains them.

    Args:
        runs: One per arm and seed; any arms.
        floor: Of a concepts corpus, the counts ``floor`` of its manifest: what a reader that knows
            all, the told or none of the values loses.
        truth: Of a concepts corpus, measures against what is true: ``measure``, ``of`` (what was
            measured, such as an arm), ``value`` and perhaps ``interval``. Several rows of the same
            measure and thing, such as those of several seeds, are averaged.
        sweep: What repetition-tuned was chosen from: ``settings`` (flag -> value), ``seed``,
            ``loss`` in nats per token.
        varied: Runs of arm sbp with one knob turned: ``knob``, ``value``, ``seed``, ``loss``; where
            the knob changes the corpus also ``repetition`` and ``oracle``, the losses of these
            arms on it; perhaps ``truth`` (measure -> value).
        recipe_values: Knob -> the recipe's own value.
        setting: How it was made: ``commands`` (list of ``stage`` and ``command``), ``recipe`` (its
            name or text), ``versions`` (name -> version), ``machine`` (text).

    Returns:
        What JSON can hold; docs/compare.md says what is in it.

    Raises:
        InputError: If there is no run, two runs are of one arm and seed, a loss is not finite, or
            runs were not evaluated on the same documents.
    """
    arms = _by_arm(runs)
    _check(arms)
    along = curves.collect(arms)
    content: dict[str, Any] = {
        "format": FORMAT,
        "seeds": sorted({run.seed for run in runs}),
        "heldout": {
            "documents": len(runs[0].tokens),
            "tokens": runs[0].tokens.sum(),
            "sources": runs[0].heldout,
        },
        "arms": [_arm(name, list(seeds.values()), floor) for name, seeds in arms.items()],
        "differences": differences.differences(arms),
        "recovered": differences.recovered(arms),
        "splits": [*_sources(arms), *_kinds(arms, floor)],
        "curves": along,
        "lowest": {curve["arm"]: curves.lowest(curve) for curve in along["heldout"]},
        "floor": floor,
        "truth": _truth(truth),
        "sweep": _sweep(sweep),
        "sensitivity": sensitivity.collect(varied, recipe_values or {}, arms),
        "setting": {"commands": [], "recipe": "", "versions": {}, "machine": "", **(setting or {})},
        "missing": {name: what for name, what in ARMS.items() if name not in arms},
    }
    content = _plain(content)
    for row in content["recovered"]:
        row["bounds"] = reading.bounds(row)
    content["headline"] = reading.headline(content)
    content["warnings"] = reading.warnings(content)
    content["limits"] = reading.limits(content)
    return content


def _by_arm(runs: Sequence[ArmRun]) -> Runs:
    """The runs in the order of ``ARMS``, other arms behind, and of their seeds."""
    if not runs:
        raise InputError("no run to compare: give those of one arm at least")
    arms: Runs = {}
    order = [*ARMS, *(run.arm for run in runs)]
    for run in sorted(runs, key=lambda run: (order.index(run.arm), run.seed)):
        if run.seed in arms.setdefault(run.arm, {}):
            raise InputError(f"{run.arm}: two runs have seed {run.seed}; give one of them")
        arms[run.arm][run.seed] = run
    return arms


def _check(arms: Runs) -> None:
    """That every run has a loss, and of the same documents as the first one."""
    every = [run for seeds in arms.values() for run in seeds.values()]
    first = every[0]
    for run in every:
        if not np.array_equal(run.tokens, first.tokens) or run.heldout != first.heldout:
            raise InputError(
                f"{run.arm}, seed {run.seed}: was evaluated on other documents than {first.arm}, "
                f"seed {first.seed}; evaluate both on the same held-out documents"
            )
        if not np.isfinite(run.mean):
            raise InputError(
                f"{run.arm}, seed {run.seed}: its held-out loss is {run.mean}, the run diverged; "
                "lower the learning rate, or leave this seed out of every arm"
            )


def _arm(name: str, runs: Sequence[ArmRun], floor: Floor | None) -> dict[str, Any]:
    """An arm's loss, and what its models were made from."""
    losses = np.array([run.mean for run in runs])
    return {
        "arm": name,
        "what": ARMS.get(name, ""),
        "runs": [{"seed": run.seed, "loss": run.mean} for run in runs],
        "loss": losses.mean(),
        "interval": t_interval(losses),
        "above_floor": {
            reader: losses.mean() - nats["per_token"] for reader, nats in (floor or {}).items()
        },
        "training_tokens": round(np.mean([run.training_tokens for run in runs])),
        "flop": np.mean([run.flop for run in runs]),
        "stages": {
            stage: np.mean([run.stages.get(stage, 0) for run in runs])
            for stage in dict.fromkeys(stage for run in runs for stage in run.stages)
        },
        "read": {kind: _read(runs, kind) for kind in ("real", "synthetic")},
        "settings": {
            flag: _distinct([run.settings.get(flag) for run in runs])
            for flag in dict.fromkeys(flag for run in runs for flag in run.settings)
        },
        "ledgers": [{"seed": run.seed, "sources": run.sources} for run in runs if run.sources],
    }


def _read(runs: Sequence[ArmRun], kind: str) -> dict[str, Any] | None:
    """Unique tokens of one kind and how often they were read, means over seeds; None for none."""
    rows = [[row for row in run.sources if row["kind"] == kind] for run in runs]
    tokens = np.mean([sum(row["tokens"] for row in some) for some in rows])
    seen = np.mean([sum(row["tokens_seen"] for row in some) for some in rows])
    return {"tokens": round(tokens), "epochs": seen / tokens} if tokens else None


def _distinct(values: Sequence[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value not in values[:place]]


# Parts of the held-out documents


def _sources(arms: Runs) -> list[dict[str, Any]]:
    """Losses per held-out source, where there are several."""
    first = next(iter(next(iter(arms.values())).values()))
    ends = np.cumsum(list(first.heldout.values()))
    if len(ends) < 2:
        return []
    losses = {
        arm: [
            [part.sum() for part in np.split(run.loss, ends[:-1])]
            / np.array([part.sum() for part in np.split(run.tokens, ends[:-1])])
            for run in seeds.values()
        ]
        for arm, seeds in arms.items()
    }
    return [
        {
            "by": "held-out source",
            "name": name,
            "arms": {
                arm: _mean_of([parts[place] for parts in some]) for arm, some in losses.items()
            },
            "floor": {},
        }
        for place, name in enumerate(first.heldout)
    ]


def _kinds(arms: Runs, floor: Floor | None) -> list[dict[str, Any]]:
    """Losses per kind of token, of the arms whose runs all know them."""
    runs = [run for seeds in arms.values() for run in seeds.values()]
    return [
        {
            "by": "kind of token",
            "name": kind,
            "arms": {
                arm: _mean_of([_ratio(*run.parts[kind]) for run in seeds.values()])
                for arm, seeds in arms.items()
                if all(kind in run.parts for run in seeds.values())
            },
            "floor": {
                reader: nats[f"per_{kind}_token"]
                for reader, nats in (floor or {}).items()
                if f"per_{kind}_token" in nats
            },
        }
        for kind in dict.fromkeys(kind for run in runs for kind in run.parts)
    ]


def _ratio(loss: np.ndarray, tokens: np.ndarray) -> float:
    return float(loss.sum() / tokens.sum())


def _mean_of(losses: Sequence[float]) -> dict[str, Any]:
    return {"loss": np.mean(losses), "interval": t_interval(np.array(losses))}


# Tables


def _truth(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Measures, each with what was measured -> its value; an interval only of a single row."""
    table: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        table.setdefault(row["measure"], {}).setdefault(row["of"], []).append(row)
    return [
        {
            "measure": measure,
            "of": {
                name: {
                    "value": np.mean([row["value"] for row in some]),
                    "interval": some[0].get("interval") if len(some) == 1 else None,
                }
                for name, some in things.items()
            },
        }
        for measure, things in table.items()
    ]


def _sweep(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every setting with its mean loss over seeds, the best first."""
    table: dict[tuple[tuple[str, Any], ...], list[float]] = {}
    for row in rows:
        table.setdefault(tuple(row["settings"].items()), []).append(row["loss"])
    swept = [
        {"settings": dict(settings), "seeds": len(losses), "loss": float(np.mean(losses))}
        for settings, losses in table.items()
    ]
    # What diverged is nan, which no comparison orders.
    return sorted(swept, key=lambda row: (not np.isfinite(row["loss"]), row["loss"]))


def _plain(value: Any) -> Any:
    """The same as JSON can hold it: no infinities, tuples or NumPy numbers."""
    if isinstance(value, Mapping):
        return {str(key): _plain(some) for key, some in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(some) for some in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
