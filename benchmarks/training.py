"""How fast training steps are, beside Megatron's own and a plain PyTorch model of the shape.

    python -m benchmarks.training
    python -m benchmarks.training --shape 3b      (on a GPU: in bf16, and in FP8)

Each contender is a process that stays; they take turns of some steps, so that whatever else the
machine does meets all of them. Ratios are of the turns of one round, and the median, lowest and
highest of all rounds are shown. All train the same model on rows of the same length:

    megatron     Megatron's loop, GPTDataset and a forward step as GPT scripts have; on a CPU with
                 our platform and layers
    mock         the same with --mock-data
    lm           ours, --sbp-objective lm, the documents of `megatron`
    synthesis    ours, --sbp-objective synthesis: packed pairs of those documents
    padded       the same pairs, one a row
    full         packed pairs that are as long as a row: one segment a row, the attention of lm
    full-padded  the same, not packed
    plain        the model in plain PyTorch, without padding, data or logging
    product      one matrix product after another: what model FLOP utilisation (MFU) is a share of

Documents have random tokens and log-normal lengths like those of web pages, with a median of a
tenth of a row. Operations are Megatron's count for the lengths of the segments. The last segment
of a packed row may be padding, and padded rows are counted as if they had none.
"""

import contextlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np

from benchmarks import rates
from benchmarks.packing import make_lengths, make_pairs
from benchmarks.training_peers import Turn
from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write

# The 3B model of arXiv 2509.15248, but for its feed-forward width, which is not stated.
_SHAPES: dict[str, dict[str, int]] = {
    "small": {
        **{"num-layers": 4, "hidden-size": 256, "ffn-hidden-size": 768},
        **{"num-attention-heads": 4, "num-query-groups": 2, "rotary-base": 10_000},
        **{"vocab-size": 4096, "seq-length": 512},
        **{"micro-batch-size": 8, "global-batch-size": 8},
    },
    "3b": {
        **{"num-layers": 4, "hidden-size": 3072, "ffn-hidden-size": 8192},
        **{"num-attention-heads": 24, "num-query-groups": 8, "rotary-base": 500_000},
        **{"vocab-size": 49_152, "seq-length": 4096},
        **{"micro-batch-size": 2, "global-batch-size": 16},
    },
}
_SHAPE_OPTIONS = {
    "layers": "num-layers",
    "length": "seq-length",
    "rows": "micro-batch-size",
    "batch": "global-batch-size",
}
_ALL = """
    --group-query-attention --qk-layernorm --normalization RMSNorm --swiglu --disable-bias-linear
    --position-embedding-type rope --attention-dropout 0 --hidden-dropout 0
    --tokenizer-type NullTokenizer --null-tokenizer-pad-id 0 --make-vocab-size-divisible-by 64
    --lr 1e-4 --lr-decay-style constant --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0
    --seed 1 --num-workers 0 --log-interval 10 --eval-interval 1000000 --eval-iters 0
    --no-create-attention-mask-in-dataloader
""".split()
_ENGINE = "--transformer-impl transformer_engine --attention-backend auto".split()
_CPU = ("megatron", "lm", "synthesis", "padded", "full", "full-padded", "plain", "product")
_CUDA = ("mock", "lm", "synthesis", "full", "product")
_PAIRED = {"synthesis": "web", "padded": "web", "full": "full", "full-padded": "full"}
_KINDS = {"megatron": "megatron", "mock": "megatron", "plain": "plain", "product": "product"}
_TAIL = 15
_DOCUMENTS = 4000
_PAIRS = 5  # of a document


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    shape: Literal["small", "3b"] = "small"
    """Shape of the model and the batch: small, as the quickstart's, or 3b, layers like those of the
    paper's 3B model."""
    layers: int = 0
    """Layers; 0: the shape's."""
    length: int = field(default=0, metadata={"metavar": "POSITIONS"})
    """Positions of a row; 0: the shape's."""
    rows: int = 0
    """Rows of a micro-batch; 0: the shape's."""
    batch: int = field(default=0, metadata={"metavar": "ROWS"})
    """Rows of a step; 0: the shape's."""
    contenders: list[str] = field(default_factory=list, metadata={"metavar": "NAME"})
    """What to measure: megatron mock lm synthesis padded full full-padded plain product; by default
    those that suit the machine."""
    precisions: list[str] = field(default_factory=list, metadata={"metavar": "NAME"})
    """fp32 bf16 fp8, one after another; by default fp32 on a CPU, bf16 and fp8 on a GPU."""
    fp8_recipe: str = "blockwise"
    """--fp8-recipe of fp8."""
    rounds: int = 8
    """Turns of every contender that count."""
    steps: int = 3
    """Steps of a turn."""
    warmup: int = field(default=3, metadata={"metavar": "STEPS"})
    """Steps of every contender before."""
    threads: int = 0
    """Threads of each; 0: all cores."""
    megatron: str = field(default="", metadata={"metavar": "ARGUMENTS"})
    """More of Megatron's arguments for all, quoted, with = before the first."""
    output: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Also write everything as JSON."""

    def __post_init__(self) -> None:
        known = {*_CPU, *_CUDA}
        for name in self.contenders:
            if name not in known:
                raise InputError(f"--contenders {name}: is none; choose of {' '.join(_CPU)} mock")
        for name in self.precisions:
            if name not in ("fp32", "bf16", "fp8"):
                raise InputError(f"--precisions {name}: is none; choose of fp32 bf16 fp8")
        if "plain" in self.contenders and set(self.precisions) - {"fp32"}:
            raise InputError("--contenders plain: is made for --precisions fp32")
        least = {"layers": 0, "length": 0, "rows": 0, "batch": 0, "rounds": 1, "steps": 1}
        for name, value in (least | {"warmup": 1}).items():
            if getattr(self, name) < value:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {value}")
        if self.length % 2:
            raise InputError(f"--length {self.length}: must be even")

    @property
    def sizes(self) -> dict[str, int]:
        """The shape as Megatron's arguments, with what the options change."""
        changes = {name: getattr(self, option) for option, name in _SHAPE_OPTIONS.items()}
        return _SHAPES[self.shape] | {name: value for name, value in changes.items() if value}


# Data


def make_data(directory: Path, sizes: dict[str, int]) -> None:
    """Two corpora and their pairs: ``web`` and ``full``, whose pairs are as long as a row.

    Args:
        directory: Where, as ``web``, ``web-pairs``, ``full`` and ``full-pairs``.
        sizes: Of the model and the rows.
    """
    length = sizes["seq-length"]
    # bos, separator and end-of-document are a pair's too, and a row has a label after its last.
    half = (length - 2) // 2
    lengths = {
        "web": make_lengths(_DOCUMENTS, length // 10, 1.1, seed=0),
        "full": np.full(_DOCUMENTS // 10, half + 1),
    }
    random = np.random.default_rng(0)
    eod = sizes["vocab-size"] - 1
    for name, counts in lengths.items():
        with IndexedWriter(directory / name, np.uint16) as writer:
            for count in counts.tolist():
                writer.append([*random.integers(1, eod, count - 1).tolist(), eod])
        make_pairs(
            directory / f"{name}-pairs", Corpus([directory / name]), _PAIRS * len(counts), seed=0
        )


# Contenders


class Contender:
    """A process that trains when it is told to.

    Args:
        name: Of the contender.
        arguments: Megatron's and ours.
        threads: Of the process.
        log: What it prints.
    """

    def __init__(self, name: str, arguments: Sequence[str], threads: int, log: Path):
        self.name = name
        self.turns: list[Turn] = []
        self._log = log
        kind = _KINDS.get(name, "ours")
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.training_peers", kind, *arguments],
                # Threads that spin take the time of those whose turn it is.
                env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(threads)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )

    def step(self, steps: int) -> Turn:
        """Have it take a turn.

        Raises:
            InputError: If it ended instead, with what it said last.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(steps, file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            said = self._log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            print("\n".join(said[-_TAIL:-1]), file=sys.stderr)
            raise InputError(f"{self.name} ended with status {status} and said: {said[-1]}")
        return Turn(**json.loads(line))

    def end(self) -> None:
        """End the process, which waits for its next turn."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()


def arguments(name: str, precision: str, options: Options, data: Path, cuda: bool) -> list[str]:
    """The command line of a contender."""
    line = [text for flag, size in options.sizes.items() for text in (f"--{flag}", str(size))]
    line += ["--max-position-embeddings", str(options.sizes["seq-length"]), *_ALL]
    # More than are taken: the process is ended.
    iterations = options.warmup + options.rounds * options.steps + 2
    line += ["--train-iters", str(iterations), "--data-cache-path", str(data / "cache")]
    if cuda:
        line += _ENGINE
        if importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None:
            line += ["--no-gradient-accumulation-fusion"]
    if precision != "fp32":
        line += ["--bf16"]
    if precision == "fp8":
        line += ["--fp8-format", "hybrid", "--fp8-recipe", options.fp8_recipe]
    if name == "mock":
        line += ["--mock-data"]
    else:
        line += ["--train-data-path", str(data / _PAIRED.get(name, "web"))]
    if name in _PAIRED:
        line += ["--sbp-objective", "synthesis", "--sbp-separator", "1"]
        line += ["--sbp-pairs", str(data / f"{_PAIRED[name]}-pairs")]
        line += [] if name in ("synthesis", "full") else ["--no-sbp-packing"]
    return line + shlex.split(options.megatron)


@contextlib.contextmanager
def started(
    precision: str, options: Options, data: Path, threads: int, cuda: bool
) -> Iterator[list[Contender]]:
    """All contenders of a precision, ready for their first turn."""
    names = options.contenders or [
        name for name in (_CUDA if cuda else _CPU) if name != "plain" or precision == "fp32"
    ]
    with contextlib.ExitStack() as stack:
        contenders = []
        for name in names:
            line = arguments(name, precision, options, data, cuda)
            contender = Contender(name, line, threads, data / f"{name}-{precision}.log")
            stack.callback(contender.end)
            contenders.append(contender)
        yield contenders


def take_turns(contenders: Sequence[Contender], options: Options) -> None:
    """Warm all up, then let them step in turn; every other round goes the other way round."""
    for contender in contenders:
        contender.step(options.warmup)
    with cli.Progress("training", options.rounds, "rounds") as progress:
        for number in range(options.rounds):
            for contender in contenders[:: 1 if number % 2 == 0 else -1]:
                contender.turns.append(contender.step(options.steps))
            progress.update()


# Showing


def _rates(contender: Contender, what: str) -> np.ndarray:
    """Of something, a second: float64 [rounds]."""
    return np.array([getattr(turn, what) / turn.seconds for turn in contender.turns])


def _spread(ratios: np.ndarray) -> str:
    return f"{median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})"


def show(contenders: Sequence[Contender], precision: str, options: Options) -> dict[str, str]:
    """Print what was measured in one precision.

    Returns:
        The ratios that there are goals for.
    """
    sizes = options.sizes
    positions = sizes["global-batch-size"] * sizes["seq-length"]
    by_name = {contender.name: contender for contender in contenders}
    base = by_name.get("megatron") or by_name.get("mock")
    product = by_name.get("product")
    print(
        f"\n{precision}: {sizes['num-layers']} layers of {sizes['hidden-size']:,}, "
        f"{sizes['global-batch-size']} rows of {sizes['seq-length']:,} positions a step, "
        f"{options.rounds} rounds of {options.steps} steps"
    )
    head = f"step / {base.name}" if base else ""
    print(
        f"{'':<12}{'ms/step':>9}  {head:<25}{'positions/s':>12}{'supervised/s':>13}"
        f"{'TFLOP/s':>9}{'MFU':>7}"
    )
    for contender in contenders:
        steps, flop = _rates(contender, "steps"), _rates(contender, "flop")
        trains = contender is not product
        ratio = _spread(_rates(base, "steps") / steps) if base and trains else ""
        supervised = median(_rates(contender, "supervised"))
        mfu = median(flop / _rates(product, "flop")) if product and trains else 0
        print(
            f"{contender.name:<12}{1000 / median(steps):>9,.1f}  {ratio:<25}"
            f"{f'{median(steps) * positions:,.0f}' if trains else '':>12}"
            f"{f'{supervised:,.0f}' if supervised else '':>13}"
            f"{f'{median(flop) / 1e12:.3f}' if flop.any() else '':>9}"
            f"{f'{mfu:.1%}' if mfu else '':>7}"
        )
    found = {
        f"{title} ({goal})": _spread(_rates(by_name[one], what) / _rates(by_name[other], what))
        for title, goal, one, other, what in _questions(base)
        if one in by_name and other in by_name
    }
    cli.summary("ratios: median (lowest to highest)", found)
    return found


def _questions(base: Contender | None) -> list[tuple[str, str, str, str, str]]:
    """Title, goal, and what of which contenders is divided.

    A ratio of times is that of the rates the other way round.
    """
    own = base.name if base else ""
    return [
        (f"step, packed pairs / {own}", "at most 1.02", own, "synthesis", "steps"),
        (f"step, one packed segment a row / {own}", "at most 1.02", own, "full", "steps"),
        (f"step, one pair that fills a row / {own}", "at most 1.02", own, "full-padded", "steps"),
        (f"step, lm / {own}", "at most 1.02", own, "lm", "steps"),
        ("supervised tokens/s, packed / padded", "above 1", "synthesis", "padded", "supervised"),
        ("positions/s, lm / plain PyTorch", "at least 0.8", "lm", "plain", "steps"),
        ("positions/s, packed pairs / plain PyTorch", "at least 0.8", "synthesis", "plain",
         "steps"),
    ]  # fmt: skip


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    import torch

    cuda = torch.cuda.is_available()
    if "fp8" in options.precisions and not cuda:
        raise InputError("--precisions fp8: needs a GPU; this machine has none that torch sees")
    threads = options.threads or len(os.sched_getaffinity(0))
    machine: dict[str, Any] = rates.machine() | {"threads": threads}
    if cuda:
        machine["gpu"] = torch.cuda.get_device_name()
    cli.summary(
        f"python -m benchmarks.training {shlex.join(sys.argv[1:])}".strip(),
        {name: " ".join(is_) if isinstance(is_, list) else is_ for name, is_ in machine.items()},
    )
    report: dict[str, Any] = {"command": sys.argv, "machine": machine, "precisions": {}}
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary)
        make_data(data, options.sizes)
        for precision in options.precisions or (["bf16", "fp8"] if cuda else ["fp32"]):
            begun = time.perf_counter()
            with started(precision, options, data, threads, cuda) as contenders:
                take_turns(contenders, options)
            ratios = show(contenders, precision, options)
            print(f"measured in {cli.clock(time.perf_counter() - begun)}", file=sys.stderr)
            turns = {one.name: [asdict(turn) for turn in one.turns] for one in contenders}
            report["precisions"][precision] = {"ratios": ratios, "turns": turns}
            if options.output:
                with atomic_write(options.output) as file:
                    file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
