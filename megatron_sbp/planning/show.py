"""A plan as a table, with what each line was computed from."""

import math

from megatron_sbp import cli
from megatron_sbp.planning.machines import DEVICES
from megatron_sbp.planning.measured import Measured
from megatron_sbp.planning.paper import Comparison, compare
from megatron_sbp.planning.plan import Plan, Planned
from megatron_sbp.planning.risks import largest
from megatron_sbp.planning.units import si, size

_HOUR, _DAY = 3600, 86400
_WORTH = 0.05  # of the device-hours of pretraining that an exact search may cost
_COLUMNS = f"{'stage':<12}{'FLOP':>10}{'read':>10}{'stored':>10}{'files':>9}{'memory':>10}"
_TIMES = f"{'devices':>9}{'time':>10}{'device-hours':>14}"


def show(plan: Plan, measured: Measured | None) -> None:
    """Print the plan, and beside it what a run of the recipe took."""
    run, shape = plan.run, plan.shape
    print(
        f"{plan.options.recipe} on {plan.options.nodes:,} x {run.devices // plan.options.nodes} "
        f"{run.gpu}: {plan.text.documents:,.0f} documents, {plan.text.tokens:.4g} tokens; "
        f"{shape.parameters:,} parameters\n"
    )
    print(_COLUMNS + _TIMES + (f"{'measured':>11}{'off':>7}" if measured else ""))
    for planned in plan.stages:
        print(_row(planned) + (_beside(planned, measured) if measured else ""))
    _totals(plan)
    _formulas(plan)
    _search(plan)
    if comparison := compare(plan):
        _paper(comparison)
    print("\nnearest to its limit, or above it")
    for risk in largest(plan):
        print(f"  {risk.share:>7.0%}  {risk.what}: {si(risk.value)} of {si(risk.limit)}; "
              f"cure: {risk.cure}")  # fmt: skip


def _row(planned: Planned) -> str:
    stage = planned.stage
    return (
        f"{stage.name:<12}{stage.work.products:>10.3g}{size(stage.read):>10}"
        f"{size(stage.stored):>10}{stage.files:>9,}"
        f"{size(stage.memory) if stage.memory else '-':>10}"
        f"{planned.devices:>9,}{_duration(planned.seconds):>10}{planned.device_hours:>14,.4g}"
    )


def _beside(planned: Planned, measured: Measured) -> str:
    seconds = measured.seconds.get(planned.stage.name)
    if seconds is None:
        return f"{'-':>11}"
    return f"{_duration(seconds):>11}{planned.seconds / seconds - 1:>+7.0%}"


def _totals(plan: Plan) -> None:
    known = [planned for planned in plan.stages if not math.isnan(planned.seconds)]
    seconds = sum(planned.seconds for planned in known)
    hours = sum(planned.device_hours for planned in known)
    print(f"{'all':<12}{'':>49}{'':>9}{_duration(seconds):>10}{hours:>14,.4g}")


def _formulas(plan: Plan) -> None:
    print("\nwhat it is computed from")
    for planned in plan.stages:
        if planned.stage.flop:
            print(f"  {planned.stage.name}: {planned.stage.flop}")
    if plan.on_cpu:
        print("  times: fitted to jobs on a CPU, at this machine's speed of now; docs/planning.md")
        return
    device = DEVICES[plan.run.gpu]
    print(
        f"  times: shares of the ceilings of {device.name}, assumed: training "
        + ", ".join(f"{share:.0%} of {name}" for name, share in device.training.items())
        + f", reading {device.reading:.0%} of bf16, drawing {device.decoding:.0%} of "
        f"{device.bandwidth / 1e12:.3g} TB/s; docs/planning.md"
    )


def _search(plan: Plan) -> None:
    """Which search to mine with, and why."""
    hours = {name: cost.rank_hours for name, cost in plan.searches().items()}
    training = next(p.device_hours for p in plan.stages if p.stage.name == "sbp")
    share = f"{hours['exact'] / training:.2%}"
    best = (
        "exact"
        if hours["exact"] <= _WORTH * training or hours["exact"] <= hours["clusters"]
        else "clusters"
    )
    why = "exact search finds every pair and costs" if best == "exact" else "exact search costs"
    print(
        f"\nmine with --search {best}: {why} {hours['exact']:,.4g} device-hours, {share} of the "
        f"joint run's; clusters {hours['clusters']:,.4g}, with recall to be measured"
    )


def _paper(comparison: Comparison) -> None:
    """The paper's hours, what they mean for the joint run, and what the plan would make of them."""
    device, total = comparison.device, sum(comparison.planned.values())
    stages = ", ".join(f"{name} {hours:,.0f}" for name, hours in comparison.planned.items())
    print(
        f"\nthe paper states {comparison.stated:,.0f} hours of {device.name}, not of what\n"
        f"  the joint run's {comparison.flop:.3g} FLOP at {device.flops['bf16'] / 1e12:,.0f} "
        f"TFLOP/s: {comparison.at_ceiling:,.0f} hours; if those are of this run alone, it reached "
        f"{comparison.utilisation:.1%}\n"
        f"  at the shares assumed here, {device.training['bf16']:.0%} in training: {stages}; "
        f"{total:,.0f} in all, {total / comparison.stated:.2g} times the paper's; docs/planning.md"
    )


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "?"
    if seconds < _HOUR:
        return cli.clock(seconds)
    return f"{seconds / _HOUR:,.1f} h" if seconds < 4 * _DAY else f"{seconds / _DAY:,.1f} d"
