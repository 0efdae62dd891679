"""Runs of arms as they could be, drawn at random."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from megatron_sbp.comparison.results import ArmRun

LOSSES = {
    "repetition": 2.60,
    "repetition-tuned": 2.12,
    "equal-compute": 2.71,
    "random-pairs": 2.31,
    "sbp": 1.97,
    "sbp-tuned": 1.95,
    "oracle": 1.88,
}
FLOOR = {
    "all": {"per_token": 1.71, "per_structure_token": 1.2, "per_value_token": 1.5},
    "told": {"per_token": 1.79, "per_structure_token": 1.2, "per_value_token": 2.1},
    "none": {"per_token": 2.52, "per_structure_token": 1.2, "per_value_token": 3.5},
}
DOCUMENTS, STEPS, TOKENS = 120, 50, 2_200_000


def source(kind: str, tokens: int, seen: int) -> dict[str, Any]:
    """A row of a run's ledger."""
    row = {"prefix": f"corpus/{kind}", "kind": kind, "documents": tokens // 25, "tokens": tokens}
    return row | {"tokens_seen": seen, "epochs": seen / tokens}


def simulate(
    losses: Mapping[str, float] = LOSSES,
    seeds: Sequence[int] = (1, 2, 3),
    *,
    noise: float = 0.03,
    state: int = 5,
    **fields: Any,
) -> list[ArmRun]:
    """One run per arm and seed; arms share the difficulty of the documents.

    Args:
        losses: Arm -> nats per token, on average.
        seeds: Of the runs.
        noise: Standard deviation over seeds.
        state: Of the random numbers.
        fields: Given to every run.
    """
    random = np.random.default_rng(state)
    tokens = random.integers(5, 60, DOCUMENTS)
    hard = random.normal(1, 0.2, DOCUMENTS)
    return [
        _run(random, arm, seed, tokens, hard * (mean + random.normal(0, noise)), fields)
        for arm, mean in losses.items()
        for seed in seeds
    ]


def _run(
    random: np.random.Generator,
    arm: str,
    seed: int,
    tokens: np.ndarray,
    per_token: np.ndarray,
    fields: dict[str, Any],
) -> ArmRun:
    loss = tokens * per_token * random.normal(1, 0.05, len(tokens))
    synthetic = "sbp" in arm or arm == "random-pairs"
    total = TOKENS * (2 if arm == "equal-compute" else 1)
    unique = TOKENS if arm == "oracle" else TOKENS // 20
    shares = {"real": 0.625, "synthetic": 0.375} if synthetic else {"real": 1.0}
    made: dict[str, Any] = {
        "training_tokens": total,
        "flop": 6e6 * total * (1.9 if synthetic else 1),
        "iterations": STEPS,
        "curve": [
            (step, 1.9 + 3 * np.exp(-step / 12) + (0.012 * step if arm == "repetition" else 0))
            for step in range(5, STEPS + 1, 5)
        ],
        "training_curve": [
            (step, 1.5 + 4 * np.exp(-step / 9) + random.normal(0, 0.03))
            for step in range(1, STEPS + 1)
        ],
        "settings": {"weight-decay": 0.8 if "tuned" in arm else 0.1, "attention-dropout": 0.0},
        "sources": [
            source(kind, unique if kind == "real" else int(total * share), int(total * share))
            for kind, share in shares.items()
        ],
        "stages": {"pretrain": 6e6 * total} | ({"tune": 5.4e6 * total} if synthetic else {}),
    }
    return ArmRun(arm=arm, seed=seed, loss=loss, tokens=tokens, **made | fields)
