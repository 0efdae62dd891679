"""Evaluations by two processes, in one job of torchrun.

``python -m torch.distributed.run --nproc-per-node 2 scored.py OUTPUT RUN...`` with a run written as
NAME:CHECKPOINT:TENSOR:PIPELINE:PREFIX makes the box ``OUTPUT/NAME``.
"""

import sys

from megatron_sbp.evaluation.evaluate import EvaluateOptions, evaluate
from megatron_sbp.ranks import Ranks


def main() -> None:
    output, *runs = sys.argv[1:]
    with Ranks.open() as ranks:
        for run in runs:
            name, checkpoint, tensor, pipeline, prefix = run.split(":")
            options = EvaluateOptions(
                load=checkpoint,
                output=f"{output}/{name}",
                corpus=[prefix],
                names=["documents"],
                tensor_model_parallel_size=int(tensor),
                pipeline_model_parallel_size=int(pipeline),
                batch_tokens=150,
                token_losses=True,
            )
            evaluate(options, ranks)
            from megatron_sbp.synthesis import megatron_model

            megatron_model.stop()


if __name__ == "__main__":
    main()
