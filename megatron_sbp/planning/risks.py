"""What a plan comes nearest to breaking: quantities beside what they must not exceed."""

import math
from dataclasses import dataclass

from megatron_sbp.planning.machines import DEVICES
from megatron_sbp.planning.plan import Plan, Planned

_PREFIX = 2**31  # documents of one .idx
_DIRECTORY = 100_000  # files, from which on many file systems are slow
_READING = 10e9  # bytes per second of a shared file system, assumed
_WRITING = 5e9
_PAUSE = 0.02  # share of a run that writing checkpoints may take, if nothing hides it


@dataclass(frozen=True, kw_only=True, slots=True)
class Risk:
    """A quantity and its limit."""

    what: str
    value: float
    limit: float
    cure: str

    @property
    def share(self) -> float:
        """Of the limit."""
        return self.value / self.limit


def largest(plan: Plan, count: int = 3) -> list[Risk]:
    """The quantities of a plan that are nearest to, or furthest above, their limits."""
    found = [risk for planned in plan.stages for risk in _of(plan, planned)]
    found.append(
        Risk(
            what="documents of the corpus, in one prefix",
            value=plan.text.documents,
            limit=_PREFIX,
            cure="a corpus of several prefixes",
        )
    )
    known = (risk for risk in found if not math.isnan(risk.share))
    return sorted(known, key=lambda risk: -risk.share)[:count]


def _of(plan: Plan, planned: Planned) -> list[Risk]:
    stage = planned.stage
    risks = [
        Risk(
            what=f"{stage.name}: bytes read a second",
            value=stage.read / planned.seconds,
            limit=_READING,
            cure="local copies, or fewer devices at a time",
        ),
        Risk(
            what=f"{stage.name}: files in a directory",
            value=stage.files,
            limit=_DIRECTORY,
            cure="larger shards",
        ),
    ]
    if stage.memory and not plan.on_cpu:
        risks.append(
            Risk(
                what=f"{stage.name}: bytes of a device",
                value=stage.memory,
                limit=DEVICES[plan.run.gpu].memory,
                cure="more tensor parallelism, or fewer documents at work",
            )
        )
    if saves := stage.notes.get("checkpoints"):
        risks.append(
            Risk(
                what=f"{stage.name}: seconds of writing checkpoints",
                value=saves * stage.notes["checkpoint"] / _WRITING,
                limit=_PAUSE * planned.seconds,
                cure="asynchronous saving, or a longer interval",
            )
        )
    return risks
