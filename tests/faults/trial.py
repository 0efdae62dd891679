"""One command to which one fault is done, and the ways in which that may end."""

import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.commands import SECONDS, Command, Loop, watched
from tests.faults.job import Job
from tests.faults.outputs import Wrong, check_same

SAME = "same bytes after a restart"
REFUSED = "refused in one line that names it"
NAMED = "ended with an error that names it"
NO_MATTER = "same bytes at once"
MISSED = "it had ended before"


class Trial:
    """A command in a directory of its own.

    Args:
        loop: With the boxes that the command reads.
        command: The command.
        place: The directory.
        source: Of all that is chosen at random.
    """

    def __init__(self, loop: Loop, command: Command, place: Path, source: random.Random):
        self.loop, self.command, self.source = loop, command, source
        self.inputs, self.output = loop.boxes, place / "output"
        self.cases: list[str] = []
        """What was done, for the results."""
        self._place, self._jobs = place, 0
        self.output.mkdir(parents=True)

    @property
    def box(self) -> Path:
        """The box that the command writes here."""
        return self.output / self.command.box

    @property
    def reference(self) -> Path:
        """The box that a clean run wrote."""
        return self.loop.reference(self.command)

    def start(self, *, shared: str = "", environment: dict[str, str] | None = None) -> Job:
        """Start the command."""
        place = self._next_place()
        return self.command.start(
            self.inputs, self.output, place, shared=shared, environment=environment
        )

    def start_tool(self, *command: str | Path) -> Job:
        """Start another command of the repository."""
        return Job(command, self._next_place())

    def _next_place(self) -> Path:
        self._jobs += 1
        return self._place / f"job{self._jobs}"

    def killed_at_change(self, victim: str) -> bool:
        """Run the command, to be killed at a change, and what is left of it to its own end.

        Args:
            victim: ``process``, the one that makes the change, or ``job``, all of it.

        Returns:
            Whether that happened before its end.
        """
        change = self.source.randint(1, self.loop.clean(self.command.name).changes)
        delay = self.source.choice([0.0, self.source.uniform(0, 0.02)])
        changes = self._place / f"changes{self._jobs}"
        variables = watched(self.output, changes, kill=change, delay=delay, victim=victim)
        if not self.start(environment=variables).wait(SECONDS):
            return False
        self.cases.append(f"{victim} killed {delay * 1000:.1f} ms after change {change}")
        return True

    def ends_well(self, environment: dict[str, str] | None = None) -> None:
        """Run the command to its end.

        Raises:
            Wrong: Unless it leaves what a clean run leaves.
        """
        job = self.start(environment=environment)
        if status := job.wait(SECONDS):
            raise Wrong(f"the same command again ended with status {status}: {job.said}")
        self.check(job)

    def check(self, job: Job) -> None:
        """Raise ``Wrong`` unless a job that has ended left what a clean run leaves."""
        check_same(self.command, self.output, self.reference, job)

    def refused(self, job: Job, *words: str) -> str:
        """How a job that has failed said why.

        Args:
            job: It has ended with a status other than 0.
            words: Of which one must be named.

        Raises:
            Wrong: If it names none of them, or says so in more than a line, which the training
                loop of Megatron may.
        """
        lines = [line for line in job.error.splitlines() if line.startswith("error: ")]
        if job.status == 2 and len(lines) == 1 and any(word in lines[0] for word in words):
            return REFUSED
        if self.command.trains and any(word in job.everything for word in words):
            return NAMED
        raise Wrong(f"status {job.status}, and none of {words} is named in one line: {job.said}")

    def copy_inputs(self) -> list[Path]:
        """Take a copy of the inputs, which may be damaged; its files that are not empty."""
        self.inputs = self._place / "inputs"
        self.loop.copy_inputs(self.command, self.inputs)
        return [path for path in sorted(self.inputs.rglob("*")) if _has_content(path)]

    def pieces(self) -> list[Path]:
        """Files that an interrupted run has left."""
        return [path for path in sorted(self.output.rglob("*")) if _has_content(path)]

    @contextmanager
    def mounted(self, options: str) -> Iterator[None]:
        """Have the output on a file system of its own."""
        mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.output)]
        subprocess.run(mount, check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", self.output], check=True)

    def remount(self, options: str) -> None:
        """Change the options of that file system."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.output], check=True)

    def start_anew(self) -> None:
        """Remove what an interrupted run has left, as its errors advise."""
        for path in self.output.iterdir():
            shutil.rmtree(path)

    def damage(self, path: Path, how: str) -> None:
        """Damage a file at a random place.

        Args:
            path: The file.
            how: ``flip`` a bit, or ``truncate``.
        """
        content = bytearray(path.read_bytes())
        place = self.source.randrange(len(content))
        if how == "flip":
            content[place] ^= 1 << self.source.randrange(8)
        else:
            del content[place:]
        path.write_bytes(content)
        self.cases.append(f"{how} {path.name} at {place}")


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
