"""FLOP of every arm, counted by the formulas of ``tools/plan.py``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_sbp.manifest import Manifest
from megatron_sbp.planning.plan import Plan, PlanOptions
from megatron_sbp.recipes import Flags
from megatron_sbp.recipes.run import Run

_OF_SBP = ("embed", "repetition", "tune", "synthesize", "sbp")
_SYNTHETIC = ("sbp", "sbp-tuned", "random-pairs")
# What says how long a run is, and where its learning rate begins to fall and to rise.
_LENGTHS = tuple(
    f"{what}-{unit}"
    for what in ("train", "lr-warmup", "lr-decay", "lr-wsd-decay")
    for unit in ("iters", "samples")
)


class Cost:
    """What the stages of a recipe cost on a corpus.

    Args:
        recipe: Its name.
        choices: What is changed of it: fields of ``RunOptions``.
        real: Prefix of the documents that are embedded and that seeds are drawn from.
    """

    def __init__(self, recipe: str, choices: Mapping[str, Any], real: str):
        vocabulary = Manifest.read(Path(real).parent).counts["vocabulary"]
        options = PlanOptions(recipe=recipe, corpus=[real], vocabulary=vocabulary, **choices)
        plan = Plan(options, known={})  # no times are asked for
        planned = {each.stage.name: each.stage.work.products for each in plan.stages}
        flags, each = plan.run.flags("tune"), plan.shape.training_flop(plan.run.row)
        tuned = int(flags["train-iters"]) * int(flags["global-batch-size"]) * plan.run.row
        read = plan.run.training_rows() * plan.run.row
        # Evaluations, which a plan counts as well, make no model.
        planned |= {"repetition": each * read, "tune": each * tuned, "sbp": each * read}
        self.stages = {stage: planned[stage] for stage in _OF_SBP}
        """Stage -> FLOP; those that make SBP's model, and the run on real documents alone."""

    @property
    def sbp(self) -> float:
        """FLOP of all that makes SBP's model: the run that the synthesizer starts from as well."""
        return sum(self.stages.values())

    @property
    def times(self) -> float:
        """How many runs on real documents SBP costs."""
        return self.sbp / self.stages["repetition"]

    def of(self, arm: str) -> dict[str, float]:
        """Stage -> FLOP of one model of an arm."""
        if arm in _SYNTHETIC:
            return self.stages
        return {arm: self.stages["repetition"] * (self.times if arm == "equal-compute" else 1)}

    def longer(self, run: Run) -> Flags:
        """The lengths of a run on real documents that costs what SBP costs."""
        flags = run.flags("pretrain")
        return {
            flag: round(float(flags[flag]) * self.times) for flag in _LENGTHS if flags.get(flag)
        }
