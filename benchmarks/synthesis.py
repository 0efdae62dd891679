"""How fast documents are generated: our engines beside `generate` of Transformers in batches.

    python -m benchmarks.synthesis
    python -m benchmarks.synthesis --load quickstart/synthesizer --corpus quickstart/corpus/real

All continue the same prompts with the same sampling, batch size, type and number of threads, and
take turns; every other round goes the other way round. Ratios are of the turns of one round.

    generate     Transformers' generate in fixed batches of the prompts as they come, padded on the
                 left, with a key-value cache, until the batch's last document has ended
    sorted       the same, of prompts sorted by length
    hf           our engine that refills rows
    megatron     our engine on Megatron's own (needs --load of a Megatron checkpoint)
    vllm         our engine on vLLM

Tokens that count are those of documents, up to the end-of-document token or the maximum. Which
tokens are drawn differs, as the random numbers do; the mean length says how much.

Without --load the model has random weights. Prompts have random tokens and log-normal lengths like
those of web pages; at every token a document ends with about the same probability, so that the
longest of a batch is several times as long as the mean.

On a GPU the share of the bound is the time that the memory would need to read the weights once a
step of a full batch, and keys and values of a document once a token, divided by the time taken.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from benchmarks import rates
from benchmarks.synthesis_work import Options, Work, load_work, make_work
from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import model
from megatron_sbp.synthesis.engine import Engine, EngineOptions, Request

if TYPE_CHECKING:
    import torch

_PLAIN = ("generate", "sorted")
_COPIED = 1 << 30  # bytes


# Contenders


class Contender(Protocol):
    """What generates."""

    def turn(self) -> dict[int, int]:
        """Generate every document; their numbers of tokens by document number."""


class Plain:
    """Transformers' generate, a batch after the other.

    Args:
        work: What is generated.
        options: Of the benchmark.
        device: Where to compute.
        by_length: Whether prompts are sorted by length.
    """

    def __init__(self, work: Work, options: Options, device: "torch.device", *, by_length: bool):
        import torch
        from transformers import AutoModelForCausalLM

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
        network = AutoModelForCausalLM.from_pretrained(work.directory, dtype=dtype)
        self._network = network.to(device).eval()
        self._work, self._options, self._device = work, options, device
        self._requests = work.requests
        if by_length:
            self._requests = sorted(work.requests, key=lambda request: len(request.prompt))

    def turn(self) -> dict[int, int]:
        """See ``Contender``."""
        size = self._options.batch_size
        lengths: dict[int, int] = {}
        for start in range(0, len(self._requests), size):
            lengths |= self._batch(self._requests[start : start + size])
        return lengths

    def _batch(self, batch: Sequence[Request]) -> dict[int, int]:
        import torch

        width = max(len(request.prompt) for request in batch)
        ids = torch.full((len(batch), width), self._work.eod)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(batch):
            ids[row, width - len(request.prompt) :] = torch.from_numpy(request.prompt)
            mask[row, width - len(request.prompt) :] = 1
        sampling = self._options.sampling
        made = self._network.generate(
            ids.to(self._device),
            attention_mask=mask.to(self._device),
            max_new_tokens=len(batch[0].uniforms),
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            eos_token_id=self._work.eod,
            pad_token_id=self._work.eod,
            use_cache=True,
        )[:, width:]
        # What follows an end-of-document token is padding, which is the same token.
        kept = (made != self._work.eod).sum(1).tolist()
        return {request.number: count for request, count in zip(batch, kept, strict=True)}


class Ours:
    """One of our engines.

    Args:
        engine: The engine.
        work: What is generated.
    """

    def __init__(self, engine: Engine, work: Work):
        self._engine, self._work = engine, work

    def turn(self) -> dict[int, int]:
        """See ``Contender``."""
        made = self._engine.generate(self._work.requests)
        return {one.number: len(one.tokens) for one in made}


def open_contenders(work: Work, options: Options, device: "torch.device") -> dict[str, Contender]:
    """All contenders that can run here; why the others cannot is printed."""
    found: dict[str, Contender] = {}
    for name in options.contenders:
        try:
            if name in ("hf", "megatron", "vllm"):
                found[name] = Ours(_open_engine(name, work, options, device), work)
            else:
                found[name] = Plain(work, options, device, by_length=name == "sorted")
        except InputError as error:
            print(f"without {name}: {error}")
    return found


def _open_engine(
    name: Literal["hf", "megatron", "vllm"], work: Work, options: Options, device: "torch.device"
) -> Engine:
    directory = work.directory
    if name == "megatron":
        if options.load is None:
            raise InputError("it needs --load of what Megatron saved to")
        directory = MegatronCheckpoint(options.load).directory
    engine_options = EngineOptions(
        engine=name,
        batch_size=options.batch_size,
        dtype=options.dtype,
        device="cuda" if device.type == "cuda" else "cpu",
        gpu_memory_share=options.gpu_memory_share,
    )
    return model.load_engine(
        engine_options,
        directory,
        options.sampling,
        Ranks(),
        eod=work.eod,
        vocab_size=work.vocab_size,
    )


# Measuring


@dataclass(kw_only=True, slots=True)
class Turn:
    """What a contender did in a turn."""

    seconds: float
    tokens: int
    """Of documents, without end-of-document tokens."""
    longest: int
    """Tokens of the longest document."""
    bound_seconds: float
    """What reading weights, keys and values would take at least; 0 where it is not known."""

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


class Memory:
    """What a step has to read, and how fast the device reads.

    Args:
        work: What is generated.
        options: Of the benchmark.
        device: A CUDA device.
    """

    def __init__(self, work: Work, options: Options, device: "torch.device"):
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(work.directory)
        with torch.device("meta"):
            network = AutoModelForCausalLM.from_config(config)
        size = {"fp32": 4, "bf16": 2}[options.dtype]
        read = [*network.base_model.layers.parameters(), *network.lm_head.parameters()]
        self._of_step = size * sum(weight.numel() for weight in read)
        self._of_token = (
            2
            * size
            * sum(layer.self_attn.k_proj.out_features for layer in network.base_model.layers)
        )
        self._prompts = {request.number: len(request.prompt) for request in work.requests}
        self._batch_size = options.batch_size
        self.bandwidth = _bandwidth(device)
        """Bytes a second."""

    def seconds(self, lengths: dict[int, int]) -> float:
        """The least time to read all that documents of these lengths, by number, need."""
        steps = sum(lengths.values()) / self._batch_size
        # A token looks at the prompt and all of the document before it.
        seen = sum(
            length * self._prompts[number] + length * (length + 1) // 2
            for number, length in lengths.items()
        )
        return (steps * self._of_step + seen * self._of_token) / self.bandwidth


def _bandwidth(device: "torch.device") -> float:
    """Bytes that a copy reads and writes in a second, the fastest of ten."""
    import torch

    source = torch.zeros(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * _COPIED / min(seconds)


def take_turns(
    contenders: dict[str, Contender], repetitions: int, bound: Callable[[dict[int, int]], float]
) -> dict[str, list[Turn]]:
    """Let all generate in turn; every other round goes the other way round.

    Args:
        contenders: By name.
        repetitions: Rounds.
        bound: The least seconds for documents of these lengths, by number.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in contenders}
    with cli.Progress("synthesis", repetitions, "rounds") as progress:
        for number in range(repetitions):
            for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
                started = time.perf_counter()
                lengths = contenders[name].turn()
                turn = Turn(
                    seconds=time.perf_counter() - started,
                    tokens=sum(lengths.values()),
                    longest=max(lengths.values()),
                    bound_seconds=bound(lengths),
                )
                turns[name].append(turn)
            progress.update()
    return turns


# Showing


def _spread(ratios: np.ndarray) -> str:
    return f"{median(ratios):.2f} ({ratios.min():.2f} to {ratios.max():.2f})"


def show(turns: dict[str, list[Turn]], documents: int) -> dict[str, str]:
    """Print what was measured.

    Returns:
        The ratios that there are goals for.
    """
    rates = {name: np.array([turn.rate for turn in those]) for name, those in turns.items()}
    print(
        f"{'':<10}{'tokens/s':>10}{'mean length':>13}{'longest':>9}{'of the bound':>14}"
        f"  {'/ generate':<22}{'/ sorted':<22}"
    )
    for name, those in turns.items():
        mean = sum(turn.tokens for turn in those) / len(those) / documents
        share = median(turn.bound_seconds / turn.seconds for turn in those)
        beside = [
            _spread(rates[name] / rates[base]) if base in rates and base != name else ""
            for base in _PLAIN
        ]
        print(
            f"{name:<10}{median(rates[name]):>10,.0f}{mean:>13,.1f}"
            f"{max(turn.longest for turn in those):>9,}{f'{share:.0%}' if share else '':>14}"
            f"  {beside[0]:<22}{beside[1]:<22}"
        )
    found = {
        f"tokens/s, {one} / {other} ({goal})": _spread(rates[one] / rates[other])
        for one, other, goal in (
            ("hf", "generate", "on a CPU at least 1.5"),
            ("hf", "sorted", "above 1"),
        )
        if one in rates and other in rates
    }
    cli.summary("ratios: median (lowest to highest)", found)
    return found


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    device = torch.device("cuda" if cuda else "cpu")
    threads = options.threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    machine = rates.machine() | {"threads": threads}
    if cuda:
        machine["gpu"] = torch.cuda.get_device_name()
    cli.summary(
        f"python -m benchmarks.synthesis {shlex.join(sys.argv[1:])}".strip(),
        {name: " ".join(is_) if isinstance(is_, list) else is_ for name, is_ in machine.items()},
    )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: there is no CUDA device here; use --device cpu")
    with tempfile.TemporaryDirectory() as temporary:
        make = load_work if options.load else make_work
        work = make(options, Path(temporary) / "model")
        memory = Memory(work, options, device) if cuda else None
        if memory:
            print(f"copies: {memory.bandwidth / 1e12:.2f} TB/s")
        contenders = open_contenders(work, options, device)
        torch.set_num_threads(threads)  # Engines take as many as ranks have.
        turns = take_turns(
            contenders, options.repetitions, memory.seconds if memory else lambda lengths: 0.0
        )
    prompts = [len(request.prompt) for request in work.requests]
    print(
        f"{len(prompts):,} prompts of {min(prompts):,} to {max(prompts):,} tokens, "
        f"{sum(prompts) / len(prompts):,.0f} on average; at most "
        f"{len(work.requests[0].uniforms):,} new ones"
    )
    ratios = show(turns, options.documents)
    if options.output:
        report: dict[str, Any] = {
            "command": sys.argv,
            "machine": machine,
            "ratios": ratios,
            "turns": {name: [asdict(turn) for turn in those] for name, those in turns.items()},
        }
        with atomic_write(options.output) as file:
            file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
