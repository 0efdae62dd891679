"""The whole loop of a recipe on some machines: what every stage costs."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from megatron_sbp import recipes
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.planning import mining, rates, work
from megatron_sbp.planning.machines import DEVICES, Device
from megatron_sbp.planning.measured import Measured
from megatron_sbp.planning.work import Rates, Stage, Text
from megatron_sbp.recipes.memory import device_memory
from megatron_sbp.recipes.run import Run, RunOptions
from megatron_sbp.recipes.shape import Shape

_CPU = "cpu"
_VOCABULARY = 49152  # as in the recipes
_PAIRS = 16.0  # of a document, where nothing says it
_WIDTH = {"fp32": 4, "bf16": 2}
# Where a recipe does not say: the commands' own.
_HELDOUT_SHARE, _NEIGHBORS, _LEARNED = 0.05, 32, 100_000
_MOST_AT_WORK = 512  # documents on a GPU; more are hardly faster and need longer to drain
# Encoders that recipes name: shape, most tokens that they read by default, dimensions.
_QWEN = Shape(layers=28, hidden=1024, ffn=3072, heads=16, groups=8, channels=128, vocabulary=151669)
_MINILM = Shape(
    layers=6, hidden=384, ffn=1536, heads=12, groups=12, channels=32, vocabulary=30522, gated=False
)
_ENCODERS = {
    "Qwen/Qwen3-Embedding-0.6B": (_QWEN, 32768, 1024),
    "minilm": (_MINILM, 256, 384),
    "lexical": (None, 1 << 31, 256),
}


@dataclass(kw_only=True, slots=True)
class PlanOptions(RunOptions):
    """Options of ``tools/plan.py``."""

    recipe: str = "3b_200b"
    """Name of a recipe or path of a file."""
    corpus: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Prefixes of the real documents that are trained on, whose lengths are read; or give the next
    two."""
    documents: float = 0
    """Documents of the real corpus; 0: the recipe's."""
    tokens: float = 0
    """Its tokens; 0: the recipe's."""
    vocabulary: int = field(default=0, metadata={"metavar": "IDS"})
    """Ids of the tokenizer; 0: the recipe's, or 49,152."""
    pairs_per_document: float = 0
    """Neighbours above the threshold of a document, on average; 0: as the run of --measured found,
    or 16."""
    cores_per_node: int = 0
    """CPU cores of a machine; 0: 64 beside GPUs, without them those of this machine."""
    measured: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Directory of a finished run of this recipe: its measured times beside the planned ones."""

    def text(self, recipe: recipes.Recipe) -> Text:
        """The size of the real corpus.

        Raises:
            InputError: If nothing says it.
        """
        if self.corpus:
            return Text.of(Corpus(self.corpus))
        section: dict[str, Any] = recipe.get("corpus", {})
        documents = self.documents or float(section.get("documents", 0))
        tokens = self.tokens or float(section.get("tokens", 0))
        if documents < 1 or tokens < documents:
            raise InputError(
                f"{self.recipe}: does not say how large the corpus is; give --corpus PREFIX, or "
                "--documents and --tokens"
            )
        return Text(documents=documents, tokens=tokens)

    def pairs(self) -> float:
        """Neighbours above the threshold of a document, on average."""
        if self.pairs_per_document or not self.measured:
            return self.pairs_per_document or _PAIRS
        mined = Measured.read(self.measured).manifests.get("mine")
        return mined.counts["candidates"] / mined.counts["documents"] if mined else _PAIRS


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A stage with its cost."""

    stage: Stage
    devices: int
    """GPUs, or cores, that it runs on."""
    seconds: float
    """From start to end."""

    @property
    def device_hours(self) -> float:
        """Of all devices."""
        return self.seconds * self.devices / 3600


class Plan:
    """What every stage of a recipe costs.

    Args:
        options: Recipe, corpus and machines.
        known: Rates of a CPU's stages; by default the published ones. Without those of a stage its
            time is nan.

    Raises:
        InputError: If recipe, corpus or machine do not say enough.
    """

    def __init__(self, options: PlanOptions, known: Mapping[str, Rates] | None = None):
        recipe = recipes.load(options.recipe)
        self.options, self.run = options, Run(options.recipe, recipe, options)
        self.text = options.text(recipe)
        """The real documents that are trained on."""
        share = float(self.run.flags("preprocess").get("heldout-share", _HELDOUT_SHARE))
        self._kept = 1 - share
        self._mined = replace(
            self.text,
            documents=self.text.documents / self._kept,
            tokens=self.text.tokens / self._kept,
        )
        self._pairs = options.pairs()
        self._neighbors = int(self.run.flags("mine").get("neighbors", _NEIGHBORS))
        self._flags = self.run.flags("pretrain")
        vocabulary = options.vocabulary or self.run.vocabulary or _VOCABULARY
        self.shape = Shape.of(self._flags, vocabulary)
        """The model."""
        self.on_cpu = self.run.gpu == _CPU
        """Whether no stage has a GPU."""
        per_node = options.cores_per_node or (len(os.sched_getaffinity(0)) if self.on_cpu else 64)
        self.cores = options.nodes * per_node
        """CPU cores."""
        self.devices = self.cores if self.on_cpu else self.run.devices
        """GPUs, or cores where there are none."""
        self.rates = dict(rates.of_cpu(here=self.on_cpu) if known is None else known)
        if not self.on_cpu:
            precision = "fp8" if "fp8-format" in self._flags else "bf16"
            self.rates |= rates.of_gpu(DEVICES[self.run.gpu], precision)
        self.stages = list(self._stages())
        """In the order of the loop."""

    def _stages(self) -> Iterator[Planned]:
        yield self._cost(self._embed())
        yield self._mine()
        yield self._cost(self._train("repetition", "pretrain"))
        yield self._cost(self._train("tune", "tune"))
        synthetic = self._synthesize(DEVICES.get(self.run.gpu))
        yield self._cost(synthetic)
        drawn = Text(documents=synthetic.notes["documents"], tokens=synthetic.notes["tokens"])
        yield self._cost(work.filter_synthetic(drawn, self.text))
        yield self._cost(self._train("sbp", "pretrain"))

    def _cost(self, stage: Stage) -> Planned:
        devices = self.cores if stage.kind in rates.ON_CPU else self.devices
        rate = self.rates.get(stage.kind)
        seconds = rate.seconds(stage.work, devices) if rate else math.nan
        return Planned(stage=stage, devices=devices, seconds=seconds)

    def _embed(self) -> Stage:
        flags = self.run.flags("embed")
        name = str(flags.get("encoder", "minilm"))
        encoder, limit, dimensions = _ENCODERS.get(name, (self.shape, 1 << 31, self.shape.hidden))
        return work.embed(
            self._mined,
            encoder,
            limit=min(limit, int(flags.get("max-length", limit))),
            dimensions=int(flags.get("dimensions", dimensions) or dimensions),
            per_shard=int(flags.get("documents-per-shard", 65536)),
            learned=int(flags.get("fit-documents", 0)) or _LEARNED,
        )

    def searches(self) -> dict[str, mining.Cost]:
        """What mining costs with each search."""
        name = str(self.run.flags("embed").get("encoder", "minilm"))
        dimensions = _ENCODERS.get(name, (None, 0, self.shape.hidden))[2]
        options = mining.PlanOptions(
            documents=self._mined.documents,
            dimensions=dimensions,
            pairs_per_document=self._pairs,
            neighbors=self._neighbors,
            ranks=self.devices,
            machine=next(kind for kind in mining.known_rates() if kind != "h200")
            if self.on_cpu
            else "h200",
            product_rate=0 if self.on_cpu else 0.8e-12 * DEVICES[self.run.gpu].flops["bf16"],
            memory="4G" if self.on_cpu else "64G",
        )
        return {"exact": mining.plan_exact(options), "clusters": mining.plan_clusters(options)}

    def _mine(self) -> Planned:
        search = str(self.run.flags("mine").get("search", "exact"))
        if search not in ("exact", "clusters"):
            raise InputError(f"{self.options.recipe}: mining with {search} is not planned for; "
                             "set search to exact or clusters")  # fmt: skip
        cost = self.searches()[search]
        filters = work.filter_pairs(cost.work.candidates, self._mined)
        seconds = cost.seconds
        if self.on_cpu and "mine" in self.rates:
            seconds += self.rates["mine"].seconds(filters, self.devices)
        stage = Stage(
            name="mine",
            kind="mine",
            work=replace(filters, products=cost.work.products + cost.work.placing),
            flop=f"2 x {cost.work.tests:.3g} pairs compared x dimensions (docs/scaling.md)",
            read=cost.bytes_read,
            stored=cost.pair_bytes,
            files=int(cost.work.units),
            memory=cost.memory,
        )
        return Planned(stage=stage, devices=self.devices, seconds=seconds)

    def _train(self, name: str, section: str) -> Stage:
        flags = self.run.flags(section)
        iterations = int(flags["train-iters"])
        layout = self.run.layout(section)
        memory = 0.0 if self.on_cpu else device_memory(flags, layout, self.shape.vocabulary).total
        return work.train(
            name,
            self.shape,
            iterations=iterations,
            rows=int(flags["global-batch-size"]),
            sequence=int(flags["seq-length"]),
            evaluated=(iterations // int(flags["eval-interval"]) + 1) * self._heldout(name),
            evaluated_at_once=int(flags["eval-global-batch-size"]),
            saves=-(-iterations // int(flags["save-interval"])),
            kept=-(-iterations // int(flags.get("save-retain-interval") or flags["save-interval"])),
            memory=memory,
            devices=self.devices,
        )

    def _heldout(self, name: str) -> float:
        """Rows of one evaluation of a training run."""
        sequence = int(self._flags["seq-length"])
        if name != "tune":
            return (self._mined.tokens - self.text.tokens) / sequence
        # A pair is evaluated if both its documents are held out: with its own d1, and with another.
        found = min(self._pairs, self._neighbors)
        pairs = (1 - self._kept) ** 2 * self._mined.documents * found
        return 2 * pairs * 2 * self.text.cut(sequence / 2) / sequence

    def _synthesize(self, device: Device | None) -> Stage:
        """On some kind of device, None where there is no GPU."""
        flags = self.run.flags("synthesize")
        context = int(self._flags["max-position-embeddings"])
        prompt = new = self.text.cut(context / 2)
        tokens = float(flags["num-tokens"])
        width = _WIDTH[str(flags.get("dtype", "fp32"))]
        stage = work.synthesize(
            self.shape,
            documents=tokens / new,
            prompt=prompt,
            new=new,
            batch=self._at_work(device, prompt + new, width)
            if device
            else float(flags.get("batch-size", 64)),
            width=width,
            per_shard=int(flags.get("documents-per-shard", 1024)),
            devices=self.devices,
        )
        return stage if device else replace(stage, memory=0.0)

    def _at_work(self, device: Device, length: float, width: int) -> float:
        """Documents that a device holds at a time: as many as fit, up to a limit."""
        room = 0.9 * device.memory - self.shape.parameters * width
        if room <= 0:
            raise InputError(
                f"{device.name}: does not hold the model's {self.shape.parameters * width:.3g} "
                "bytes; generation over several GPUs is not planned for"
            )
        return min(_MOST_AT_WORK, room / (length * self.shape.cache_bytes(width)))

    def hours_on(self, device: Device) -> dict[str, float]:
        """Device-hours of the stages on another kind of device, in bf16, starts not counted.

        Mining and filtering are left out.
        """
        known = rates.of_gpu(device, "bf16")
        hours = {}
        for planned in self.stages:
            stage = planned.stage
            if stage.kind in known:
                if stage.kind == "synthesize":
                    stage = self._synthesize(device)
                hours[stage.name] = stage.work.times(known[stage.kind].each) / 3600
        return hours
