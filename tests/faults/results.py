"""What was tried and how it ended: a line of JSON for every trial, and the table made of them.

    python -m tests.faults.results faults.jsonl docs/reliability.md

puts the table of the lines in the first file between the marks in the second.
"""

import itertools
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass(frozen=True, kw_only=True)
class Result:
    """One trial."""

    fault: str
    command: str
    case: str
    """What exactly was done: the moment, the file, the place in it."""
    outcome: str
    """How it ended, in words that trials of one fault share."""
    passed: bool
    tried: int = 1
    """How many times the fault struck in it."""
    detail: str = ""
    """What was wrong, if it did not pass."""


def append(path: Path, result: Result) -> None:
    """Add a line to a file of results."""
    with open(path, "a") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def read(path: Path) -> list[Result]:
    """All results of a file."""
    return [Result(**json.loads(line)) for line in path.read_text().splitlines()]


def table(results: list[Result]) -> list[str]:
    """Lines of a table: fault, command, times tried, outcomes with how often each."""
    lines = ["| fault | command | tried | outcome |", "|---|---|---|---|"]
    faults = [*dict.fromkeys(result.fault for result in results)]
    commands = [*dict.fromkeys(result.command for result in results)]
    tried_on = {(result.fault, result.command) for result in results}
    for fault, command in (row for row in itertools.product(faults, commands) if row in tried_on):
        some = [one for one in results if (one.fault, one.command) == (fault, command)]
        tried = sum(one.tried for one in some)
        outcomes = Counter(one.outcome if one.passed else f"FAILED: {one.outcome}" for one in some)
        shown = "; ".join(
            outcome if len(outcomes) == 1 else f"{outcome} ({count})"
            for outcome, count in outcomes.most_common()
        )
        lines.append(f"| {fault} | {command} | {tried} | {shown} |")
    failed = sum(not result.passed for result in results)
    tried = sum(result.tried for result in results)
    lines += ["", f"{tried} faults in {len(results)} trials, of which {failed} failed."]
    return lines


def main() -> None:
    results, page = map(Path, sys.argv[1:])
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    lines = "\n".join(table(read(results)))
    page.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")


if __name__ == "__main__":
    main()
