"""Boxes of a run, small and made by hand, for the tests of the report."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.evaluation.report import ReportOptions, report
from megatron_sbp.manifest import Manifest, fingerprint

HOSTILE = "</pre><script>alert('x')</script> & \x00\x1b[31m"
STEPS = 60


def write_run(
    directory: Path, objective: str, ledger: list[dict[str, Any]], **finals: float
) -> None:
    """A training run's box, with the metrics of a run whose loss falls to 3."""
    training = "lm loss" if objective == "lm" else "synthesis loss"
    directory.mkdir(parents=True)
    lines = [(step, training, 3 + 5 * math.exp(-step / 10)) for step in range(1, STEPS + 1)]
    lines += [
        (step, metric, value + 5 * math.exp(-step / 10))
        for metric, value in finals.items()
        for step in (STEPS // 2, STEPS)
    ]
    with open(directory / "metrics.jsonl", "w") as file:
        for step, metric, value in lines:
            file.write(json.dumps({"iteration": step, "metric": metric, "value": value}) + "\n")
    arguments = ["--num-layers", "4", "--hidden-size", "192", "--lr", "3e-3", "--swiglu"]
    counts = {
        "iterations": STEPS,
        "consumed_samples": 8 * STEPS,
        "tokens": 8 * STEPS * 512,
        "supervised_tokens": 8 * STEPS * 512,
        "parameters": 2_345_678,
        "sequence_length": 512,
        "global_batch_size": 8,
        "ledger": ledger,
        "final": finals,
    }
    Manifest(
        stage="train",
        options={"objective": objective, "arguments": arguments},
        inputs={},
        counts=counts,
        seconds=123.4,
        peak_memory_bytes=900 * 2**20,
        environment={"python": "3.12.1", "packages": {"torch": "2.15.0"}, "cpus": 2},
    ).write(directory)


def source(prefix: str, kind: str, tokens: int, seen: int) -> dict[str, Any]:
    return {
        "prefix": prefix,
        "kind": kind,
        "documents": 100,
        "tokens": tokens,
        "tokens_seen": seen,
        "epochs": seen / tokens,
    }


def write_synthetic(prefix: Path, corpus: Corpus, texts: list[str], seeds: list[int]) -> None:
    prefix.parent.mkdir(parents=True)
    tokenizer = corpus.tokenizer
    with IndexedWriter(prefix, np.uint16) as writer:
        for text in texts:
            writer.append([*tokenizer.encode(text), tokenizer.eod])
    np.save(f"{prefix}.seed.npy", np.array(seeds, dtype=np.int64))
    np.save(f"{prefix}.sampling_seed.npy", np.arange(len(seeds), dtype=np.uint64))
    np.save(f"{prefix}.finish_reason.npy", np.arange(len(seeds), dtype=np.uint8) % 2)
    np.save(f"{prefix}.seed_tokens.npy", np.zeros(len(seeds), dtype=np.int32))
    np.save(f"{prefix}.checkpoint.npy", np.zeros(len(seeds), dtype=np.uint64))
    np.save(f"{prefix}.generation.npy", np.ones(len(seeds), dtype=np.uint8))


def write_boxes(directory: Path, corpus: Corpus, pairs: Path) -> None:
    """Every box of a run; those of the corpus and the pairs are linked."""
    directory.joinpath("corpus").symlink_to(corpus.prefixes[0].parent)
    directory.joinpath("pairs").symlink_to(pairs)
    generator = np.random.default_rng(5)
    rows = generator.normal(size=(len(corpus), 16))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    (directory / "embeddings").mkdir()
    halves = np.array_split(rows.astype(np.float16), 2)
    for number, half in enumerate(halves):
        np.save(directory / "embeddings" / f"embeddings-{number:05}-of-00002.npy", half)
    Manifest(stage="embed", options={}, inputs={}).write(directory / "embeddings")

    real = source("corpus/words", "real", 10_000, 30_000)
    write_run(directory / "first", "lm", [real], **{"lm loss validation-heldout": 4.25})
    write_run(
        directory / "tuned",
        "synthesis",
        [source("corpus/words", "pairs", 5_000, 9_000)],
        **{"synthesis loss validation": 3.5, "random-d1 loss validation": 3.75},
    )
    synthetic = source("filtered/new", "synthetic", 12_000, 11_000)
    write_run(
        directory / "last",
        "lm",
        [source("corpus/words", "real", 10_000, 19_000), synthetic],
        **{"lm loss validation-heldout": 4.125, "lm loss validation-heldout ppl": 61.9},
    )
    texts = [f"written from {seed}: " + "word1 " * seed for seed in range(40)]
    texts[0] = HOSTILE
    for name, stage, count in (("raw", "synthesize", 40), ("filtered", "filter", 30)):
        prefix = directory / name / "new"
        write_synthetic(prefix, corpus, texts[:count], list(range(count)))
        Manifest(
            stage=stage,
            options={},
            inputs={},
            outputs={"new.idx": fingerprint(f"{prefix}.idx")},
            counts={
                "documents": count,
                "corpus": Corpus(corpus.prefixes[:1]).fingerprints,
                "removed": {"copies_of_seed": 40 - count},
            },
            seconds=24.0,
            peak_memory_bytes=500 * 2**20,
        ).write(directory / name)
    (directory / "audit").mkdir()
    row = {"unit": "share", "note": HOSTILE, "synthetic_interval": None, "real_interval": None}
    measures = [
        row
        | {"name": "repetition", "synthetic": 0.043, "real": 0.018}
        | {"synthetic_interval": [0.0314, 0.0586]},
        row | {"name": "non-factual", "synthetic": None, "real": None, "note": "needs a judge"},
    ]
    (directory / "audit" / "audit.json").write_text(
        json.dumps({"sample": 40, "measures": measures})
    )
    Manifest(stage="audit", options={}, inputs={}).write(directory / "audit")


def make(output: Path, **options: Any) -> dict[str, Any]:
    """Write a report and return what report.json says."""
    report(ReportOptions(output=str(output), **options))
    return json.loads((output / "report.json").read_text(), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"report.json has {constant}, which is no JSON")
