"""The boxes a report is made of: which were given, which are there, what they hold."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError
from megatron_sbp.manifest import FILENAME, Manifest

ROLES = {
    "corpus": "the corpus",
    "embeddings": "the embeddings",
    "pairs": "the pair store",
    "baseline": "the baseline run",
    "synthesizer": "the synthesizer's tuning run",
    "synthetic": "the synthetic documents",
    "filtered": "the filtered synthetic documents",
    "audit": "the audit",
    "joint": "the joint run",
}
"""Part a box plays in the loop -> how the report calls it, in the loop's order."""

STAGES = dict(
    zip(
        ROLES,
        "preprocess embed mine baseline tune synthesize filter audit joint".split(),
        strict=True,
    )
)
"""Part a box plays -> the stage that made it."""

AUDIT = "audit.json"
_MEASURE = ("name", "synthetic", "real", "unit", "note", "synthetic_interval", "real_interval")
_PARTS = "part-*"  # of an array job, below the directory of their stage
_PREFIXES = ("corpus", "synthetic", "filtered")  # given as Megatron prefixes, not as directories


@dataclass(kw_only=True, slots=True)
class Box:
    """What plays one part in the loop: a box, or several of documents, such as an array job's."""

    directories: list[Path] = field(default_factory=list)
    manifests: list[Manifest] = field(default_factory=list)
    """Those of the directories; a corpus that another tool wrote has none."""
    prefixes: list[Path] = field(default_factory=list)
    """The Megatron prefixes, for the boxes that hold documents."""

    @property
    def directory(self) -> Path:
        """The directory, of a part that one box plays."""
        return self.directories[0]

    @property
    def manifest(self) -> Manifest:
        """Its manifest."""
        return self.manifests[0]


def open_boxes(given: dict[str, list[str]], run: str | None) -> dict[str, Box]:
    """Open the boxes that were given, and those of ``run`` for the roles that were not.

    Args:
        given: Role -> its directory, or its Megatron prefixes where the role holds documents.
        run: Directory with the boxes of one run.

    Returns:
        Role -> box, in the order of ``ROLES``; roles without a box are absent.

    Raises:
        InputError: If a given box is not the finished output of a stage, or ``run`` has two boxes
            for one role that are not parts of one.
    """
    boxes = {role: _open(role, paths) for role, paths in given.items()}
    if run is not None:
        boxes |= _discover(Path(run), without=given.keys())
    return {role: boxes[role] for role in ROLES if role in boxes}


def _open(role: str, paths: list[str]) -> Box:
    box = Box(prefixes=[Path(path) for path in paths] if role in _PREFIXES else [])
    for path in map(Path, paths):
        directory = path.parent if box.prefixes else path
        if directory in box.directories:
            continue
        box.directories.append(directory)
        if role == "corpus" and not (directory / FILENAME).exists():
            continue
        try:
            box.manifests.append(Manifest.read(directory))
        except InputError as error:
            raise InputError(f"--{role} {path}: {error}") from None
    return box


def _discover(run: Path, without: Collection[str]) -> dict[str, Box]:
    """The boxes in a directory, each in the role that its manifest tells, but for some roles."""
    if not run.is_dir():
        raise InputError(f"--run {run}: no such directory; give the one that holds the boxes")
    boxes: dict[str, Box] = {}
    for path in sorted([*run.glob(f"*/{FILENAME}"), *run.glob(f"*/{_PARTS}/{FILENAME}")]):
        directory = path.parent
        if directory.suffix == ".partial":
            continue
        manifest = Manifest.read(directory)
        role = _role(manifest)
        if role is None or role in without:
            continue
        box = boxes.setdefault(role, Box())
        if not all(part.parent == directory.parent != run for part in box.directories):
            raise InputError(
                f"--run {run}: both {box.directory} and {directory} can be "
                f"{ROLES[role]}; say which with --{role}"
            )
        box.directories.append(directory)
        box.manifests.append(manifest)
        if role in _PREFIXES:
            box.prefixes += _prefixes(directory, manifest)
    return boxes


def _role(manifest: Manifest) -> str | None:
    """The role of a box, None if it has none in a report."""
    if manifest.stage == "train":
        if manifest.options.get("objective") == "synthesis":
            return "synthesizer"
        kinds = {entry["kind"] for entry in manifest.counts.get("ledger", [])}
        return "joint" if "synthetic" in kinds else "baseline"
    return {
        "preprocess": "corpus",
        "embed": "embeddings",
        "mine": "pairs",
        "synthesize": "synthetic",
        "filter": "filtered",
        "audit": "audit",
    }.get(manifest.stage)


def _prefixes(directory: Path, manifest: Manifest) -> list[Path]:
    """The prefixes in a box, held-out documents last."""
    names = [name.removesuffix(".idx") for name in manifest.outputs if name.endswith(".idx")]
    return [directory / name for name in sorted(names, key=lambda name: (len(name), name))]


def read_audit(directory: Path) -> dict[str, Any]:
    """The audit of a box: {"sample", "measures"}, the measures as ``audit.json`` has them.

    Raises:
        InputError: If it is not there or not an audit.
    """
    path = directory / AUDIT
    try:
        found = json.loads(path.read_text())
        measures = [{name: row[name] for name in _MEASURE} for row in found["measures"]]
        return {"sample": found["sample"], "measures": measures}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an audit ({error!r}); run the audit again") from None
