"""Patches for Megatron-LM checkouts: unified diffs without context that only insert lines.

A directory of patches holds ``TAG.patch`` for every release in its ``releases.yaml``, which names
the file that is patched and its SHA-256 before and after. Without context a hunk knows its place by
line number only, so nothing but the very file that a patch was made for is touched.
"""

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write

RELEASES = "releases.yaml"

_HUNK = re.compile(rb"@@ -(\d+),0 \+\d+(,\d+)? @@\n")


@dataclass(frozen=True, slots=True)
class Insertion:
    """One hunk."""

    after: int
    """Line of the original that it comes after; 0 is the beginning."""
    lines: list[bytes] = field(default_factory=list)
    """What is inserted, with line ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The file of a checkout that a patch is for."""

    path: Path
    """The file, links resolved."""
    tag: str
    """The release that it is from."""
    patched: bool
    """Whether the patch is applied."""
    other: str
    """SHA-256 of the file after it is patched, or after that is reversed."""
    insertions: Sequence[Insertion]
    """What the patch inserts, from top to bottom."""

    def apply(self) -> None:
        """Insert the patch's lines into the file, which is not patched."""
        lines = _lines(self.path)
        for insertion in reversed(self.insertions):
            lines[insertion.after : insertion.after] = insertion.lines
        self._write(b"".join(lines))

    def reverse(self) -> None:
        """Remove the patch's lines from the file, which is patched."""
        lines = _lines(self.path)
        for insertion in self.insertions:
            del lines[insertion.after : insertion.after + len(insertion.lines)]
        self._write(b"".join(lines))

    def _write(self, content: bytes) -> None:
        if _sha256(content) != self.other:
            raise InputError(
                f"{self.tag}.patch does not make of {self.path} what {RELEASES} says; "
                "restore the directory of patches"
            )
        try:
            with atomic_write(self.path) as temporary:
                temporary.write_bytes(content)
                shutil.copymode(self.path, temporary)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror}; make it writable") from None


def find(checkout: str | Path, patches: str | Path) -> Target:
    """Find out which release a checkout is of, and whether it is patched.

    Args:
        checkout: Root of the Megatron-LM checkout.
        patches: Directory of the patches.

    Raises:
        InputError: If its file is not that of a known release, patched or not.
    """
    import yaml

    releases = yaml.safe_load((Path(patches) / RELEASES).read_text())
    found = {}
    for tag, release in releases.items():
        path = (Path(checkout) / release["file"]).resolve()
        if not path.is_file():
            continue
        found[path] = digest = _sha256(path.read_bytes())
        if digest in (release["before"], release["after"]):
            patched = digest == release["after"]
            return Target(
                path=path,
                tag=tag,
                patched=patched,
                other=release["before" if patched else "after"],
                insertions=read(Path(patches) / f"{tag}.patch"),
            )
    known = f"known are {', '.join(releases)}; docs/patches.md says how to patch another by hand"
    if not found:
        files = " or ".join(sorted({release["file"] for release in releases.values()}))
        raise InputError(f"{checkout}: has no {files}, as Megatron-LM has at its root; {known}")
    files = ", ".join(map(str, found))
    raise InputError(f"{files}: not the file of a known release, or changed since; {known}")


def read(patch: Path) -> list[Insertion]:
    """Read the hunks of a patch.

    Raises:
        InputError: Naming the first line that does anything but insert.
    """
    insertions: list[Insertion] = []
    for number, line in enumerate(_lines(patch), start=1):
        if not insertions and line.startswith((b"--- ", b"+++ ")):
            continue
        if hunk := _HUNK.fullmatch(line):
            insertions.append(Insertion(int(hunk[1])))
        elif insertions and line.startswith(b"+"):
            insertions[-1].lines.append(line[1:])
        else:
            raise InputError(f"{patch}:{number}: is not of a diff without context that inserts")
    return insertions


def _lines(path: Path) -> list[bytes]:
    with open(path, "rb") as file:
        return file.readlines()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
