"""What a report says, as plain data: report.json is this, report.html shows it."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.evaluation.report_boxes import ROLES, STAGES, Box, read_audit
from megatron_sbp.manifest import Manifest
from megatron_sbp.metrics import read_metrics

Boxes = dict[str, Box]

ARMS = ("baseline", "synthesizer", "joint")
_CURVE_POINTS = 400
_SHAPE = {
    "layers": "num-layers",
    "hidden size": "hidden-size",
    "feed-forward size": "ffn-hidden-size",
    "attention heads": "num-attention-heads",
    "key-value groups": "num-query-groups",
    "peak learning rate": "lr",
    "final learning rate": "min-lr",
    "learning rate schedule": "lr-decay-style",
    "weight decay": "weight-decay",
}


def missing(boxes: Boxes) -> list[dict[str, str]]:
    """The roles without a box."""
    return [
        {"role": role, "name": name, "flag": f"--{role}"}
        for role, name in ROLES.items()
        if role not in boxes
    ]


# What was run, and on what


def setting(boxes: Boxes) -> dict[str, Any]:
    """Versions, machine, commands, the models' shape and every stage's options."""
    environments = [manifest.environment for box in boxes.values() for manifest in box.manifests]
    packages: dict[str, list[str]] = {}
    for environment in environments:
        own = {"megatron_sbp": environment.get("megatron_sbp"), "Python": environment.get("python")}
        for name, version in (own | environment.get("packages", {})).items():
            if version and version not in packages.setdefault(name, []):
                packages[name].append(version)
    finished = sorted(entry["finished"] for entry in environments if "finished" in entry)
    return {
        "machines": _distinct(map(_machine, environments)),
        "versions": {name: ", ".join(versions) for name, versions in packages.items()},
        "finished": {"first": finished[0], "last": finished[-1]} if finished else None,
        "commands": [
            {"stage": STAGES[role], "command": _command(manifest)}
            for role, box in boxes.items()
            for manifest in box.manifests
        ],
        "options": {
            STAGES[role]: _options(box.manifests)
            for role, box in boxes.items()
            if role not in ARMS and box.manifests
        },
        "models": _models({arm: boxes[arm].manifest for arm in ARMS if arm in boxes}),
        "data": _data(boxes),
    }


def _distinct(items: Iterable[Any]) -> list[Any]:
    seen: list[Any] = []
    for item in items:
        if item not in seen:
            seen.append(item)
    return seen


def _machine(environment: dict[str, Any]) -> dict[str, Any]:
    return {key: environment.get(key) for key in ("platform", "cpus", "memory_bytes", "devices")}


def _command(manifest: Manifest) -> str:
    """The command of a stage as it is typed in the repository."""
    if manifest.stage == "train":
        arguments = manifest.options.get("arguments", [])
        return "python -m megatron_sbp.pretrain " + shlex.join(arguments)
    program, *arguments = manifest.environment.get("command") or ["?"]
    return f"python tools/{Path(program).name} {shlex.join(arguments)}"


def _options(manifests: Sequence[Manifest]) -> dict[str, Any]:
    """Option -> its value, or where boxes differ the list of their values."""
    options = {}
    for name in manifests[0].options:
        values = _distinct(manifest.options.get(name) for manifest in manifests)
        options[name] = values[0] if len(values) == 1 else values
    return options


def _models(manifests: dict[str, Manifest]) -> dict[str, dict[str, Any]]:
    """Row name -> arm -> value: shape, recipe and length of every training run."""
    rows: dict[str, dict[str, Any]] = {}
    for arm, manifest in manifests.items():
        counts = manifest.counts
        given = _flags(manifest.options.get("arguments", []))
        values = {
            "parameters": counts.get("parameters"),
            **{name: given.get(flag) for name, flag in _SHAPE.items()},
            "context, tokens": counts.get("sequence_length"),
            "sequences per step": counts.get("global_batch_size"),
            "steps": counts.get("iterations"),
            "positions trained on": counts.get("tokens"),
            "positions with a loss": counts.get("supervised_tokens"),
        }
        for name, value in values.items():
            rows.setdefault(name, {})[arm] = value
    return {name: row for name, row in rows.items() if any(row.values())}


def _flags(arguments: Sequence[str]) -> dict[str, str]:
    """Flag without its dashes -> its values in one string."""
    flags: dict[str, str] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            flags[name] = value
        else:
            flags[name] = f"{flags.get(name, '')} {argument}".strip()
    return flags


def _data(boxes: Boxes) -> list[dict[str, Any]]:
    """Documents and tokens of every prefix."""
    return [
        {"role": role, "prefix": entry["prefix"]}
        | {name: entry[name] for name in ("documents", "tokens")}
        for role in ("corpus", "synthetic", "filtered")
        if role in boxes
        for entry in Corpus(boxes[role].prefixes).fingerprints
    ]


# Losses


def headline(boxes: Boxes) -> dict[str, Any]:
    """The held-out losses, in nats per token."""
    baseline = _final(boxes, "baseline", "lm loss validation")
    joint = _final(boxes, "joint", "lm loss validation")
    true = _final(boxes, "synthesizer", "synthesis loss validation")
    random = _final(boxes, "synthesizer", "random-d1 loss validation")
    return {
        "baseline": baseline,
        "joint": joint,
        "tokens": {
            arm: boxes[arm].manifest.counts.get("tokens")
            for arm in ("baseline", "joint")
            if arm in boxes
        },
        "difference": None if baseline is None or joint is None else joint - baseline,
        "true_d1": true,
        "random_d1": random,
        "gain": None if true is None or random is None else random - true,
    }


def _final(boxes: Boxes, arm: str, metric: str) -> float | None:
    """Last value of a held-out metric; the name of Megatron's validation set may follow it."""
    if arm not in boxes:
        return None
    for name, value in boxes[arm].manifest.counts.get("final", {}).items():
        if _is_metric(name, metric):
            return _finite(value)
    return None


def _is_metric(name: str, metric: str) -> bool:
    return re.fullmatch(re.escape(metric) + r"(-\S+)?", name) is not None


def _finite(value: float) -> float | None:
    """JSON has no infinities."""
    return float(value) if np.isfinite(value) else None


def losses(boxes: Boxes) -> list[dict[str, Any]]:
    """Curves of every run; training losses as at most 400 means over blocks of steps."""
    wanted = {
        "baseline": {"lm loss": "training", "lm loss validation": "held-out"},
        "joint": {"lm loss": "training", "lm loss validation": "held-out"},
        "synthesizer": {
            "synthesis loss": "training",
            "synthesis loss validation": "held-out, true d1",
            "random-d1 loss validation": "held-out, random d1",
        },
    }
    curves = []
    for arm, metrics in wanted.items():
        series = read_metrics(boxes[arm].directory) if arm in boxes else {}
        for metric, label in metrics.items():
            for name, points in series.items():
                if not _is_metric(name, metric):
                    continue
                block = max(1, -(-len(points) // _CURVE_POINTS)) if label == "training" else 1
                curves.append(
                    {
                        "run": arm,
                        "loss": label,
                        "block": block,
                        "points": _means(points, block),
                        "not_finite": [step for step, value in points if not np.isfinite(value)],
                    }
                )
    return curves


def _means(points: list[tuple[int, float]], block: int) -> list[list[float]]:
    """(iteration, value) averaged over blocks; the iteration is the block's last."""
    finite = [(iteration, value) for iteration, value in points if np.isfinite(value)]
    return [
        [chunk[-1][0], float(np.mean([value for _, value in chunk]))]
        for chunk in (finite[start : start + block] for start in range(0, len(finite), block))
    ]


# Counts


def ledger(boxes: Boxes) -> list[dict[str, Any]]:
    """What every run read: source by source, and in total."""
    return [
        ledger_entry(arm, boxes[arm].manifest.counts.get("ledger", []))
        for arm in ARMS
        if arm in boxes
    ]


def ledger_entry(arm: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What one run read; ``rows`` are the ledger of its manifest."""
    total = sum(row["tokens_seen"] for row in rows)
    synthetic = sum(row["tokens_seen"] for row in rows if row["kind"] == "synthetic")
    return {
        "arm": arm,
        "sources": rows,
        "tokens_seen": total,
        "synthetic_share": synthetic / total if total else 0.0,
    }


def warnings(content: dict[str, Any]) -> list[str]:
    """What breaks the method or the comparison."""
    found = [
        f"{curve['run']}: its {curve['loss']} loss is not a finite number in "
        f"{len(curve['not_finite']):,} steps, the first of them {curve['not_finite'][0]}"
        for curve in content["losses"]
        if curve["not_finite"]
    ]
    for arm in content["ledger"]:
        for row in arm["sources"]:
            if row["kind"] == "synthetic" and row["tokens_seen"] > row["tokens"]:
                found.append(
                    f"{arm['arm']}: the synthetic documents of {row['prefix']} were read "
                    f"{row['epochs']:.2f} times; the method reads them at most once"
                )
    seen = {arm["arm"]: arm["tokens_seen"] for arm in content["ledger"]}
    if {"baseline", "joint"} <= seen.keys() and seen["baseline"] != seen["joint"]:
        found.append(
            f"the baseline read {seen['baseline']:,} tokens and the joint run {seen['joint']:,}; "
            "their losses compare only at equal numbers"
        )
    return found


def cost(boxes: Boxes) -> list[dict[str, Any]]:
    """Seconds of every stage, all its boxes together, and the peak memory of any of them."""
    return [
        {
            "stage": STAGES[role],
            "seconds": sum(manifest.seconds for manifest in box.manifests),
            "peak_memory_bytes": max(manifest.peak_memory_bytes for manifest in box.manifests),
        }
        for role, box in boxes.items()
        if box.manifests
    ]


def filters(boxes: Boxes) -> list[dict[str, Any]]:
    """What every stage that leaves something out was given, left out for which reason, and kept."""
    tables = []
    for role, title, removed, kept in (
        ("corpus", "documents read", "skipped", ("documents", "heldout_documents")),
        ("pairs", "ordered pairs of two documents", "removed", ("pairs",)),
        ("filtered", "synthetic documents", "removed", ("documents",)),
    ):
        found = [manifest.counts for manifest in boxes[role].manifests] if role in boxes else []
        if not found or any(removed not in counts for counts in found):
            continue
        reasons: Counter[str] = Counter()
        for counts in found:
            reasons.update(counts[removed])
        left = sum(counts[name] for counts in found for name in kept)
        tables.append(
            {
                "stage": STAGES[role],
                "title": title,
                "given": left + sum(reasons.values()),
                "removed": {name.replace("_", " "): count for name, count in reasons.items()},
                "kept": left,
            }
        )
    return tables


def audit(boxes: Boxes) -> dict[str, Any] | None:
    """The quality audit as the audit wrote it."""
    return read_audit(boxes["audit"].directory) if "audit" in boxes else None


# What the figures mean


def reading(content: dict[str, Any]) -> list[str]:
    """What the figures say and what they do not."""
    sentences = [
        "One run of each kind with one seed: the difference between the joint run and the baseline "
        "has no error bar here, and another seed may change its sign.",
        "The held-out documents come from the same source as the training documents: their loss "
        "says how well a run fits this corpus, and nothing about other text or tasks.",
        "Baseline and joint run are matched by the tokens that the final model reads. Embedding, "
        "mining, tuning and generating come on top; their seconds are under Cost.",
        "The conditional gain is measured on pairs of held-out documents. It says that d1 helps to "
        "predict d2; it does not say that what the synthesizer writes is true, new or useful.",
        _reading_of_audit(content["audit"]),
        "Seconds and memory are those of this machine and of whatever else it was doing.",
    ]
    parameters = content["setting"]["models"].get("parameters", {})
    if parameters:
        sentences.insert(
            0,
            f"The models have {max(filter(None, parameters.values())):,} parameters. The paper's "
            "gains are those of 3 and 6 billion parameters on 200 billion tokens and more; "
            "a run of this size shows that the loop works, not how large its gain is.",
        )
    return sentences


def _reading_of_audit(found: dict[str, Any] | None) -> str:
    judged = found is not None and any(
        row["name"] == "non-factual" and row["synthetic"] is not None for row in found["measures"]
    )
    if judged:
        return (
            "What is false or unrelated is what the audit's judge takes for it; the notes say how "
            "often it was right on planted cases."
        )
    return (
        "The audit counts what can be counted without a judge. It does not look for false "
        "statements."
    )
