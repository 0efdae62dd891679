"""One job of a comparison: a stage's command, and what it needs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_sbp import loop, recipes
from megatron_sbp.recipes import Flags


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A stage with its own output."""

    name: str
    """Its output, below the comparison's directory."""
    script: str | None
    """Its command in tools/, None for a training run."""
    paths: tuple[str, ...]
    """What it reads and writes: the first part of its command line."""
    flags: Flags
    """The rest of it."""
    needs: tuple[str, ...] = ()
    """Names of the jobs whose output it reads."""
    later: Callable[[], Flags | None] | None = None
    """Flags that follow from the output of these, None if there is nothing to do after all."""
    ranks: int = 1
    """MPI processes."""

    @property
    def known(self) -> list[str]:
        """What of its command line does not depend on the jobs that it needs."""
        return [*self.paths, *recipes.arguments(self.flags)]

    def line(self) -> list[str] | None:
        """Its command line, when the jobs that it needs are done; None if there is nothing to do.

        Raises:
            InputError: If they left nothing that it could work on.
        """
        flags = {} if self.later is None else self.later()
        if flags is None:
            return None
        return [*self.paths, *recipes.arguments(self.flags | flags)]

    def command(self, line: list[str]) -> list[str]:
        """What is executed."""
        if self.script is None:
            return loop.training(line)
        return loop.tool(self.script, *line, ranks=self.ranks)

    def is_done(self, root: Path, line: list[str]) -> bool:
        """Whether its output is there; a tool says that by itself."""
        return self.script is None and loop.is_trained(root / self.name, line)
