"""The table of commands, and the small loop that they are the stages of."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.faults.job import Job

type Flags = Callable[[Path, Path], Sequence[str | Path]]
"""Of a command, from the directory of its inputs and the box that it writes."""

SECONDS = 900.0
"""After which a run that nothing was done to counts as hung."""
CACHE = "index-cache"
"""Beside the box of a training run: Megatron's data cache."""

_MODEL = """
    --num-layers 2 --hidden-size 32 --ffn-hidden-size 64 --num-attention-heads 2
    --group-query-attention --num-query-groups 1 --normalization RMSNorm --swiglu
    --disable-bias-linear --position-embedding-type rope --attention-dropout 0 --hidden-dropout 0
    --seq-length 128 --max-position-embeddings 128 --tokenizer-type HuggingFaceTokenizer
    --untie-embeddings-and-output-weights
    --make-vocab-size-divisible-by 64 --micro-batch-size 2 --global-batch-size 4 --lr 1e-3
    --lr-decay-style constant --clip-grad 1.0 --seed 3 --num-workers 1 --log-interval 1
    --train-iters 12 --save-interval 4 --eval-interval 6 --ckpt-format torch_dist
    --full-validation --multiple-validation-sets --validation-set-names heldout --eval-iters 1
    --eval-micro-batch-size 1 --eval-global-batch-size 1 --verify-integrity
""".split()


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of the loop."""

    name: str
    program: tuple[str, ...]
    flags: Flags
    needs: tuple[str, ...]
    """Boxes that it reads."""
    box: str
    """Box that it writes."""
    ranks: int = 1
    trains: bool = False
    """Whether it is Megatron that writes the box."""

    def start(
        self,
        inputs: Path,
        output: Path,
        place: Path,
        *,
        shared: str = "",
        environment: dict[str, str] | None = None,
    ) -> Job:
        """Start it on the boxes in ``inputs``, with ``output`` for its own and others beside it."""
        flags = self.flags(inputs, output / self.box)
        command = [*self.program, *flags]
        return Job(command, place, ranks=self.ranks, shared=shared, environment=environment)


def _corpus(boxes: Path) -> list[Path]:
    return [boxes / "corpus" / "real", boxes / "corpus" / "real-heldout"]


def _preprocess(boxes: Path, box: Path) -> Sequence[str | Path]:
    return ["--input", boxes / "documents" / "documents.jsonl", "--output-prefix", box / "real",
            "--train-tokenizer", "512", "--heldout-share", "0.2", "--workers", "2"]  # fmt: skip


def _embed(boxes: Path, box: Path) -> Sequence[str | Path]:
    return ["--corpus", *_corpus(boxes), "--output", box, "--encoder", "lexical",
            "--dimensions", "32", "--documents-per-shard", "48", "--workers", "2"]  # fmt: skip


def _mine(boxes: Path, box: Path) -> Sequence[str | Path]:
    return ["--embeddings", boxes / "embeddings", "--corpus", *_corpus(boxes), "--output", box,
            "--min-similarity", "0.5", "--neighbors", "4", "--block-size", "64"]  # fmt: skip


def _train(boxes: Path, box: Path) -> list[str | Path]:
    real, heldout = _corpus(boxes)
    return [*_MODEL, "--tokenizer-model", real.parent / "tokenizer", "--train-data-path", real,
            "--valid-data-path", heldout, "--save", box, "--load", box,
            "--data-cache-path", box.parent / CACHE]  # fmt: skip


def _tune(boxes: Path, box: Path) -> Sequence[str | Path]:
    return [*_train(boxes, box), "--pretrained-checkpoint", boxes / "baseline",
            "--sbp-objective", "synthesis", "--sbp-pairs", boxes / "pairs"]  # fmt: skip


def _synthesize(boxes: Path, box: Path) -> Sequence[str | Path]:
    return ["--load", boxes / "synthesizer", "--corpus", _corpus(boxes)[0], "--output-prefix",
            box / "new", "--num-tokens", "3000", "--max-new-tokens", "40",
            "--documents-per-shard", "8", "--batch-size", "8", "--seed", "5"]  # fmt: skip


def _filter(boxes: Path, box: Path) -> Sequence[str | Path]:
    return ["--synthetic", boxes / "synthetic" / "new", "--corpus", _corpus(boxes)[0],
            "--output-prefix", box / "new", "--min-tokens", "4"]  # fmt: skip


def _audit(boxes: Path, box: Path) -> Sequence[str | Path]:
    return ["--synthetic", boxes / "synthetic" / "new", "--corpus", *_corpus(boxes), "--pairs",
            boxes / "pairs", "--output", box, "--encoder", "lexical", "--sample", "50",
            "--self-bleu", "20", "--encoded", "20"]  # fmt: skip


_PRETRAIN = ("-m", "megatron_sbp.pretrain")
_COMMANDS = [
    Command(name="preprocess", program=("tools/preprocess_documents.py",), flags=_preprocess,
            needs=("documents",), box="corpus"),
    Command(name="embed", program=("tools/embed_documents.py",), flags=_embed,
            needs=("corpus",), box="embeddings"),
    Command(name="mine", program=("tools/mine_pairs.py",), flags=_mine,
            needs=("corpus", "embeddings"), box="pairs"),
    Command(name="mine, 2 ranks", program=("tools/mine_pairs.py",), flags=_mine,
            needs=("corpus", "embeddings"), box="pairs", ranks=2),
    Command(name="pretrain", program=_PRETRAIN, flags=_train,
            needs=("corpus",), box="baseline", trains=True),
    Command(name="tune", program=_PRETRAIN, flags=_tune,
            needs=("corpus", "pairs", "baseline"), box="synthesizer", trains=True),
    Command(name="synthesize", program=("tools/synthesize.py",), flags=_synthesize,
            needs=("corpus", "synthesizer"), box="synthetic"),
    Command(name="synthesize, 2 ranks", program=("tools/synthesize.py",), flags=_synthesize,
            needs=("corpus", "synthesizer"), box="synthetic", ranks=2),
    Command(name="filter", program=("tools/filter_synthetic.py",), flags=_filter,
            needs=("corpus", "synthetic"), box="filtered"),
    Command(name="audit", program=("tools/audit_synthetic.py",), flags=_audit,
            needs=("corpus", "synthetic", "pairs"), box="audit"),
]  # fmt: skip
COMMANDS = {command.name: command for command in _COMMANDS}
_WRITERS = {command.box: command for command in reversed(_COMMANDS)}


@dataclass(frozen=True, kw_only=True)
class Clean:
    """What a run of a command is like when nothing is done to it."""

    seconds: float
    changes: int
    """To files, see ``mortal``."""


class Loop:
    """The boxes of the loop, each made by its command when it is first asked for.

    Args:
        directory: For all of it.
    """

    def __init__(self, directory: Path):
        self.boxes = directory / "boxes"
        self._runs = directory / "runs"
        self.clean = cache(self._clean)
        """Of a command (by name): its clean run."""

    def prepare(self, command: Command) -> None:
        """Make the boxes that a command reads."""
        for box in command.needs:
            if box == "documents":
                _write_documents(self.boxes / box)
            else:
                self.clean(_WRITERS[box].name)

    def _clean(self, name: str) -> Clean:
        """Run a command; the box of the first that writes it is kept in ``boxes``."""
        command = COMMANDS[name]
        self.prepare(command)
        place = self._runs / name.replace(", ", "-").replace(" ", "-")
        first = _WRITERS[command.box] is command
        output = self.boxes if first else place / "output"
        output.mkdir(parents=True, exist_ok=True)
        changes = place / "changes"
        job = command.start(
            self.boxes, output, place, environment=watched(output, changes, kill=-1)
        )
        assert job.wait(SECONDS) == 0, job.said
        return Clean(seconds=job.seconds, changes=changes.stat().st_size)

    def reference(self, command: Command) -> Path:
        """The box that a command should write."""
        self.clean(_WRITERS[command.box].name)
        return self.boxes / command.box

    def copy_inputs(self, command: Command, directory: Path) -> None:
        """Copy what a command reads, with its modification times."""
        self.prepare(command)
        for box in command.needs:
            shutil.copytree(self.boxes / box, directory / box)


def watched(
    below: Path, changes: Path, *, kill: int, delay: float = 0.0, victim: str = "process"
) -> dict[str, str]:
    """Variables that make ``mortal`` count changes below a directory, and kill at one of them."""
    return {
        "FAULT_BELOW": str(below),
        "FAULT_CHANGES": str(changes),
        "FAULT_KILL": str(kill),
        "FAULT_DELAY": str(delay),
        "FAULT_VICTIM": victim,
    }


def _write_documents(directory: Path) -> None:
    """240 documents over 40 topics; those of a topic share its words."""
    if directory.exists():
        return
    source = random.Random(7)
    vocabulary = [f"word{number}" for number in range(400)]
    topics = [source.sample(vocabulary, 12) for _ in range(40)]
    directory.mkdir(parents=True)
    with open(directory / "documents.jsonl", "w") as file:
        for number in range(240):
            words = source.choices(topics[number % len(topics)], k=source.randint(5, 60))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
