"""Measure a Megatron checkpoint: its loss on every source of documents, its scores in tasks."""

from typing import Any

from megatron_sbp import cli
from megatron_sbp.evaluation.evaluate import EvaluateOptions, evaluate
from megatron_sbp.ranks import Ranks


def main() -> None:
    options = cli.parse(EvaluateOptions, __doc__)
    with Ranks.open() as ranks:
        manifest = evaluate(options, ranks)
        if ranks.rank == 0:
            time = {"time": cli.clock(manifest.seconds)}
            cli.summary(f"evaluation: {options.output}", _rows(manifest.counts) | time)


def _rows(counts: dict[str, Any]) -> dict[str, str]:
    rows = {
        name: f"loss {source['loss']:.4f}, perplexity {source['perplexity']:,.2f}, "
        f"{source['documents']:,} documents, {source['tokens']:,} tokens"
        for name, source in counts["sources"].items()
    }
    for name, task in counts.get("tasks", {}).items():
        rows[name] = ", ".join(
            f"{metric} {score['value']:.4f}"
            + (f" ± {score['standard_error']:.4f}" if score["standard_error"] is not None else "")
            for metric, score in task["metrics"].items()
        )
    not_loaded = counts.get("not_loaded", {})
    return rows | {name: f"not loaded: {reason}" for name, reason in not_loaded.items()}


if __name__ == "__main__":
    cli.run(main)
