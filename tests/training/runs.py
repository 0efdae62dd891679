"""Run ``megatron_sbp.pretrain`` in a process of its own, small."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_sbp.corpus.documents import Corpus

SMALL = """
    --num-layers 4 --hidden-size 64 --ffn-hidden-size 128 --num-attention-heads 4
    --group-query-attention --num-query-groups 2 --qk-layernorm --normalization RMSNorm --swiglu
    --disable-bias-linear --position-embedding-type rope --attention-dropout 0 --hidden-dropout 0
    --seq-length 128 --max-position-embeddings 128 --tokenizer-type HuggingFaceTokenizer
    --make-vocab-size-divisible-by 64 --micro-batch-size 2 --global-batch-size 8 --lr 1e-3
    --lr-decay-style constant --clip-grad 1.0 --seed 3 --num-workers 0 --log-interval 1
    --save-interval 100 --eval-interval 100 --ckpt-format torch_dist --full-validation
    --multiple-validation-sets --validation-set-names heldout --eval-iters 1
    --eval-micro-batch-size 1 --eval-global-batch-size 1 --no-save-optim --no-save-rng
""".split()

# With Megatron's own 0.02 and rows of 128, which few pairs share, attention hardly counts: segments
# that attend to each other change the losses by 1e-3 and less; with these by 7e-2.
SHARP = ("--init-method-std", "0.3", "--seq-length", "256", "--max-position-embeddings", "256")


def data(corpus: Corpus) -> list[str]:
    """The data arguments for the two prefixes of a corpus: training and held out."""
    train, heldout = map(str, corpus.prefixes)
    tokenizer = str(corpus.prefixes[0].parent / "tokenizer")
    return [
        *("--train-data-path", train, "--valid-data-path", heldout),
        *("--tokenizer-model", tokenizer),
    ]


def pretrain(
    *arguments: str,
    processes: int = 1,
    drop: Sequence[str] = (),
    module: str = "megatron_sbp.pretrain",
) -> subprocess.CompletedProcess[str]:
    """Train with the small model; ``processes`` ranks under torchrun.

    Args:
        arguments: Added to those of the small model.
        processes: Ranks.
        drop: Flags of the small model that are left out.
        module: What is run.

    Returns:
        The finished process, with its standard output and error.
    """
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command += ["-m"]
    small = [flag for flag in SMALL if flag not in drop]
    command += [module, *small, *arguments]
    return subprocess.run(
        command,
        # Megatron asks for the second one on a GPU before Blackwell.
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def series(directory: Path, metric: str) -> dict[int, float]:
    """A metric of a run by iteration, read from the lines of metrics.jsonl."""
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return {line["iteration"]: line["value"] for line in lines if line["metric"] == metric}


def printed(output: str, metric: str) -> dict[int, float]:
    """A metric by iteration, from the lines that Megatron prints: seven digits of each value."""
    found = re.findall(rf"iteration +(\d+)/ .*?\| {metric}: (\S+)", output)
    return {int(iteration): float(value) for iteration, value in found}
