"""The part of an audit that a judge answers, and how far the judge can be believed."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from megatron_sbp.evaluation.audit_samples import Samples, places_of, spread
from megatron_sbp.evaluation.findings import NEITHER, Findings, of_counts
from megatron_sbp.evaluation.judge import (
    NON_FACTUAL,
    PAIR_IRRELEVANCE,
    Answers,
    Question,
    Tally,
    swap_facts,
    tally,
)

QUESTIONS = (NON_FACTUAL, PAIR_IRRELEVANCE)
_NO_JUDGE = "no --judge-model"

Case = dict[str, str]


def not_judged(findings: Findings) -> None:
    """Say of the judged measures that there is no judge."""
    for question in QUESTIONS:
        findings.add(question.name, NEITHER, note=_NO_JUDGE)


def measure_judged(
    samples: Samples,
    answers: Answers,
    *,
    most: int,
    characters: int,
    findings: Findings,
) -> dict[str, Any]:
    """Ask a judge about documents, pairs and planted cases.

    Args:
        samples: What to measure.
        answers: Where the answers come from.
        most: Cases of each kind.
        characters: Most characters shown of a document.
        findings: Where the rows go.

    Returns:
        What ``audit.json`` says of the judge.
    """
    places = places_of(samples.size, most)
    cut = _Cut(characters)
    agreement = [
        _judge_documents(samples, places, cut, answers, findings),
        _judge_pairs(samples, places, cut, answers, findings),
    ]
    questions = [
        {"name": question.name, "version": question.version, "text": question.text}
        for question in QUESTIONS
    ]
    settings = {"documents": len(places), "characters": characters}
    return answers.description() | settings | {"questions": questions, "agreement": agreement}


class _Cut:
    """Texts with at most so many characters."""

    def __init__(self, characters: int):
        self._characters = characters

    def __call__(self, texts: Iterable[str]) -> list[str]:
        return [text[: self._characters] for text in texts]


def _judge_documents(
    samples: Samples,
    places: np.ndarray,
    cut: _Cut,
    answers: Answers,
    findings: Findings,
) -> dict[str, Any]:
    new = cut(samples.new.texts(samples.synthetic_documents[places].tolist()))
    real = cut(samples.real.texts(samples.real_documents[places].tolist()))
    swapped = [(number, swap_facts(text)) for number, text in enumerate(real)]
    false = [(number, text) for number, text in swapped if text is not None]
    groups = {"synthetic": new, "real": real, "planted": [text for _, text in false]}
    cases = {name: [{"document": text} for text in group] for name, group in groups.items()}
    found = tally(NON_FACTUAL, cases, answers)
    # The intact ones are those that could be made false: the same documents on both sides.
    intact = Tally(defects=[found["real"].defects[number] for number, _ in false])
    what = "real documents with names and numbers exchanged", "the same documents intact"
    agreement = _agreement(NON_FACTUAL, found["planted"], intact, what)
    _add(NON_FACTUAL, found["synthetic"], found["real"], agreement, answers, places, findings)
    return agreement


def _judge_pairs(
    samples: Samples,
    places: np.ndarray,
    cut: _Cut,
    answers: Answers,
    findings: Findings,
) -> dict[str, Any]:
    rows = places_of(len(samples.anchors), len(places))
    read = samples.sources.texts
    d1 = cut(read(samples.seeds[places].tolist()))
    d2 = cut(samples.new.texts(samples.synthetic_documents[places].tolist()))
    anchors = cut(read(samples.anchors[rows].tolist()))
    neighbors = cut(read(samples.neighbors[rows].tolist()))
    second = samples.neighbors[rows] if len(rows) else samples.real_documents[places]
    # Half of the corpus away: neighbouring documents may be related.
    random = np.roll(spread(samples.real_documents, len(second)), len(second) // 2)
    cases = {
        "synthetic": _paired(d1, d2),
        "real": _paired(anchors, neighbors),
        "planted": _paired(cut(read(random.tolist())), cut(read(second.tolist()))),
    }
    found = tally(PAIR_IRRELEVANCE, cases, answers)
    what = "d1 replaced by a random document", "true pairs"
    agreement = _agreement(PAIR_IRRELEVANCE, found["planted"], found["real"], what)
    _add(PAIR_IRRELEVANCE, found["synthetic"], found["real"], agreement, answers, places, findings)
    return agreement


def _paired(first: list[str], second: list[str]) -> list[Case]:
    return [{"d1": d1, "d2": d2} for d1, d2 in zip(first, second, strict=True)]


def _agreement(
    question: Question, planted: Tally, intact: Tally, what: tuple[str, str]
) -> dict[str, Any]:
    """Shares of planted defects that were found, and of intact cases that were let pass."""
    sensitivity = of_counts(planted.found, planted.asked)
    specificity = of_counts(intact.asked - intact.found, intact.asked)
    return {
        "name": question.name,
        "planted": planted.counts() | {"cases": what[0]},
        "intact": intact.counts() | {"cases": what[1]},
        "sensitivity": sensitivity.value,
        "sensitivity_interval": sensitivity.interval,
        "specificity": specificity.value,
        "specificity_interval": specificity.interval,
    }


def _add(
    question: Question,
    synthetic: Tally,
    real: Tally,
    agreement: dict[str, Any],
    answers: Answers,
    places: np.ndarray,
    findings: Findings,
) -> None:
    """The row of a judged measure, and its worst documents."""
    sides = [of_counts(side.found, side.asked) for side in (synthetic, real)]
    parts = [f"{answers.judge.name}, {synthetic.asked:,} answers"]
    for name, group in (("sensitivity", "planted"), ("specificity", "intact")):
        if agreement[name] is not None:
            parts.append(f"{name} {agreement[name]:.2f} of {agreement[group]['asked']}")
    findings.add(question.name, sides, note=", ".join(parts))
    scores = np.array([defect is True for defect in synthetic.defects], dtype=float)
    findings.add_worst(question.name, scores, "", places=places, least=1)
