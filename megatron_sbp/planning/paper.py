"""The accelerator hours that the paper states, beside what a plan says of the same set-up."""

from dataclasses import dataclass

from megatron_sbp.planning.machines import DEVICES, Device
from megatron_sbp.planning.plan import Plan

DEVICE = DEVICES["v5p"]
HOURS = {"3b_200b": 11_000, "3b_1t": 59_000, "6b_1t": 265_000}
"""Recipe -> device-hours (arXiv 2509.15248)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A set-up of the paper: its hours, and ours on the same devices."""

    device: Device
    """What the paper ran on."""
    stated: float
    """Device-hours that it states. What they cover is not known."""
    flop: float
    """Operations of the joint run, as Megatron counts them."""
    planned: dict[str, float]
    """Stage -> device-hours at the shares of the ceilings that ``Device`` assumes, in bf16."""

    @property
    def at_ceiling(self) -> float:
        """Device-hours of the joint run if every product were done at the maker's rate."""
        return self.flop / self.device.flops["bf16"] / 3600

    @property
    def utilisation(self) -> float:
        """Share of the ceiling that was reached if the stated hours are of the joint run alone."""
        return self.at_ceiling / self.stated


def compare(plan: Plan) -> Comparison | None:
    """The comparison, if the plan is of one of the paper's set-ups as it stands."""
    options = plan.options
    if options.recipe not in HOURS or options.set or options.share is not None:
        return None
    joint = next(planned.stage for planned in plan.stages if planned.stage.name == "sbp")
    return Comparison(
        device=DEVICE,
        stated=HOURS[options.recipe],
        flop=joint.work.products,
        planned=plan.hours_on(DEVICE),
    )
