"""Options of ``tools/compare_arms.py``, some of which a recipe may give."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from megatron_sbp import cli, recipes
from megatron_sbp.comparison.arm_run import ARMS
from megatron_sbp.errors import InputError
from megatron_sbp.recipes.run import RunOptions


@dataclass(kw_only=True, slots=True)
class CompareOptions:
    """What is compared, on what, how often."""

    recipe: str
    """Name of a recipe or path of a file; its section `compare` gives any of the flags below."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory for the boxes of all stages, the logs and the report; called again with the same
    one, the command continues."""
    input: list[str] = field(default_factory=list, metadata={"metavar": "FILE"})
    """Documents, as tools/preprocess_documents.py takes them; not for a recipe that makes its
    corpus."""
    arms: list[str] = field(default_factory=lambda: list(ARMS))
    """What is compared."""
    seeds: list[int] = field(default_factory=lambda: [1, 2, 3])
    """Every arm is trained once with each of these: initialisation, order of documents, synthetic
    documents."""
    weight_decays: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    """What repetition-tuned and sbp-tuned choose from, with the first seed."""
    dropouts: list[float] = field(default_factory=lambda: [0.0, 0.1])
    """The same, of the dropout of hidden states and of attention, which are equal."""
    oracle_factor: int = field(default=20, metadata={"metavar": "TIMES"})
    """Documents of the oracle for every one that the other arms train on, of --input."""
    sensitivity: bool = False
    """Train the arm sbp also with every value of the recipe's section `sensitivity` in turn."""
    sensitivity_seeds: list[int] = field(default_factory=list)
    """Seeds of that, by default the first one."""
    set: list[str] = field(default_factory=list, metadata={"metavar": "FLAG=VALUE"})
    """Flags of the recipe to change for all arms: `--set lr=3e-3 tune.train-iters=100`."""
    jobs: int | None = None
    """Stages at work at a time, which share the cores evenly; by default one per core."""
    dry_run: bool = False
    """Make the corpus, print what would be run and the FLOP of each arm, and do no more."""

    def __post_init__(self) -> None:
        for name in ("seeds", "arms", "weight_decays", "dropouts", "sensitivity_seeds"):
            values = getattr(self, name)
            if len(values) > len(set(values)):
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {' '.join(map(str, values))}: give each of them once")
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise InputError(f"--arms {unknown[0]}: is no arm; there are {', '.join(ARMS)}")
        if min(self.seeds) < 0:
            raise InputError(f"--seeds {min(self.seeds)}: must be at least 0")
        if others := set(self.sensitivity_seeds) - set(self.seeds):
            raise InputError(f"--sensitivity-seeds {min(others)}: is not among --seeds")
        for name, least in (("oracle_factor", 2), ("jobs", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {value}: must be at least {least}")
        RunOptions(set=self.set)  # refuses what is no setting

    @property
    def at_a_time(self) -> int:
        """Stages that run side by side."""
        return self.jobs or len(os.sched_getaffinity(0))

    @property
    def cores(self) -> int:
        """Cores for each of them."""
        return max(1, len(os.sched_getaffinity(0)) // self.at_a_time)

    @property
    def varied_seeds(self) -> list[int]:
        """Seeds of the runs of the section ``sensitivity``."""
        return self.sensitivity_seeds or self.seeds[:1]


def parse(description: str, argv: Sequence[str]) -> CompareOptions:
    """Parse a command line, the recipe's ``compare`` section before it.

    Raises:
        InputError: If one of them has something wrong.
    """
    given = cli.parse(CompareOptions, description, argv)
    section = recipes.load(given.recipe).get("compare", {})
    return cli.parse(CompareOptions, description, [*recipes.arguments(section), *argv])
