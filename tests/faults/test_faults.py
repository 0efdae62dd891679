"""Every fault done to every command; ``make test-faults`` is the long form of it.

The long form does each fault several times to each command; ``make test`` does some of them once to
commands that start fast. A trial that fails is done again by the seed in its name.
"""

import itertools
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import results
from tests.faults.commands import COMMANDS, Command, Loop
from tests.faults.faults import FAULTS, Fault
from tests.faults.job import Hung, has_namespaces
from tests.faults.outputs import Wrong
from tests.faults.results import Result
from tests.faults.trial import MISSED, Trial

LONG = bool(os.environ.get("FAULTS_LONG"))
SEED = int(os.environ.get("FAULTS_SEED", random.SystemRandom().randrange(1000) if LONG else 1))
RESULTS = os.environ.get("FAULTS_RESULTS")


def trials() -> Iterator[object]:
    for fault in FAULTS:
        for command in COMMANDS.values():
            if fault.holds(command) and (LONG or command.name in fault.short):
                for number in range(fault.long if LONG else 1):
                    name = f"{fault.name}-{command.name}-{number}"
                    yield pytest.param(fault, command, number, id=re.sub("[ ,]+", "_", name))


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Loop:
    return Loop(tmp_path_factory.mktemp("loop"))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("fault", "command", "number"), list(trials()))
def test_a_fault(fault: Fault, command: Command, number: int, loop: Loop, tmp_path: Path) -> None:
    if fault.mounts and not has_namespaces():
        pytest.skip("mounting file systems needs root")
    source = random.Random(f"{SEED} {fault.name} {command.name} {number}")
    loop.prepare(command)
    detail = ""
    try:
        # A moment may come after the end: how long a run takes depends on what else is running.
        for attempt in itertools.count():
            trial = Trial(loop, command, tmp_path / f"trial{attempt}", source)
            outcome = fault.strike(trial)
            if outcome != MISSED:
                break
    except (Wrong, Hung) as error:
        outcome, detail = type(error).__name__.lower(), str(error)
    result = Result(
        fault=fault.name,
        command=command.name,
        case=f"FAULTS_SEED={SEED}: " + ("; ".join(trial.cases) or "nothing"),
        outcome=outcome,
        passed=not detail,
        tried=len(trial.cases),
        detail=detail,
    )
    if RESULTS:
        results.append(Path(RESULTS), result)
    assert result.passed, f"{result.case}: {result.detail}"
