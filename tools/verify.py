"""Read all files of finished boxes again and compare them with the checksums in their manifests.

Of a training run they are the files of its checkpoints, whose checksums Megatron has written.

Commands trust a file that has the size and the time of modification that its manifest says, so
that naming terabytes as an input is free. This one trusts nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_sbp import cli
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.models.checkpoint import INTEGRITY, MegatronCheckpoint


@dataclass(kw_only=True)
class VerifyOptions:
    """Options of tools/verify.py."""

    box: list[str] = field(metadata={"metavar": "DIR"})
    """Directories that stages have written."""


def main() -> None:
    options = cli.parse(VerifyOptions, __doc__ or "")
    for box in options.box:
        manifest = Manifest.read(box)
        manifest.verify(box)
        files = manifest.outputs or _checkpoints(Path(box))
        size = sum(entry["bytes"] for entry in files.values())
        print(f"{box}: {len(files)} files, {size:,} bytes, as they were written")


def _checkpoints(run: Path) -> dict[str, dict[str, Any]]:
    """The files of all checkpoints of a training run, which are as Megatron saved them."""
    files: dict[str, dict[str, Any]] = {}
    for directory in sorted(path.parent for path in run.glob("*/.metadata")):
        if not (directory / INTEGRITY).exists():
            raise InputError(
                f"{directory}: was saved without --verify-integrity, so nothing says what it was"
            )
        files |= MegatronCheckpoint(directory).fingerprints()
    if not files:
        raise InputError(f"{run}: its manifest lists no files, and it has no checkpoint")
    return files


if __name__ == "__main__":
    cli.run(main)
