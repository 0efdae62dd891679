"""Command lines of the tools that are measured."""

import sys
from pathlib import Path

_TOOLS = Path(__file__).parents[1] / "tools"


def tool(name: str) -> list[str]:
    """One of tools/, with the Python of this program."""
    return [sys.executable, str(_TOOLS / f"{name}.py")]


def mpiexec(ranks: int) -> list[str]:
    """What starts so many ranks of the command that follows, of the MPI beside this Python."""
    return [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)]
