"""The whole loop on this machine: every stage through its own command, one after another."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_sbp import cli, recipes
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import FILENAME, Manifest
from megatron_sbp.recipes.run import STAGES, Arm, Run, RunOptions

_TOOLS = Path(__file__).parent.parent / "tools"
_ITERATION = re.compile(r" iteration +(\d+)/ *(\d+) ")
_TAIL = 15
# A weighted blend builds this much more than it draws (Megatron's --mid-level-dataset-surplus).
_SURPLUS = 1.005


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
        joint = self._sbp.flags("pretrain") | self._synthetic_share()
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
        command = [sys.executable, str(_TOOLS / f"{script}.py"), *arguments]
        if stage in STAGES:
            command += recipes.arguments(self._sbp.flags(stage))
        processes = self._ranks if ranks else 1
        if processes > 1:
            command = [_mpiexec(), "-n", str(processes), *command]
        print(f"\n== {stage}", flush=True)
        status = subprocess.run(command, env=self._environment(processes), check=False).returncode
        if status:
            raise StageFailed(stage, status)

    def _environment(self, processes: int) -> dict[str, str]:
        """Threads for the cores there are, which sleep while they wait for each other.

        Threads that spin cost a third of the speed as soon as anything else runs on the machine.
        """
        threads = str(max(1, self._cores // processes))
        return {"OMP_WAIT_POLICY": "PASSIVE"} | os.environ | {"OMP_NUM_THREADS": threads}

    def _train(self, name: str, flags: recipes.Flags, arguments: Sequence[str]) -> None:
        """Run Megatron; its output goes to a log, its progress to the terminal."""
        box = self._box(name)
        line = [*arguments, "--valid-data-path", str(self.heldout), "--load", box, "--save", box]
        line += ["--tokenizer-model", str(self.real.parent / "tokenizer")]
        line += ["--data-cache-path", self._box("index-cache"), *recipes.arguments(flags)]
        print(f"\n== {name}", flush=True)
        if not self._is_trained(box, line):
            log = self._root / "logs" / f"{name}.log"
            log.parent.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "megatron_sbp.pretrain", *line]
            self._follow(name, command, log)
        counts = Manifest.read(box).counts
        losses = {
            metric: f"{value:.4f} nats per token"
            for metric, value in counts["final"].items()
            if " loss" in metric or " gain" in metric
        }
        cli.summary(box, {"parameters": counts["parameters"], "tokens": counts["tokens"]} | losses)

    @staticmethod
    def _is_trained(box: str, arguments: list[str]) -> bool:
        if not (Path(box) / FILENAME).exists():
            return False
        if Manifest.read(box).options["arguments"] != arguments:
            raise InputError(
                f"{box}: was trained with other arguments; remove it or choose another --output"
            )
        return True

    def _follow(self, name: str, command: list[str], log: Path) -> None:
        """Run a training command, its output into ``log``, its iterations onto the terminal."""
        tail: deque[str] = deque(maxlen=_TAIL)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(log, "a"))
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    env=self._environment(1),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                )
            )
            progress: cli.Progress | None = None
            for text in process.stdout or ():
                file.write(text)
                tail.append(text.rstrip())
                if found := _ITERATION.search(text):
                    done, total = map(int, found.groups())
                    if progress is None:
                        progress = cli.Progress(name, total, "iterations", initial=done - 1)
                        stack.enter_context(progress)
                    progress.update(done - progress.done)
        if process.returncode:
            print("\n".join(tail), file=sys.stderr)
            raise StageFailed(name, process.returncode, log)

    def _synthetic_share(self) -> recipes.Flags:
        """The joint run's synthetic share: the recipe's, or what is left after the filters."""
        tokens = Manifest.read(self.filtered.parent).counts["tokens"]
        rows = (tokens - 1) // self._recipe["train"]["seq-length"]
        samples = self._sbp.training_rows()
        most = (int(rows / _SURPLUS) - 1) / samples
        if most <= 0:
            raise InputError(
                f"{self.filtered}: {tokens:,} tokens are left, too few for one sequence; "
                f"see what the filters took in {self.filtered.parent / FILENAME}"
            )
        return {"sbp-synthetic-share": min(self._sbp.synthetic_share(), most)}


class StageFailed(InputError):
    """A stage ended with an error, which it has said itself."""

    def __init__(self, stage: str, status: int, log: Path | None = None):
        where = f"; its output is in {log}" if log else ""
        super().__init__(f"stage {stage} ended with status {status}{where}")


def _mpiexec() -> str:
    """The mpiexec of this environment, or of the system."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise InputError("no mpiexec found: pip install mpich")
    return found
