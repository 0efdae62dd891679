"""What an audit finds: rows of the table, distributions to plot, the worst documents."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megatron_sbp.evaluation.intervals import Interval, bootstrap, histogram, wilson

MEASURES = (
    "repetition",
    "duplicates",
    "non-factual",
    "pair irrelevance",
    "pair copying, equal",
    "pair copying, 80% of shingles",
    "copied from the corpus",
    "13-grams in the corpus",
    "novel 5-grams",
    "coverage by the seed",
    "density by the seed",
    "length, 10%",
    "length, median",
    "length, 90%",
    "distinct-1",
    "distinct-2",
    "distinct-3",
    "self-BLEU",
    "relevance",
    "relevance, pairs mixed",
    "d2 beside true d2, cosine",
    "d2 beside true d2, ROUGE-L",
)
"""The rows of the table, the paper's first."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its 95% confidence interval; None for what was not measured."""

    value: float | None = None
    interval: Interval | None = None


NOT_MEASURED = Figure()
NEITHER = (NOT_MEASURED, NOT_MEASURED)
"""What was measured on neither side."""


def share(found: np.ndarray) -> Figure:
    """Share of documents, bool [documents]."""
    return of_counts(int(np.count_nonzero(found)), len(found))


def of_counts(found: int, asked: int) -> Figure:
    """Share of so many."""
    return Figure(found / asked, wilson(found, asked)) if asked else NOT_MEASURED


def ratio(values: np.ndarray, weights: np.ndarray) -> Figure:
    """Ratio of the sums of two figures of every document."""
    total = weights.sum()
    return Figure(float(values.sum() / total), bootstrap(values, weights)) if total else Figure()


def mean(values: np.ndarray) -> Figure:
    """Mean over documents; those that are nan have no value."""
    some = values[~np.isnan(values)]
    return ratio(some, np.ones(len(some)))


@dataclass(kw_only=True, slots=True)
class Row:
    """One measure of the table."""

    name: str
    """One of ``MEASURES``."""
    synthetic: float | None
    """None if it was not measured, which ``note`` explains."""
    real: float | None
    unit: str
    note: str
    synthetic_interval: Interval | None = None
    """95% confidence interval."""
    real_interval: Interval | None = None


@dataclass(slots=True)
class Findings:
    """Filled in by one part of the audit after another."""

    rows: dict[str, Row] = field(default_factory=dict)
    """Name -> row."""
    distributions: dict[str, Any] = field(default_factory=dict)
    """Name -> {"bins", and per kind of documents or pairs a histogram}."""
    worst: list[tuple[str, str, np.ndarray, np.ndarray]] = field(default_factory=list)
    """Measure, format of its score, places in the sample of its worst documents, their scores."""
    most_shown: int = 3

    def add(
        self, name: str, sides: Iterable[Figure], *, unit: str = "share", note: str = ""
    ) -> None:
        """Add a row with its figures for synthetic and real documents."""
        synthetic, real = sides
        self.rows[name] = Row(
            name=name,
            synthetic=synthetic.value,
            real=real.value,
            unit=unit,
            note=note,
            synthetic_interval=synthetic.interval,
            real_interval=real.interval,
        )

    def add_distribution(
        self, name: str, edges: Sequence[float], kinds: dict[str, np.ndarray]
    ) -> None:
        """Add histograms over the same bins."""
        values = {kind: histogram(some[~np.isnan(some)], edges) for kind, some in kinds.items()}
        self.distributions[name] = {"bins": list(edges)} | values

    def add_worst(
        self,
        name: str,
        scores: np.ndarray,
        form: str,
        *,
        places: np.ndarray | None = None,
        least: float | None = None,
        lowest: bool = False,
    ) -> None:
        """Remember the documents with the highest scores, or the lowest ones.

        Args:
            name: The measure.
            scores: [n], nan for documents without one.
            form: How a score is shown, a format string.
            places: Of the documents in the sample, int64 [n], by default all of it.
            least: Documents with a lower score are not shown; with ``lowest``, with a higher one.
            lowest: Whether low scores are bad ones.
        """
        sign = -1 if lowest else 1
        order = np.argsort(-sign * scores, kind="stable")
        # Compared in this direction nan is left out.
        bad = sign * scores >= (-np.inf if least is None else sign * least)
        order = order[bad[order]][: self.most_shown]
        where = order if places is None else places[order]
        self.worst.append((name, form, where, scores[order]))
