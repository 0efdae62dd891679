"""The whole loop on this machine: every stage through its own command, one after another."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_sbp import cli, loop, recipes
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.recipes.run import STAGES, Arm, Run, RunOptions


@dataclass(kw_only=True, slots=True)
class QuickstartOptions:
    """Options of the quickstart."""

    output: str = "quickstart"
    """Directory for the boxes of all stages, the logs and the report."""
    input: list[str] = field(default_factory=lambda: ["python-docs"], metadata={"metavar": "FILE"})
    """Documents: JSON Lines, Parquet or text files, or the word python-docs for the documentation
    of the Python on this machine."""
    smoke: bool = False
    """Run the small size of the loop."""
    recipe: str | None = None
    """Recipe to run instead: a name in megatron_sbp/recipes or a path."""

    @property
    def recipe_name(self) -> str:
        """The recipe that these options ask for."""
        return self.recipe or ("quickstart_smoke" if self.smoke else "quickstart")


class Quickstart:
    """The stages of the loop over one output directory.

    Args:
        options: What to run on and where.
    """

    def __init__(self, options: QuickstartOptions):
        self._options = options
        self._recipe = recipes.load(options.recipe_name)
        self._sbp = self._arm("sbp")
        self._root = Path(options.output)
        self._cores = len(os.sched_getaffinity(0))
        self._ranks = min(2, self._cores)
        self.real = self._root / "corpus" / "real"
        self.heldout = self._root / "corpus" / "real-heldout"
        self.synthetic = self._root / "synthetic" / "synthetic"
        self.filtered = self._root / "filtered" / "synthetic"

    def _arm(self, arm: Arm) -> Run:
        return Run(self._options.recipe_name, self._recipe, RunOptions(arm=arm, gpus_per_node=1))

    def run(self) -> None:
        """Run every stage that is not finished, in order."""
        self._root.mkdir(parents=True, exist_ok=True)
        real, heldout = str(self.real), str(self.heldout)
        everything = ["--corpus", real, heldout]
        self._tool("preprocess", "preprocess_documents", "--input", *self._options.input,
                   "--output-prefix", real)  # fmt: skip
        self._check_heldout()
        self._tool("embed", "embed_documents", *everything, "--output", self._box("embeddings"))
        self._tool("mine", "mine_pairs", "--embeddings", self._box("embeddings"), *everything,
                   "--output", self._box("pairs"), ranks=True)  # fmt: skip
        baseline = self._arm("repetition").flags("pretrain")
        self._train("baseline", baseline, ["--train-data-path", real])
        self._train("synthesizer", self._sbp.flags("tune"), [
            "--train-data-path", real, "--pretrained-checkpoint", self._box("baseline"),
            "--sbp-objective", "synthesis", "--sbp-pairs", self._box("pairs"),
        ])  # fmt: skip
        self._tool("synthesize", "synthesize", "--load", self._box("synthesizer"),
                   "--corpus", real, "--output-prefix", str(self.synthetic),
                   ranks=True)  # fmt: skip
        self._tool("filter", "filter_synthetic", "--synthetic", str(self.synthetic),
                   "--corpus", real, "--output-prefix", str(self.filtered))  # fmt: skip
        self._tool("audit", "audit_synthetic", "--synthetic", str(self.filtered),
                   "--corpus", *everything[1:], "--pairs", self._box("pairs"),
                   "--output", self._box("audit"))  # fmt: skip
        share = loop.synthetic_share(self._sbp, self.filtered)
        joint = self._sbp.flags("pretrain") | {"sbp-synthetic-share": share}
        self._train("joint", joint, [
            "--train-data-path", real, "--sbp-synthetic-data", str(self.filtered),
        ])  # fmt: skip
        self._tool("report", "report", *everything, "--embeddings", self._box("embeddings"),
                   "--pairs", self._box("pairs"), "--baseline", self._box("baseline"),
                   "--synthesizer", self._box("synthesizer"), "--synthetic", str(self.synthetic),
                   "--filtered", str(self.filtered), "--audit", self._box("audit"),
                   "--joint", self._box("joint"), "--output", self._box("report"))  # fmt: skip
        print(f"\nopen {self._root / 'report' / 'report.html'} in a browser")

    def _check_heldout(self) -> None:
        """Both runs are compared on held-out documents, so there must be some."""
        counts = Manifest.read(self.real.parent).counts
        if not counts["heldout_documents"]:
            raise InputError(
                f"{' '.join(self._options.input)}: none of the {counts['documents']:,} documents "
                "was held out by chance, so there is nothing to compare on; give a larger corpus"
            )

    def _box(self, name: str) -> str:
        return str(self._root / name)

    def _tool(self, stage: str, script: str, *arguments: str, ranks: bool = False) -> None:
        """Run one of tools/; it recognises its own finished output."""
        flags = recipes.arguments(self._sbp.flags(stage)) if stage in STAGES else []
        processes = self._ranks if ranks else 1
        command = loop.tool(script, *arguments, *flags, ranks=processes)
        print(f"\n== {stage}", flush=True)
        environment = loop.environment(self._cores // processes)
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            raise loop.StageFailed(stage, status)

    def _train(self, name: str, flags: recipes.Flags, arguments: Sequence[str]) -> None:
        """Run Megatron; its output goes to a log, its progress to the terminal."""
        box = self._box(name)
        line = [*arguments, "--valid-data-path", str(self.heldout), "--load", box, "--save", box]
        line += ["--tokenizer-model", str(self.real.parent / "tokenizer")]
        line += ["--data-cache-path", self._box("index-cache"), *recipes.arguments(flags)]
        print(f"\n== {name}", flush=True)
        if not loop.is_trained(box, line):
            log = self._root / "logs" / f"{name}.log"
            environment = loop.environment(self._cores)
            loop.show_iterations(name, loop.output_of(name, loop.training(line), log, environment))
        counts = Manifest.read(box).counts
        losses = {
            metric: f"{value:.4f} nats per token"
            for metric, value in counts["final"].items()
            if " loss" in metric or " gain" in metric
        }
        cli.summary(box, {"parameters": counts["parameters"], "tokens": counts["tokens"]} | losses)
