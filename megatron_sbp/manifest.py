"""Boxes and their manifests: what a stage wrote, from what, with which options.

A box is a directory with a ``manifest.json``. A stage writes into ``DIRECTORY.partial`` beside it
and renames that to ``DIRECTORY`` when everything is there, so a directory under its final name is
complete:

    with Stage.open("pairs", "mine", options={...}, inputs=["real.idx"], resumable=True) as stage:
        if not stage.complete:
            ...  # write files below stage.workspace
            stage.finish(counts={"pairs": 10})

A finished output made from the same options and inputs is recognised and kept; one made from others
is refused with the difference named.
"""

import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_origin, get_type_hints

from megatron_sbp import __version__
from megatron_sbp.errors import InputError
from megatron_sbp.files import atomic_write, check_regular, flush, is_locked

FILENAME = "manifest.json"
FORMAT = "megatron_sbp manifest 1"
_CHECKSUM = "sha256"
_LOCK = ".lock"
_CURE = "remove the directory and run its stage again"
_PACKAGES = ("megatron-core", "torch", "transformers", "tokenizers", "numpy", "faiss-cpu", "mpi4py")


@dataclass(kw_only=True)
class Manifest:
    """What one stage wrote."""

    stage: str
    """Name of the stage: preprocess, embed, mine, train, synthesize, audit, report."""
    options: dict[str, Any]
    """Everything besides the inputs that decides the content of the output."""
    inputs: dict[str, dict[str, Any]]
    """Path as given -> {"bytes", "sha256"} of every input file."""
    outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Path below the directory -> {"bytes", "sha256", "mtime_ns"}."""
    counts: dict[str, Any] = field(default_factory=dict)
    """Figures of the stage: documents, tokens, pairs, what each filter removed."""
    seconds: float = 0.0
    """Wall time, summed over resumed attempts."""
    peak_memory_bytes: int = 0
    """Largest resident memory of one process of the stage."""
    environment: dict[str, Any] = field(default_factory=dict)
    """Versions and machine of the run that finished the stage."""
    format: str = FORMAT

    @classmethod
    def read(cls, directory: str | Path) -> "Manifest":
        """Read the manifest of a finished box.

        Raises:
            InputError: If there is none, it is no manifest, or an output leaves the directory.
        """
        path = Path(directory) / FILENAME
        try:
            check_regular(path)
            fields = json.loads(path.read_text())
        except FileNotFoundError:
            raise InputError(
                f"{path}: no such manifest; {directory} is not the finished output of a stage"
            ) from None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}; check the path") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: not a manifest ({error}); {_CURE}") from None
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
            raise InputError(f"{path}: format is {found!r}, this version reads {FORMAT!r}")
        written = fields.pop(_CHECKSUM, None)  # absent where another tool wrote the manifest
        if written is not None and written != _checksum(fields):
            raise InputError(
                f"{path}: is not as it was written (its own checksum is another); copy it again, "
                f"or {_CURE}"
            )
        try:
            manifest = cls(**fields)
        except TypeError as error:
            raise InputError(f"{path}: not a manifest ({error}); {_CURE}") from None
        manifest._validate(path)
        return manifest

    @classmethod
    def read_if_there(cls, directory: str | Path, stage: str, command: str) -> "Manifest | None":
        """Read the manifest of a box that another tool may have written without one.

        Args:
            directory: The box.
            stage: The stage that must have written it, if it has a manifest.
            command: The command of that stage, named in the error.

        Raises:
            InputError: If another stage wrote it, or as ``read``.
        """
        if not (Path(directory) / FILENAME).exists():
            return None
        manifest = cls.read(directory)
        if manifest.stage != stage:
            raise InputError(
                f"{directory}: is the output of stage {manifest.stage!r}, not of {stage!r}; "
                f"give the directory that {command} wrote"
            )
        return manifest

    def _validate(self, path: Path) -> None:
        """Raise unless every field has its type and every output lies in the directory."""
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            # JSON knows one kind of number, so a whole float comes back as an int.
            wanted = (int, float) if kind is float else get_origin(kind) or kind
            if not isinstance(value, wanted):
                raise InputError(f"{path}: {name} is {value!r}, not a {kind}; {_CURE}")
        for name, entry in (*self.inputs.items(), *self.outputs.items()):
            if (
                not isinstance(entry, dict)
                or type(entry.get("bytes")) is not int
                or type(entry.get("sha256")) is not str
            ):
                raise InputError(f"{path}: {name!r} has no size and checksum; {_CURE}")
        for name in self.outputs:
            # Windows' separators stand in no name that a stage gives.
            if Path(name).is_absolute() or ".." in Path(name).parts or set(name) & {"\\", "\0"}:
                raise InputError(f"{path}: output {name!r} lies outside its directory; refused")

    def check_outputs(self, directory: str | Path) -> None:
        """Raise ``InputError`` unless every output is there, and not elsewhere, in its size."""
        root = Path(directory).resolve()
        for name, entry in self.outputs.items():
            path = Path(directory) / name
            if not path.resolve().is_relative_to(root):
                raise InputError(f"{path}: leads to {path.resolve()}, outside its box; copy it in")
            found = os.path.getsize(path) if os.path.isfile(path) else None
            if found != entry["bytes"]:
                was = "is missing" if found is None else f"has {found} bytes"
                raise InputError(
                    f"{path}: {was}, the manifest says {entry['bytes']}; "
                    f"remove {directory} and run its stage again"
                )

    def verify(self, directory: str | Path, *, below: str = "", trust_times: bool = False) -> None:
        """Read outputs again and raise ``InputError`` unless they have their recorded checksums.

        Args:
            directory: The box.
            below: Read only what lies in this directory of it.
            trust_times: Leave out what has its recorded time of modification.
        """
        self.check_outputs(directory)
        for name, entry in self.outputs.items():
            path = Path(directory) / name
            trusted = trust_times and path.stat().st_mtime_ns == entry.get("mtime_ns")
            if name.startswith(below) and not trusted:
                _refuse_changed(path, entry, _read_fingerprint(path))

    def write(self, directory: str | Path) -> None:
        """Write ``manifest.json`` atomically, with a checksum of its own."""
        fields = json.loads(json.dumps(asdict(self)))
        with atomic_write(Path(directory) / FILENAME) as temporary:
            fields[_CHECKSUM] = _checksum(fields)
            temporary.write_text(json.dumps(fields, indent=1) + "\n")


def _checksum(fields: Mapping[str, Any]) -> str:
    """Of the fields of a manifest, as JSON reads them."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def fingerprint(path: str | Path) -> dict[str, Any]:
    """Size and SHA-256 of a file.

    A file that the manifest beside it lists with the same size and modification time is not read
    again: its recorded checksum is returned, so that naming terabytes as an input is free.

    Raises:
        InputError: If the file cannot be read, or is not what that manifest says.
    """
    path = Path(path)
    try:
        status = path.stat()
        recorded = _recorded(path)
        same = (recorded.get("bytes"), recorded.get("mtime_ns")) == (
            status.st_size,
            status.st_mtime_ns,
        )
        if same:
            return {"bytes": status.st_size, "sha256": recorded["sha256"]}
        found = _read_fingerprint(path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path") from None
    _refuse_changed(path, recorded or found, found)
    return found


def fingerprints(paths: Iterable[str | Path]) -> dict[str, dict[str, Any]]:
    """``fingerprint`` of every file, by path."""
    return {str(path): fingerprint(path) for path in paths}


def _read_fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, from all of its bytes."""
    check_regular(path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _refuse_changed(path: Path, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raise if a file is not the one that its stage wrote."""
    if any(recorded[name] != found[name] for name in ("bytes", "sha256")):
        raise InputError(
            f"{path}: is not as its stage wrote it ({found['bytes']:,} bytes, sha256 "
            f"{found['sha256'][:12]}; its manifest says {recorded['bytes']:,} and "
            f"{recorded['sha256'][:12]}); copy it again, or remove its box and run the stage again"
        )


def _recorded(path: Path) -> dict[str, Any]:
    """The entry of ``path`` in the manifest of its directory, or an empty one."""
    try:
        return Manifest.read(path.parent).outputs.get(path.name, {})
    except InputError:
        return {}


def environment() -> dict[str, Any]:
    """Versions and machine, as they stand in every manifest."""
    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "megatron_sbp": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "devices": _devices(),
        "packages": versions,
        "command": sys.argv,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _devices() -> list[str]:
    """Names of the CUDA devices, if this process has loaded torch anyway."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def peak_memory_bytes() -> int:
    """Largest resident memory so far of this process or of one finished child."""
    kilobytes = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return kilobytes * 1024


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name what differs between two mappings, old value against new, in one line."""
    rows = [
        f"{key}: {old.get(key, 'absent')!r} -> {new.get(key, 'absent')!r}"
        for key in sorted({*old, *new})
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    return "; ".join(rows)


class Stage:
    """A stage at work on one box; see the module's docstring for the protocol."""

    def __init__(self, directory: Path, manifest: Manifest, complete: bool, resumable: bool):
        self.directory = directory
        self.manifest = manifest
        self.complete = complete
        self.workspace = directory.with_name(directory.name + ".partial")
        self.scratch = self.workspace / "scratch"
        """Directory of what is needed until the output is complete; ``finish`` removes it."""
        self._resumable = resumable
        self._started = time.perf_counter()
        self._lock: int | None = None

    @classmethod
    def open(
        cls,
        directory: str | Path,
        name: str,
        *,
        options: Mapping[str, Any],
        inputs: Sequence[str | Path] | Mapping[str, dict[str, Any]],
        resumable: bool = False,
    ) -> Self:
        """Begin, continue or recognise the stage ``name`` with its output in ``directory``.

        Args:
            directory: The box. It must not exist, be empty, or be a box of this stage.
            name: Name of the stage.
            options: What decides the content of the output, JSON-serialisable. Leave out what does
                not (number of workers, batch size where the result does not depend on it).
            inputs: Files that are read; their fingerprints are taken, unless they are given, by
                path.
            resumable: Whether files left in the workspace by an interrupted run are of use. If not,
                they are removed at the start and after an error.

        Raises:
            InputError: If the directory holds something else, or another run is at work on it.
        """
        directory = Path(os.path.abspath(directory))
        manifest = Manifest(
            stage=name,
            options=json.loads(json.dumps(dict(options))),
            inputs=dict(inputs) if isinstance(inputs, Mapping) else fingerprints(inputs),
        )
        stage = cls(directory, manifest, complete=False, resumable=resumable)
        if (directory / FILENAME).exists():
            finished = Manifest.read(directory)
            stage._refuse_other(finished, directory)
            finished.verify(directory, trust_times=True)
            stage.manifest, stage.complete = finished, True
            with contextlib.suppress(OSError):  # of a run that was stopped before its last step
                (directory / _LOCK).unlink()
        elif directory.is_dir() and any(directory.iterdir()):
            raise InputError(
                f"{directory}: holds files that no stage wrote; "
                "give the output a directory of its own"
            )
        elif directory.exists() and not directory.is_dir():
            raise InputError(f"{directory}: is a file; give the output a directory of its own")
        else:
            stage._enter_workspace()
        return stage

    def _refuse_other(self, found: Manifest, where: Path) -> None:
        """Raise if ``found`` was made by another stage, with other options or from other inputs."""
        changes = difference({"stage": found.stage}, {"stage": self.manifest.stage})
        changes = changes or difference(found.options, self.manifest.options)
        changes = changes or difference(_contents(found.inputs), _contents(self.manifest.inputs))
        if changes:
            raise InputError(
                f"{where}: was made differently ({changes}); remove it or choose another output"
            )

    def _enter_workspace(self) -> None:
        lock = self.workspace / _LOCK
        try:
            self.workspace.mkdir(parents=True, exist_ok=True)
            if not lock.exists() and self._pieces():
                raise InputError(
                    f"{self.workspace}: holds files that no stage wrote; "
                    "move them or choose another output"
                )
            self._lock = os.open(lock, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise InputError(
                f"{self.workspace}: cannot write ({error.strerror}); choose another output"
            ) from None
        try:
            self._take_lock(lock)
            if self._resumable and (self.workspace / FILENAME).exists():
                begun = Manifest.read(self.workspace)
                self._refuse_other(begun, self.workspace)
                if begun.outputs:  # The run was stopped between its last two steps.
                    begun.verify(self.workspace, trust_times=True)
                    self.manifest = begun
                    self._give_name()
                    self._release_lock()
                    return
                self.manifest.seconds = begun.seconds
                for leftover in self.workspace.rglob(".*.tmp-*"):  # of an atomic_write
                    leftover.unlink()
            else:
                self._clear_workspace()
            self.manifest.write(self.workspace)
        except BaseException:
            self._release_lock()
            raise

    def _take_lock(self, path: Path) -> None:
        assert self._lock is not None
        if not is_locked(self._lock, path):
            raise InputError(
                f"{self.workspace}: another run is writing this output; wait for it or stop it"
            )
        if (self.directory / FILENAME).exists():  # not there a moment ago
            shutil.rmtree(self.workspace)
            raise InputError(
                f"{self.directory}: another run has just finished this output; start again"
            )

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _pieces(self) -> list[Path]:
        """What lies in the workspace besides the stage's own bookkeeping."""
        own = {_LOCK, FILENAME}
        return [entry for entry in self.workspace.iterdir() if entry.name not in own]

    def _clear_workspace(self) -> None:
        for entry in self._pieces():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def checkpoint(self) -> None:
        """Record the time spent so far, so that a resumed stage reports the sum."""
        now = time.perf_counter()
        self.manifest.seconds += now - self._started
        self._started = now
        self.manifest.write(self.workspace)

    def finish(self, *, counts: Mapping[str, Any], peak_memory: int | None = None) -> Manifest:
        """Complete the output: checksums, manifest, final name.

        Args:
            counts: Figures of the stage, JSON-serialisable.
            peak_memory: Bytes; the default is this process's own (and its children's) peak.
        """
        manifest = self.manifest
        own = {self.workspace / _LOCK, self.workspace / FILENAME}
        outputs = {}
        for path in sorted(self.workspace.rglob("*")):
            if path.is_file() and path not in own and self.scratch not in path.parents:
                flush(path)
                entry = fingerprint(path) | {"mtime_ns": path.stat().st_mtime_ns}
                outputs[str(path.relative_to(self.workspace))] = entry
        manifest.counts = json.loads(json.dumps(dict(counts)))
        manifest.seconds += time.perf_counter() - self._started
        manifest.peak_memory_bytes = peak_memory or peak_memory_bytes()
        manifest.environment = environment()
        # All at once: a manifest in a workspace that lists outputs says that they are complete.
        manifest.outputs = outputs
        manifest.write(self.workspace)
        self._give_name()
        return manifest

    def _give_name(self) -> None:
        """Turn a workspace whose manifest lists its outputs into the finished box."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        flush(self.workspace)
        os.rename(self.workspace, self.directory)  # takes the place of an empty directory
        self.complete = True
        # Only now: a second run must find the lock as long as there is a workspace.
        (self.directory / _LOCK).unlink(missing_ok=True)
        flush(self.directory.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.complete:
            of_use = self._resumable and any(
                path.is_file() for piece in self._pieces() for path in (piece, *piece.rglob("*"))
            )
            if of_use:
                with contextlib.suppress(OSError):  # A full disk costs no more than the time spent.
                    self.checkpoint()
            else:
                shutil.rmtree(self.workspace, ignore_errors=True)
        self._release_lock()


def _contents(inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Input fingerprints without directories: a corpus that was moved is the same corpus."""
    return {
        f"input {number} {Path(name).name}": (entry["bytes"], entry["sha256"])
        for number, (name, entry) in enumerate(inputs.items())
    }
