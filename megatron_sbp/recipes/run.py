"""A recipe on a cluster: the arguments of one stage, for an arm, a machine and a precision.

The sections of a recipe:

* one for every command of the loop: ``preprocess`` or ``concepts``, ``embed``, ``mine``,
  ``synthesize``, ``filter``, ``audit``, ``evaluate``;
* ``train``: the flags of all training runs; ``pretrain`` and ``tune``: those of each kind of run;
* ``arms``: what each arm (repetition, sbp, oracle) adds to ``pretrain``;
* ``precision``: precision -> kind of device -> flags; the first one is the default;
* ``layouts``: kind of device -> number of devices -> flags of training runs; an entry holds from
  its number on, up to the next one. Data parallelism takes what its sizes leave;
* ``sizes``: number of devices -> flags of training runs, for all kinds;
* ``synthetic``: ``oversampling``, tokens synthesized per token wanted, as filters take some;
* ``compare``: the flags of ``tools/compare_arms.py``; ``sensitivity``: flag, as ``--set`` takes it,
  -> values that it tries in turn.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from megatron_sbp.errors import InputError
from megatron_sbp.recipes import Flags, Recipe

Stage = Literal[
    "preprocess",
    "concepts",
    "embed",
    "mine",
    "pretrain",
    "tune",
    "synthesize",
    "filter",
    "audit",
    "evaluate",
]
Arm = Literal["repetition", "sbp", "oracle"]
Gpu = Literal["h100", "h200", "b200", "cpu"]
Precision = Literal["fp8", "bf16"]
STAGES: tuple[Stage, ...] = get_args(Stage)
ARMS: tuple[Arm, ...] = get_args(Arm)
TRAINING = ("pretrain", "tune")

_CPU = "cpu"
_DEVICES_PER_NODE = 8  # of the machines that these GPUs come in
_MOST_DEVICES = 1 << 16
# Section -> mappings in each other, the flags of the innermost ones not counted.
_LEVELS = {"arms": 1, "precision": 2, "layouts": 2, "sizes": 1}
_WORDS = {"true": True, "false": False, "null": None}
_SHARE = "sbp-synthetic-share"


@dataclass(kw_only=True, slots=True)
class RunOptions:
    """What a stage runs on, and which of the recipe's variants it is."""

    arm: Arm = "sbp"
    """Which of the runs that are compared `pretrain` is: real documents repeated; real and
    synthetic ones; as many real ones as it takes to repeat none."""
    nodes: int = 1
    """Machines of a training run."""
    gpus_per_node: int | None = field(default=None, metadata={"metavar": "DEVICES"})
    """Training processes of each of them, which have a GPU each; by default 8, or 1 without
    GPUs."""
    gpu: Gpu | None = None
    """Kind of device, by default the first one that the recipe has a lay-out for."""
    precision: Precision | None = None
    """What matrix products are computed in, by default the first one that the recipe names."""
    share: float | None = None
    """Share of the joint run's tokens that is synthetic, from 0 to 1, by default the recipe's."""
    set: list[str] = field(default_factory=list, metadata={"metavar": "FLAG=VALUE"})
    """Flags to change or add: `--set lr=3e-3 tune.lr=1e-3 mine.neighbors=4 swiglu=false`. One with
    the name of a stage before it is for that alone, one without for both kinds of training. true
    gives the bare flag, null leaves it out; false leaves it out for training, and gives a tool
    `--no-FLAG`."""

    def __post_init__(self) -> None:
        for flag, value in (("nodes", self.nodes), ("gpus-per-node", self.gpus_per_node)):
            if value is not None and value < 1:
                raise InputError(f"--{flag} {value}: must be at least 1")
        if self.share is not None and not 0 <= self.share < 1:
            raise InputError(f"--share {self.share}: must be from 0 to below 1")
        for setting in self.set:
            name, sign, _ = setting.partition("=")
            if not sign:
                raise InputError(f"--set {setting}: is not FLAG=VALUE")
            section = name.lstrip("-").rpartition(".")[0]
            if section not in ("", "train", *STAGES):
                raise InputError(
                    f"--set {setting}: {section} is no stage; there are {', '.join(STAGES)}"
                )


@dataclass(frozen=True, slots=True)
class Layout:
    """How the processes of a training run share the model and the batch."""

    tensor: int
    pipeline: int
    context: int
    data: int
    micro_batch: int
    """Rows that a process takes at a time."""
    accumulated: int
    """Micro-batches of a process in a step."""

    @property
    def devices(self) -> int:
        """All processes."""
        return self.tensor * self.pipeline * self.context * self.data


class Run:
    """One recipe with the choices made.

    Args:
        name: The recipe's, for errors.
        recipe: What ``recipes.load`` returned.
        options: The choices.

    Raises:
        InputError: If the recipe has no such device, precision or lay-out.
    """

    def __init__(self, name: str, recipe: Recipe, options: RunOptions):
        self._name, self._recipe, self._options = name, recipe, options
        for section, levels in _LEVELS.items():
            self._check_mappings(section, recipe.get(section, {}), levels)
        self.arm = options.arm
        """Which of the runs that are compared `pretrain` is."""
        layouts = recipe.get("layouts", {})
        self.gpu: str = options.gpu or next(iter(layouts), _CPU)
        """Kind of device."""
        if layouts and self.gpu not in layouts:
            raise InputError(f"--gpu {self.gpu}: {name} has lay-outs for {', '.join(layouts)}")
        per_node = options.gpus_per_node or (1 if self.gpu == _CPU else _DEVICES_PER_NODE)
        self.devices = options.nodes * per_node
        """Processes of a training run."""

    def _check_mappings(self, place: str, entries: Flags, levels: int) -> None:
        """Refuse sections that are not as many mappings in each other as they should be."""
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                raise InputError(f"{self._name}: {place}.{name} is {entry!r:.40}, no mapping")
            if levels > 1:
                self._check_mappings(f"{place}.{name}", entry, levels - 1)
            counts = entry if place == "layouts" else [name] if place == "sizes" else []
            for count in counts:
                if type(count) is not int or not 1 <= count <= _MOST_DEVICES:
                    raise InputError(
                        f"{self._name}: {place} has an entry for {count!r:.40} devices; give a "
                        f"whole number from 1 to {_MOST_DEVICES}"
                    )

    def flags(self, stage: str) -> Flags:
        """The flags of a stage, all but paths.

        Raises:
            InputError: If the recipe lacks something for it.
        """
        recipe = self._recipe
        if stage in TRAINING:
            flags = self._training(stage)
            return flags | self._batches(flags, self.layout(stage))
        flags = recipe.get(stage, {}) | self._settings(stage)
        if stage == "synthesize" and "arms" in recipe:
            flags = {"num-tokens": self.tokens_to_synthesize()} | flags
        off = [flag for flag, value in flags.items() if value is False and flag[:3] != "no-"]
        # Every switch of a tool has this form of it, which no flag of Megatron has.
        return flags | {f"no-{flag}": True for flag in off}

    def _training(self, stage: str, devices: int | None = None) -> Flags:
        """The flags of a training run on so many devices, before its batch is divided."""
        recipe = self._recipe
        flags = recipe.get("train", {}) | recipe.get(stage, {}) | self._precision()
        flags |= self._of_size(devices or self.devices)
        if stage == "pretrain":
            flags |= recipe.get("arms", {}).get(self.arm, {})
            if self.arm == "sbp" and self._options.share is not None:
                flags[_SHARE] = self._options.share
        return flags | self._settings(stage)

    def _settings(self, stage: str) -> Flags:
        """What ``--set`` says about a stage; several words are several values."""
        flags: Flags = {}
        for setting in self._options.set:
            name, _, value = setting.partition("=")
            section, _, flag = name.lstrip("-").rpartition(".")
            if section == stage or (section in ("", "train") and stage in TRAINING):
                words = value.split()
                flags[flag] = words if len(words) > 1 else _WORDS.get(value, value)
        return flags

    def _number(self, flags: Flags, flag: str) -> int:
        """A flag of a training run that must be there."""
        found = flags.get(flag, "missing")
        try:
            number = int(found)
        except (TypeError, ValueError, OverflowError):
            number = 0
        if not 1 <= number < 1 << 62:
            raise InputError(
                f"{self._name}: {flag} is {found!s:.40}; give it a whole number above 0"
            )
        return number

    def _precision(self) -> Flags:
        precisions = self._recipe.get("precision", {})
        if not precisions and self._options.precision is None:
            return {}
        name: str = self._options.precision or next(iter(precisions))
        for_devices = precisions.get(name, {})
        if self.gpu not in for_devices:
            known = [name for name, devices in precisions.items() if self.gpu in devices]
            raise InputError(
                f"--precision {name}: {self._name} has {', '.join(known) or 'no choice of it'} "
                f"for {self.gpu}"
            )
        return for_devices[self.gpu]

    def _of_size(self, devices: int) -> Flags:
        """What the lay-outs and the sizes say about so many devices."""
        if self._layouts and devices < min(self._layouts):
            raise InputError(
                f"{self._name} has lay-outs from {min(self._layouts)} {self.gpu} on, not for "
                f"{devices}: change --nodes or --gpus-per-node"
            )
        sizes: dict[int, Flags] = self._recipe.get("sizes", {})  # type: ignore[assignment]
        flags: Flags = {}
        for entries in (self._layouts, sizes):
            if below := [count for count in entries if count <= devices]:
                flags |= entries[max(below)]
        return flags

    @property
    def _layouts(self) -> dict[int, Flags]:
        return self._recipe.get("layouts", {}).get(self.gpu, {})

    def layout(self, stage: str) -> Layout:
        """How this run's processes share the model and the batch.

        Raises:
            InputError: If the global batch cannot be divided over them; names numbers that can be.
        """
        layout = self._divided(stage, self.devices)
        if layout is None:
            flags = self._training(stage)
            near = ", ".join(map(str, self._nearest(stage))) or "none"
            raise InputError(
                f"{self.devices} {self.gpu}: a global batch of {flags['global-batch-size']} rows, "
                f"{flags['micro-batch-size']} at a time, cannot be divided over them; the nearest "
                f"numbers that it can be: {near}"
            )
        return layout

    def _divided(self, stage: str, devices: int) -> Layout | None:
        flags = self._training(stage, devices)
        tensor, pipeline, context = (
            self._number({f"{kind}-parallel-size": 1} | flags, f"{kind}-parallel-size")
            for kind in ("tensor-model", "pipeline-model", "context")
        )
        batch = self._number(flags, "global-batch-size")
        micro_batch = self._number(flags, "micro-batch-size")
        data, rest = divmod(devices, tensor * pipeline * context)
        if rest or not data or batch % (data * micro_batch):
            return None
        return Layout(tensor, pipeline, context, data, micro_batch, batch // (data * micro_batch))

    def _nearest(self, stage: str) -> list[int]:
        """The next lower and the next higher number of devices that the batch can go over."""
        entries = self._layouts or {1: {}}
        lower = range(self.devices - 1, min(entries) - 1, -1)
        higher = range(self.devices + 1, 2 * max(self.devices, *entries) + 1)
        found = [
            next((count for count in counts if self._divided(stage, count)), None)
            for counts in (lower, higher)
        ]
        return [count for count in found if count is not None]

    def _batches(self, flags: Flags, layout: Layout) -> Flags:
        """What follows from the lay-out: evaluation takes one micro-batch of every rank a step."""
        if "eval-micro-batch-size" not in flags:
            return {}
        return {
            "eval-global-batch-size": self._number(flags, "eval-micro-batch-size") * layout.data
        }

    @property
    def vocabulary(self) -> int | None:
        """Ids of the tokenizer, None if the recipe trains none."""
        flags = self._recipe.get("preprocess", {})
        if flags.get("train-tokenizer") is None:
            return None
        return self._number(flags, "train-tokenizer")

    def training_rows(self) -> int:
        """Sequences that each arm of ``pretrain`` trains on."""
        flags = self._training("pretrain")
        if flags.get("train-samples"):
            return self._number(flags, "train-samples")
        return self._number(flags, "train-iters") * self._number(flags, "global-batch-size")

    @property
    def row(self) -> int:
        """Tokens of a sequence that ``pretrain`` trains on."""
        return self._number(self._training("pretrain"), "seq-length")

    def synthetic_share(self) -> float:
        """Share of the joint run's tokens that is synthetic.

        Raises:
            InputError: If neither the recipe nor the options say.
        """
        arm = self._recipe.get("arms", {}).get("sbp", {})
        share = self._options.share if self._options.share is not None else arm.get(_SHARE)
        if share is None:
            raise InputError(f"{self._name}: the sbp arm has no {_SHARE}; give --share")
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise InputError(f"{self._name}: {_SHARE} is {share!r:.40}; give 0 or more, below 1")
        return float(share)

    def tokens_to_synthesize(self) -> int:
        """Enough for the share after the filters have taken theirs."""
        wanted = self.synthetic_share() * self.training_rows() * self.row
        times = self._recipe.get("synthetic", {}).get("oversampling", 1)
        if not isinstance(times, int | float) or not 1 <= times < math.inf:
            raise InputError(f"{self._name}: oversampling is {times!r:.40}; give 1 or more")
        return math.ceil(wanted * times)
