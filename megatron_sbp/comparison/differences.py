"""How far apart two arms are, and how much of the oracle's gain one recovers."""

from typing import Any

import numpy as np

from megatron_sbp.comparison.arm_run import Runs, common_seeds, means
from megatron_sbp.comparison.statistics import Ratios, fieller, t_interval
from megatron_sbp.evaluation.intervals import Interval, bootstrap

REFERENCES = ("repetition", "repetition-tuned", "equal-compute", "random-pairs")
"""What every other arm is compared with."""
BASES = ("repetition", "repetition-tuned")
"""From where the oracle's gain is counted."""
ORACLE = "oracle"

BETTER, WORSE, NOISE, UNKNOWN = "better", "worse", "inside the noise", "cannot be told"


def differences(runs: Runs) -> list[dict[str, Any]]:
    """Every arm minus every reference, over the seeds that both have; each pair of arms once.

    Returns:
        Rows of arm, reference, seeds, difference (nats per token; below 0 the arm is better),
        by_seed (t interval over seeds: what another seed would give, on these documents),
        by_document (bootstrap over documents, seeds averaged: what other held-out documents would
        give, with these runs) and verdict.
    """
    return [
        _difference(runs, arm, reference, seeds)
        for place, reference in enumerate(REFERENCES)
        for arm in runs
        if arm not in REFERENCES[: place + 1] and (seeds := common_seeds(runs, arm, reference))
    ]


def _difference(runs: Runs, arm: str, reference: str, seeds: list[int]) -> dict[str, Any]:
    apart = means(runs, arm, seeds) - means(runs, reference, seeds)
    documents = np.mean(
        [runs[arm][seed].loss - runs[reference][seed].loss for seed in seeds], axis=0
    )
    by_seed = t_interval(apart)
    by_document = bootstrap(documents, runs[arm][seeds[0]].tokens)
    return {
        "arm": arm,
        "reference": reference,
        "seeds": len(seeds),
        "difference": float(apart.mean()),
        "by_seed": by_seed,
        "by_document": by_document,
        "verdict": verdict(by_seed, by_document),
    }


def verdict(by_seed: Interval | None, by_document: Interval | None) -> str:
    """Better or worse only if both intervals lie on one side of 0."""
    if by_seed is None or by_document is None:
        return UNKNOWN
    low, high = min(by_seed[0], by_document[0]), max(by_seed[1], by_document[1])
    return BETTER if high < 0 else WORSE if low > 0 else NOISE


def recovered(runs: Runs) -> list[dict[str, Any]]:
    """Shares of the oracle's gain over a base, over the seeds that arm, base and oracle have.

    Returns:
        Rows of arm, base, seeds, gain and oracle_gain (nats per token), share (their ratio; None
        if the oracle gained nothing), interval (``kind``, ``low``, ``high`` of ``fieller``; None
        for one seed).
    """
    rows = []
    for base in BASES:
        for arm in runs:
            seeds = common_seeds(runs, arm, base, ORACLE)
            if not seeds or arm in (BASES[0], base, ORACLE):
                continue
            start = means(runs, base, seeds)
            gain, oracle_gain = start - means(runs, arm, seeds), start - means(runs, ORACLE, seeds)
            some = oracle_gain.mean() > 0
            rows.append(
                {
                    "arm": arm,
                    "base": base,
                    "seeds": len(seeds),
                    "gain": float(gain.mean()),
                    "oracle_gain": float(oracle_gain.mean()),
                    "share": float(gain.mean() / oracle_gain.mean()) if some else None,
                    "interval": _plain(fieller(gain, oracle_gain)) if some else None,
                }
            )
    return rows


def _plain(ratios: Ratios | None) -> dict[str, Any] | None:
    if ratios is None:
        return None
    return {"kind": ratios.kind, "low": ratios.low, "high": ratios.high}
