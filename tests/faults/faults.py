"""The table of faults: what is done to a command, and how it has to end."""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from megatron_sbp.manifest import Manifest
from megatron_sbp.models.checkpoint import INTEGRITY
from tests.faults.commands import SECONDS, Command
from tests.faults.outputs import Wrong
from tests.faults.trial import MISSED, NO_MATTER, SAME, Trial

_YEARS = 20 * 365 * 86400
_ROOM = "size=1g"
_KILLS = 2
"""In one trial. The two faults of killing have 5 trials of each command: 20 kills."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that happens to a command."""

    name: str
    strike: Callable[[Trial], str]
    """Do it; the outcome."""
    long: int
    """Trials of every command in the long form."""
    short: tuple[str, ...] = ()
    """Commands that it is tried on in the short form."""
    holds: Callable[[Command], bool] = lambda command: True
    """Whether it can happen to a command."""
    mounts: bool = False
    """Whether it needs the right to mount file systems."""


def killed_at_changes(trial: Trial) -> str:
    """Twice at a change of a file, or milliseconds after it, then restarted."""
    while len(trial.cases) < _KILLS:
        if not trial.killed_at_change(trial.source.choice(["process", "job"])):
            trial.start_anew()
    trial.ends_well()
    return SAME


def killed_at_moments(trial: Trial) -> str:
    """Twice at a moment of its life, then restarted."""
    longest = trial.loop.clean(trial.command.name).seconds
    while len(trial.cases) < _KILLS:
        seconds = trial.source.uniform(0, longest)
        victim = trial.source.choice(["first process", "job"])
        job = trial.start()
        if not job.sleep(seconds):
            job.wait(SECONDS)
            trial.start_anew()
            continue
        trial.cases.append(f"{victim} killed after {seconds:.3f} s")
        if victim == "job":
            job.kill_all()
        else:
            os.kill(job.main, signal.SIGKILL)
        job.wait(SECONDS)
    trial.ends_well()
    return SAME


def rank_killed(trial: Trial) -> str:
    """One rank at a moment; the others must end, and the launcher say so."""
    seconds = trial.source.uniform(0, trial.loop.clean(trial.command.name).seconds)
    job = trial.start()
    job.until(lambda: len(job.ranks()) == trial.command.ranks, SECONDS)
    job.sleep(seconds)
    ranks = job.ranks()
    if not ranks:
        job.wait(SECONDS)
        return MISSED
    victim = trial.source.choice(ranks)
    os.kill(victim, signal.SIGKILL)
    trial.cases.append(f"a rank killed after {seconds:.3f} s")
    # Before MPI has started, mpiexec kills the others itself, and may name one of them.
    if job.wait(SECONDS) and "Killed (signal 9)" not in job.everything:
        raise Wrong(f"process {victim} was killed, and nothing says so: {job.said}")
    trial.ends_well()
    return f"the others end, and mpiexec says why; {SAME}"


def disk_full(trial: Trial) -> str:
    """No room for a part of the output; then there is room."""
    whole = sum(path.stat().st_size for path in trial.reference.rglob("*") if path.is_file())
    size = max(8192, int(whole * trial.source.uniform(0.02, 0.9)))
    with trial.mounted(f"size={size}"):
        trial.cases.append(f"{size} bytes for an output of {whole}")
        job = trial.start()
        if not job.wait(SECONDS):
            return MISSED
        outcome = trial.refused(job, "No space left on device", " requested and ", " bytes left")
        trial.remount(_ROOM)
        trial.ends_well()
    return f"{outcome}; {SAME}"


def read_only(trial: Trial) -> str:
    """Nothing can be written; then it can."""
    with trial.mounted(f"ro,{_ROOM}"):
        trial.cases.append("a file system mounted read-only")
        job = trial.start()
        if not job.wait(SECONDS):
            raise Wrong("it ended with status 0")
        outcome = trial.refused(job, "Read-only file system")
        trial.remount("rw")
        trial.ends_well()
    return f"{outcome}; {SAME}"


def input_damaged(trial: Trial, how: str) -> str:
    """One of the files that it reads; then that file is as it was."""
    path = trial.source.choice(trial.copy_inputs())
    trial.damage(path, how)
    job = trial.start()
    if not job.wait(SECONDS):
        trial.check(job)
        # White space in a list of checksums does not matter.
        if str(path) in Manifest.read(trial.box).inputs and path.name != INTEGRITY:
            raise Wrong(f"{path} was an input, and was taken as it is")
        return NO_MATTER
    outcome = trial.refused(job, str(path), str(path.with_suffix("")), str(path.parent))
    shutil.copy2(trial.loop.boxes / path.relative_to(trial.inputs), path)
    trial.ends_well()
    return f"{outcome}; {SAME}"


def silently_flipped(trial: Trial) -> str:
    """A bit of its output, the time of modification unchanged, as on a disk that fails."""
    shutil.copytree(trial.reference, trial.box)
    if trial.command.trains:
        listed = sorted(set(trial.box.glob("iter_*/*")) - set(trial.box.glob(f"*/{INTEGRITY}")))
    else:
        listed = trial.pieces()
    path = trial.source.choice(listed)
    status = path.stat()
    trial.damage(path, "flip")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    job = trial.start_tool("tools/verify.py", "--box", trial.box)
    if not job.wait(SECONDS):
        raise Wrong("tools/verify.py found nothing")
    return "tools/verify.py: " + trial.refused(job, str(path))


def piece_damaged(trial: Trial, how: str) -> str:
    """One of the files that a killed run has left, before it is restarted."""
    while not trial.killed_at_change("job") or not trial.pieces():
        trial.start_anew()
    path = trial.source.choice(trial.pieces())
    trial.damage(path, how)
    job = trial.start()
    if not job.wait(SECONDS):
        trial.check(job)
        return SAME
    outcome = trial.refused(job, str(path), str(path.parent))
    trial.start_anew()
    trial.ends_well()
    return outcome


def clock_jumps(trial: Trial) -> str:
    """By days, forwards and back, and inputs from past and future."""
    for path in trial.copy_inputs():
        moment = trial.source.randint(0, 2 * _YEARS)
        os.utime(path, (moment, moment))
    days = trial.source.uniform(1, 100)
    trial.cases.append(f"{days:.1f} days")
    trial.ends_well({"FAULT_CLOCK": str(days * 86400)})
    return NO_MATTER


def two_at_once(trial: Trial) -> str:
    """The same command is started while it is at work."""
    first = trial.start()
    if not first.until(lambda: any(trial.output.rglob(".lock")), SECONDS):
        return MISSED
    first.signal_all(signal.SIGSTOP)
    if not any(trial.output.rglob(".lock")):
        first.signal_all(signal.SIGCONT)
        return MISSED
    second = trial.start()
    try:
        status = second.wait(SECONDS)
    finally:
        first.signal_all(signal.SIGCONT)
    trial.cases.append("a second run was started")
    if not status:
        raise Wrong("the second run ended with status 0")
    outcome = trial.refused(second, "another run is writing")
    if first.wait(SECONDS):
        raise Wrong(f"the first run failed: {first.said}")
    trial.check(first)
    return f"the second is {outcome}"


def memory_full(trial: Trial) -> str:
    """A /dev/shm that is nearly full; then it is not."""
    size = trial.source.choice(["4k", "64k", "1m"])
    trial.cases.append(f"a /dev/shm of {size}")
    job = trial.start(shared=size)
    if not job.wait(SECONDS):
        trial.check(job)
        return NO_MATTER
    outcome = trial.refused(job, "/dev/shm", "shared memory")
    trial.ends_well()
    return f"{outcome}; {SAME}"


FAULTS = [
    Fault(name="killed at a change of a file", strike=killed_at_changes, long=5,
          short=("preprocess",)),
    Fault(name="killed at a moment", strike=killed_at_moments, long=5, short=("mine",)),
    Fault(name="a rank killed", strike=rank_killed, long=5,
          holds=lambda command: command.ranks > 1),
    Fault(name="disk full", strike=disk_full, long=2, short=("preprocess",), mounts=True),
    Fault(name="output read-only", strike=read_only, long=1, short=("preprocess",), mounts=True),
    Fault(name="an input truncated", strike=partial(input_damaged, how="truncate"), long=2,
          short=("mine",)),
    # Documents have no checksum: a flipped bit makes other ones.
    Fault(name="a bit of an input flipped", strike=partial(input_damaged, how="flip"), long=2,
          short=("mine",), holds=lambda command: command.name != "preprocess"),
    Fault(name="a piece of a killed run truncated", strike=partial(piece_damaged, how="truncate"),
          long=1),
    Fault(name="a bit of a piece of a killed run flipped",
          strike=partial(piece_damaged, how="flip"), long=1),
    Fault(name="a bit of an output flipped on the disk", strike=silently_flipped, long=2,
          short=("preprocess",), holds=lambda command: command.ranks == 1),
    Fault(name="clock jumps", strike=clock_jumps, long=1, short=("mine",)),
    Fault(name="two runs at once", strike=two_at_once, long=1, short=("preprocess",)),
    Fault(name="/dev/shm full", strike=memory_full, long=1,
          short=("preprocess", "mine, 2 ranks"), mounts=True),
]  # fmt: skip
