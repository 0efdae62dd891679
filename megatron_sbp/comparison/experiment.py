"""The jobs of a whole comparison, and which of them are the runs of which arm."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from megatron_sbp import recipes
from megatron_sbp.comparison.branch import SHARE, Branch, changed_by, evaluation_of
from megatron_sbp.comparison.cost import Cost
from megatron_sbp.comparison.job import Job
from megatron_sbp.comparison.options import CompareOptions
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.recipes import Flags

SENSITIVITY = "sensitivity"
_ALONE = ("repetition", "oracle")  # arms without synthetic documents
_REGULARISED = ("weight-decay", "hidden-dropout", "attention-dropout")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tried:
    """A training run of the sweep."""

    flags: Flags
    """What it was run with."""
    name: str
    """The run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Varied:
    """The recipe with one flag changed."""

    knob: str
    value: Any
    branch: Branch
    runs: dict[int, dict[str, str]]
    """Seed -> arm -> run: sbp, and where they differ from the recipe's, repetition and oracle."""
    synthetic: dict[int, str]
    """Seed -> the synthetic documents."""


class Experiment:
    """The jobs of a comparison.

    Args:
        options: What is compared.

    Raises:
        InputError: If the recipe lacks something for it.
    """

    def __init__(self, options: CompareOptions):
        self.options = options
        self.root = Path(options.output)
        self.recipe = recipes.load(options.recipe)
        if ("concepts" in self.recipe) == bool(options.input):
            has = "makes its own corpus; leave it out" if options.input else "needs documents"
            raise InputError(f"--input {' '.join(options.input)}: {options.recipe} {has}")
        self.jobs: dict[str, Job] = {}
        """Name -> job; those that should begin first come first."""
        self.main = Branch(self.jobs, options, self.recipe)
        self._runs = {
            arm: {seed: self._run(arm, seed) for seed in options.seeds}
            for arm in sorted(options.arms, key=self._order)
        }
        self.varied = list(self._vary()) if options.sensitivity else []

    @staticmethod
    def _order(arm: str) -> int:
        """Long runs and those that others wait for first."""
        first = ("equal-compute", "repetition", "repetition-tuned", "sbp", "random-pairs", "oracle")
        return first.index(arm) if arm in first else len(first)

    # Arms

    def _run(self, arm: str, seed: int) -> str:
        """Add what an arm needs with a seed; its training run."""
        branch = self.main
        if arm.endswith("-tuned"):
            return self._tuned(arm, seed)
        if arm in _ALONE:
            run = branch.on_real(arm, seed)
        elif arm == "equal-compute":
            longer = branch.run(seed, "repetition")
            run = branch.on_real(arm, seed, later=lambda: self.cost.longer(longer))
        else:
            run = branch.on_both(arm, seed)
        branch.evaluation(run)
        return run

    def _tuned(self, arm: str, seed: int) -> str:
        """The same of an arm whose weight decay and dropout the sweep decides."""
        needs = [evaluation_of(tried.name) for tried in self.sweep]

        def flags() -> Flags | None:
            return None if self._is_untuned(arm) else self.best.flags

        if arm == "sbp-tuned":
            run = self.main.on_both(arm, seed, settled=flags, needs=needs)
        elif seed == self.options.seeds[0]:
            return self.sweep[0].name  # or another one of these; see ``runs``
        else:
            run = self.main.on_real(arm, seed, later=flags, needs=needs)
        self.main.evaluation(run, lambda: None if flags() is None else {}, needs)
        return run

    def _is_untuned(self, arm: str) -> bool:
        """Whether the runs of a tuned arm are those of another arm, as the recipe was best."""
        return self._is_own(self.best.flags) and arm.removesuffix("-tuned") in self.options.arms

    @cached_property
    def cost(self) -> Cost:
        """FLOP of the recipe; the corpus must be there."""
        real = self.main.corpus().real
        return Cost(self.options.recipe, self.main.choices(), real)

    # The sweep

    @cached_property
    def sweep(self) -> list[Tried]:
        """Runs of repetition with the first seed that the tuned arms choose from."""
        seed = self.options.seeds[0]
        tried = []
        for decay, dropout in product(self.options.weight_decays, self.options.dropouts):
            flags = dict(zip(_REGULARISED, (decay, dropout, dropout), strict=True))
            name = "" if self._is_own(flags) else f"sweep/weight-decay={decay},dropout={dropout}"
            settings = [f"pretrain.{flag}={value}" for flag, value in flags.items()]
            run = self.main.on_real(
                "repetition",
                seed,
                name=name and f"runs/{name}/seed-{seed}",
                settings=settings if name else (),
            )
            self.main.evaluation(run)
            tried.append(Tried(flags=flags, name=run))
        return tried

    def _is_own(self, flags: Flags) -> bool:
        """Whether the recipe says the same."""
        own = self.main.run(arm="repetition").flags("pretrain")
        return all(float(own.get(flag, "nan")) == float(value) for flag, value in flags.items())

    @cached_property
    def best(self) -> Tried:
        """The run of the sweep with the least loss on the held-out documents."""
        return min(self.sweep, key=lambda tried: self.loss(tried.name))

    def loss(self, run: str) -> float:
        """Nats per token of a run on the held-out documents."""
        counts = Manifest.read(self.root / evaluation_of(run)).counts
        sources = counts["sources"].values()
        tokens = sum(source["tokens"] for source in sources)
        return float(sum(source["loss"] * source["tokens"] for source in sources) / tokens)

    # Results

    def runs(self) -> Iterator[tuple[str, int, str]]:
        """Arm, seed and training run, when all are done."""
        for arm, seeds in self._runs.items():
            for seed, run in seeds.items():
                if arm.endswith("-tuned") and self._is_untuned(arm):
                    run = self._runs[arm.removesuffix("-tuned")][seed]
                elif arm == "repetition-tuned" and seed == self.options.seeds[0]:
                    run = self.best.name
                yield arm, seed, run

    # Sensitivity

    def _vary(self) -> Iterator[Varied]:
        """The arm sbp with each value of each knob, where it is not the recipe's."""
        for knob, values in self.recipe.get(SENSITIVITY, {}).items():
            if not isinstance(values, list):
                raise InputError(f"{self.options.recipe}: {SENSITIVITY} {knob}: give a list")
            own = self.own(knob)
            for value in values:
                if _is_same(value, own):
                    continue
                branch = self._branch(knob, value)
                # Shares above the recipe's have their synthetic documents in common.
                more = knob == SHARE and value > own
                donor = self._branch(SHARE, max(values)) if more else branch
                synthetic = {seed: donor.synthetic(seed) for seed in self.options.varied_seeds}
                runs = {
                    seed: {
                        "sbp": branch.on_both("sbp", seed, filtered=filtered),
                        **{
                            arm: branch.on_real(arm, seed)
                            for arm in _ALONE
                            if arm in branch.changed
                        },
                    }
                    for seed, filtered in synthetic.items()
                }
                for arms in runs.values():
                    for run in arms.values():
                        branch.evaluation(run)
                yield Varied(knob=knob, value=value, branch=branch, runs=runs, synthetic=synthetic)

    def _branch(self, knob: str, value: Any) -> Branch:
        """The recipe with one flag changed."""
        changed = changed_by(knob)
        if knob == SHARE and value > self.own(SHARE):
            changed |= changed_by("synthesize.num-tokens")
        directory = f"{SENSITIVITY}/{knob}={value}"
        setting = [f"{knob}={value}"]
        return Branch(self.jobs, self.options, self.recipe, setting, directory, changed, self.main)

    def own(self, knob: str) -> Any:
        """The recipe's value of a knob, None if that is its command's default."""
        section, _, flag = knob.rpartition(".")
        run = self.main.run()
        if flag == SHARE:
            return run.synthetic_share()
        return run.flags("pretrain" if section == "train" else section).get(flag)


def _is_same(value: Any, other: Any) -> bool:
    """Whether two values of a flag are the same; one of them may be text."""
    try:
        return float(value) == float(other)
    except (TypeError, ValueError):
        return str(value) == str(other)
