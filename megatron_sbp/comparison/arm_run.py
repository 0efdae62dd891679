"""One training run of one arm, as far as the comparison looks at it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ARMS = {
    "repetition": "real documents, repeated",
    "repetition-tuned": "repetition with the best weight decay and dropout of a sweep",
    "equal-compute": "repetition, trained for the compute of all of SBP",
    "random-pairs": "sbp, the synthesizer tuned on random pairs",
    "sbp": "real documents and synthetic ones",
    "sbp-tuned": "sbp with the weight decay and dropout of repetition-tuned",
    "oracle": "many more real documents",
}
"""Arm -> what its model reads; in the order of the tables."""


@dataclass(kw_only=True, slots=True, eq=False)
class ArmRun:
    """What a run was, and what it loses on the held-out documents."""

    arm: str
    """One of ``ARMS``; others are shown after these."""
    seed: int
    """Of the initialisation and the order of the data; arms are paired by it."""
    loss: np.ndarray
    """float64 [documents], nats of all tokens of each held-out document."""
    tokens: np.ndarray
    """int64 [documents], tokens that these are of."""
    training_tokens: int
    """Positions that the run was trained on."""
    flop: float
    """Of all that the arm needs: this run and, for SBP, embedding, the run that the synthesizer
    starts from, tuning and synthesis."""
    iterations: int
    """Steps of the run."""
    curve: Sequence[tuple[int, float]] = ()
    """(iteration, held-out loss in nats per token), measured during training."""
    training_curve: Sequence[tuple[int, float]] = ()
    """(iteration, training loss in nats per token)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What distinguishes the arm, flag -> value: weight decay, dropout, synthetic share."""
    sources: Sequence[Mapping[str, Any]] = ()
    """The ledger of the run: what was read of each source."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Stage -> FLOP, adding up to ``flop``."""
    heldout: Mapping[str, int] = field(default_factory=dict)
    """Held-out source -> its documents, in the order of ``loss``; empty if there is but one."""
    parts: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Kind of token -> ``loss`` and ``tokens`` of tokens of this kind alone."""

    @property
    def mean(self) -> float:
        """Nats per token."""
        return float(self.loss.sum() / self.tokens.sum())


type Runs = dict[str, dict[int, ArmRun]]
"""Arm -> seed -> run."""


def common_seeds(runs: Runs, *arms: str) -> list[int]:
    """The seeds that all of some arms have, in order; none if an arm was not run."""
    return sorted(set.intersection(*(set(runs.get(arm, {})) for arm in arms)))


def means(runs: Runs, arm: str, seeds: list[int]) -> np.ndarray:
    """Nats per token of the runs of some seeds, float64 [seeds]."""
    return np.array([runs[arm][seed].mean for seed in seeds])
