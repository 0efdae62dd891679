"""What a judge is asked about documents and pairs, and its answers, kept that none is paid twice.

A judge answers yes or no. How far it can be believed is measured in the same run, on planted cases
whose answer is known.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, Protocol

from megatron_sbp.cli import Progress
from megatron_sbp.manifest import atomic_write

FILENAME = "answers.jsonl"
LEAST_FACTS = 4
"""Names and numbers that a document must have to be made false by exchanging them."""

_NUMBER = re.compile(r"\b\d+(?:[.,]\d+)*\b")
_NAME = re.compile(r"(?<=[a-z,] )[A-Z]\w+")  # not the first word of a sentence


@dataclass(frozen=True, slots=True)
class Question:
    """One question, with a version that changes when its text does."""

    name: str
    version: int
    text: str
    """Template of the prompt, with a place for every text."""
    defect: bool
    """Whether yes (True) or no (False) names the defect that the measure counts."""

    def prompt(self, **texts: str) -> str:
        """The prompt about some texts."""
        return self.text.format(**texts)


NON_FACTUAL = Question(
    "non-factual",
    1,
    """Read this document. It may break off at its end.

<document>
{document}
</document>

Does the document state something that is false, or that contradicts what else it states? \
Opinions, fiction that is recognisable as such, missing facts and bad style do not count. Answer \
with one word, yes or no.""",
    defect=True,
)
PAIR_IRRELEVANCE = Question(
    "pair irrelevance",
    1,
    """Read these two documents. They may break off at their ends.

<first>
{d1}
</first>

<second>
{d2}
</second>

Are the two documents related, so that they are about the same subject, entity, event or question? \
Being of the same kind or in the same style does not count. Answer with one word, yes or no.""",
    defect=False,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's answer to one prompt."""

    yes: bool | None
    """None if what was said is neither yes nor no."""
    said: str
    """The words of the answer, or the probabilities it was read from."""
    by: str
    """What the model that answered is called there."""
    probability: float | None = None
    """Of yes and no together, where it is known."""


class Judge(Protocol):
    """Something that answers prompts."""

    name: str
    """Of the model, as given."""

    def settings(self) -> dict[str, Any]:
        """What decides the answers besides the prompts."""

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, Verdict]]:
        """Answer every prompt; (its place, verdict) in any order.

        Raises:
            InputError: If the judge cannot be reached, refuses, or cannot read a prompt.
        """

    def description(self) -> dict[str, Any]:
        """The settings, and what else is worth telling."""


class Answers:
    """The answers of a judge in a file, one JSON object per line, by the checksum of the prompt.

    Args:
        path: The file; it is made, or continued.
        judge: Who answers what is not in it.
    """

    def __init__(self, path: Path, judge: Judge):
        self._path, self.judge = path, judge
        self._known = dict(_read(path)) if path.exists() else {}
        # Whole lines only: an interrupted run may have left a part of one.
        lines = [_line(key, verdict) for key, verdict in self._known.items()]
        with atomic_write(path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8")

    def verdicts(self, prompts: Sequence[str], title: str) -> list[Verdict]:
        """The verdict on every prompt, from the file or from the judge."""
        keys = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
        missing = {key: prompt for key, prompt in zip(keys, prompts, strict=True)}
        missing = {key: prompt for key, prompt in missing.items() if key not in self._known}
        asked = list(missing)
        with (
            open(self._path, "a", encoding="utf-8") as file,
            Progress(title, len(asked), "questions") as progress,
        ):
            for place, verdict in self.judge.ask(list(missing.values())):
                self._known[asked[place]] = verdict
                file.write(_line(asked[place], verdict))
                file.flush()
                progress.update()
        return [self._known[key] for key in keys]

    def description(self) -> dict[str, Any]:
        """The judge, which models answered, and the median probability of yes and no together."""
        verdicts = self._known.values()
        known = [verdict.probability for verdict in verdicts if verdict.probability is not None]
        return self.judge.description() | {
            "answered_by": sorted({verdict.by for verdict in verdicts}),
            "yes_or_no_probability": median(known) if known else None,
        }


def _line(key: str, verdict: Verdict) -> str:
    return json.dumps({"prompt": key} | asdict(verdict)) + "\n"


def _read(path: Path) -> Iterator[tuple[str, Verdict]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            fields = json.loads(line)
            yield fields.pop("prompt"), Verdict(**fields)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue


@dataclass(kw_only=True, slots=True)
class Tally:
    """Answers to one question about some cases."""

    defects: list[bool | None]
    """Whether each case was said to have the defect; None where the answer was neither."""

    @property
    def asked(self) -> int:
        """Cases with an answer."""
        return sum(defect is not None for defect in self.defects)

    @property
    def found(self) -> int:
        """Cases said to have the defect."""
        return sum(defect is True for defect in self.defects)

    def counts(self) -> dict[str, int]:
        """As they stand in ``audit.json``."""
        unanswered = len(self.defects) - self.asked
        return {"asked": self.asked, "found": self.found, "unanswered": unanswered}


def tally(
    question: Question, cases: Mapping[str, Sequence[Mapping[str, str]]], answers: Answers
) -> dict[str, Tally]:
    """Put one question about several groups of cases.

    Args:
        question: The question.
        cases: Name of a group -> the texts of every case.
        answers: Where the answers come from.
    """
    prompts = [question.prompt(**texts) for group in cases.values() for texts in group]
    verdicts = iter(answers.verdicts(prompts, f"judge: {question.name}"))
    return {
        name: Tally(
            defects=[
                None if verdict.yes is None else verdict.yes == question.defect
                for verdict in islice(verdicts, len(group))
            ]
        )
        for name, group in cases.items()
    }


def swap_facts(text: str) -> str | None:
    """A document made false: each of its numbers, and of its names, in the place of the one before.

    A name is a capitalised word within a sentence. None if the document has too few of them.
    """
    swapped = 0
    for pattern in (_NUMBER, _NAME):
        facts = list(dict.fromkeys(pattern.findall(text)))
        if len(facts) > 1:
            following = dict(zip(facts, facts[1:] + facts[:1], strict=True))
            text = pattern.sub(lambda match, to=following: to[match[0]], text)  # type: ignore[misc]
            swapped += len(facts)
    return text if swapped >= LEAST_FACTS else None
