"""What engines are asked in tests, and a process that asks the megatron engine.

Under torchrun with two processes: continues ``requests()`` as every row of ``RUNS`` says and writes
what rank N was given to ``OUTPUT/<number of the row>-<N>.json``.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.synthesis.engine import Continuation, EngineOptions, Request, Sampling

CONTEXT, VOCABULARY = 64, 500
EOD = {"qwen3": 387, "llama": 13}
"""Case of the checkpoints -> a token that ends some of the documents, and not all."""
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=0)
NUCLEUS = Sampling(temperature=1.5, top_p=0.95, top_k=60)


@dataclass(frozen=True)
class Run:
    """A case of the checkpoints, and how it is run."""

    case: str
    tensor: int
    pipeline: int
    batch_size: int
    sampling: Sampling


# The case qwen3 was saved with two tensor-parallel ranks, llama with two pipeline stages.
RUNS = [
    Run("qwen3", 1, 2, 3, NUCLEUS),
    Run("qwen3", 1, 1, 2, GREEDY),
    Run("llama", 2, 1, 40, GREEDY),
    Run("llama", 1, 2, 5, NUCLEUS),
]


def requests(count: int = 16) -> list[Request]:
    """Prompts of 2 to 39 tokens, up to as many new ones as the context holds, from seed 12."""
    random = np.random.default_rng(12)
    asked = []
    for number in range(count):
        prompt = random.integers(0, VOCABULARY, random.integers(2, 40))
        most = CONTEXT - len(prompt) if number % 2 else random.integers(1, 20)
        asked.append(Request(number=number, prompt=prompt, uniforms=random.random(most)))
    return asked


def outcome(continuations: Iterable[Continuation]) -> dict[str, Any]:
    """Document number, as JSON has it -> tokens and why they ended."""
    return {str(one.number): [one.tokens.tolist(), one.finish_reason] for one in continuations}


def main() -> None:
    from megatron_sbp.ranks import Ranks
    from megatron_sbp.synthesis import megatron_model
    from megatron_sbp.synthesis.model import load_engine

    checkpoints, output = map(Path, sys.argv[1:])
    ranks = Ranks.open()
    for number, run in enumerate(RUNS):
        options = EngineOptions(
            engine="megatron",
            batch_size=run.batch_size,
            tensor_model_parallel_size=run.tensor,
            pipeline_model_parallel_size=run.pipeline,
        )
        engine = load_engine(
            options,
            checkpoints / run.case,
            run.sampling,
            ranks,
            eod=EOD[run.case],
            vocab_size=VOCABULARY,
        )
        asked = requests()[ranks.rank :: options.workers(ranks.size)]
        for _ in engine.generate(asked):
            break  # as a run does that has enough
        found = outcome(engine.generate(asked))
        (output / f"{number}-{ranks.rank}.json").write_text(json.dumps(found))
        megatron_model.stop()


if __name__ == "__main__":
    main()
