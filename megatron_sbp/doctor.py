"""What this machine has for the plugin, and what each missing part falls back to.

Packages that can fail while they load (a missing library, a driver that does not fit, a crash) are
tried in a Python process of their own: whatever happens there is a line of the table.
"""

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

_PROBE_SECONDS = 120
_GIB = 2**30
_MEGATRON = "0.19"


@dataclass(kw_only=True, slots=True)
class DoctorOptions:
    """Options of ``tools/doctor.py``."""

    json: bool = False
    """Print the table as JSON: a list of {name, status, found, instead}."""


@dataclass(kw_only=True, slots=True)
class Part:
    """One row of the table."""

    name: str
    """What was looked for."""
    status: Literal["present", "missing", "broken"]
    """broken: it is installed and cannot be used."""
    found: str
    """Version and details, or why it cannot be used."""
    instead: str = ""
    """What the plugin does without it; empty where it is present."""


class Broken(Exception):
    """A package is installed and does not load; the message is the reason."""


def examine() -> list[Part]:
    """Look at everything, in the order of the table."""
    checks: list[Callable[[], list[Part]]] = [
        _machine,
        _torch,
        _megatron,
        _transformers,
        _transformer_engine,
        _apex,
        _faiss,
        _mpi,
        _vllm,
        _dali,
        _slurm,
    ]
    with ThreadPoolExecutor(max_workers=4) as pool:
        return [part for parts in pool.map(lambda check: check(), checks) for part in parts]


def show(parts: list[Part]) -> str:
    """The table as text: name, status, what was found; below it what is done instead."""
    name = max(len(part.name) for part in parts)
    margin = " " * (name + 11)
    columns = min(shutil.get_terminal_size().columns, 120)
    wrap = partial(textwrap.wrap, width=columns, break_on_hyphens=False, break_long_words=False)
    lines = []
    for part in parts:
        head = f"{part.name:<{name}}  {part.status:<7}  "
        lines += wrap(head + part.found, subsequent_indent=margin)
        first = f"{margin}instead: "
        lines += wrap(part.instead, initial_indent=first, subsequent_indent=" " * len(first))
    return "\n".join(lines)


def as_json(parts: list[Part]) -> str:
    """The table as JSON."""
    return json.dumps([asdict(part) for part in parts], indent=1)


def _machine() -> list[Part]:
    cores = len(os.sched_getaffinity(0))
    memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / _GIB:.1f} GiB"
    limit = _memory_limit()
    if limit is not None:
        memory += f", {limit / _GIB:.1f} GiB of it for this control group"
    disk = shutil.disk_usage(".")
    free = f"{disk.free / _GIB:.1f} GiB free of {disk.total / _GIB:.1f} GiB in {Path.cwd()}"
    return [
        Part(name="Python", status="present", found=platform.python_version()),
        Part(name="processor cores", status="present", found=f"{cores} usable"),
        Part(name="memory", status="present", found=memory),
        Part(name="disk", status="present", found=free),
    ]


def _memory_limit() -> int | None:
    """Bytes this control group may use, None without a limit."""
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # no control groups, or "max"
        return None


def _torch() -> list[Part]:
    names = ("torch", "CUDA devices", "NCCL")
    devices_instead = (
        "training runs on the CPU over gloo, embedding, search and synthesis on the CPU: "
        "the same commands, for small models"
    )
    instead = dict(
        zip(names, (_needed("torch"), devices_instead, "gloo carries the messages"), strict=True)
    )
    if not _installed("torch"):
        return [_missing(name, "torch is not installed", instead[name]) for name in names]
    try:
        facts = _probe(
            "import torch; cuda = torch.cuda; usable = cuda.is_available()\n"
            "nccl = torch.distributed.is_available() and torch.distributed.is_nccl_available()\n"
            "fact = {'version': torch.__version__, 'cuda': torch.version.cuda,\n"
            "  'nccl': '.'.join(map(str, cuda.nccl.version())) if nccl else None, 'devices': [\n"
            "  (p.name, p.total_memory, p.major, p.minor) for p in map(\n"
            "  cuda.get_device_properties, range(cuda.device_count() if usable else 0))]}"
        )
    except Broken as error:
        return [_broken(name, f"torch does not load: {error}", instead[name]) for name in names]
    build = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "built for the CPU"
    parts = [Part(name="torch", status="present", found=f"{facts['version']}, {build}")]
    devices = "; ".join(
        f"{name}, {memory / _GIB:.0f} GiB, compute capability {major}.{minor}"
        for name, memory, major, minor in facts["devices"]
    )
    if devices:
        parts.append(Part(name="CUDA devices", status="present", found=devices))
    else:
        parts.append(_missing("CUDA devices", "torch sees none", devices_instead))
    if facts["nccl"] and devices:
        parts.append(Part(name="NCCL", status="present", found=facts["nccl"]))
    elif facts["nccl"]:
        found = f"{facts['nccl']}, of no use without a CUDA device"
        parts.append(_missing("NCCL", found, instead["NCCL"]))
    else:
        parts.append(_missing("NCCL", "not in this build of torch", instead["NCCL"]))
    return parts


def _megatron() -> list[Part]:
    name, wanted = "megatron-core", f"megatron-core[training]>={_MEGATRON},<0.20"
    version = _version("megatron-core")
    if version is None:
        return [_missing(name, "not installed", _needed(wanted))]
    if not version.startswith(_MEGATRON + ".") or not _installed("megatron.training"):
        found = f"{version}; this plugin is written for {_MEGATRON} with megatron.training"
        return [_broken(name, found, _needed(wanted))]
    return [Part(name=name, status="present", found=version)]


def _transformers() -> list[Part]:
    if not _installed("transformers"):
        return [_missing("transformers", "not installed", _needed("transformers"))]
    return [_tried("transformers", "transformers", ["transformers"], _needed("transformers"))]


def _transformer_engine() -> list[Part]:
    name, package = "Transformer Engine", "transformer_engine"
    instead = "Megatron's own layers, with --transformer-impl local; no FP8"
    if not _installed(package):
        return [_missing(name, "not installed", instead)]
    return [_tried(name, f"{package}.pytorch", [package], instead)]


def _apex() -> list[Part]:
    instead = (
        "Megatron takes Transformer Engine's or torch's optimizer and norms; "
        "local layers on CUDA need --no-gradient-accumulation-fusion"
    )
    spec = find_spec("apex")
    if spec is None:
        return [_missing("Apex", "not installed", instead)]
    # PyPI's package of this name is another project; it must not be imported to find that out.
    places = [Path(place) for place in spec.submodule_search_locations or []]
    if not any((place / "multi_tensor_apply").is_dir() for place in places):
        found = "the installed apex is not NVIDIA's (PyPI's is another project): remove it"
        return [_broken("Apex", found, instead)]
    return [_tried("Apex", "apex.multi_tensor_apply", ["apex"], instead)]


def _faiss() -> list[Part]:
    needed, instead = _needed("faiss-cpu"), "the search runs on the CPU"
    both = [name for name in ("faiss-cpu", "faiss-gpu") if _version(name)]
    if not _installed("faiss"):
        return [
            _missing("FAISS", "not installed", needed),
            _missing("FAISS on GPUs", "FAISS is not installed", instead),
        ]
    if len(both) == 2:
        found = "faiss-cpu and faiss-gpu overwrite each other's files: remove both, install one"
        return [_broken("FAISS", found, needed), _broken("FAISS on GPUs", found, instead)]
    try:
        facts = _probe(
            "import faiss; fact = {'version': faiss.__version__, "
            "'options': faiss.get_compile_options().strip(), 'gpus': faiss.get_num_gpus()}"
        )
    except Broken as error:
        return [
            _broken("FAISS", str(error), needed),
            _broken("FAISS on GPUs", "FAISS does not load", instead),
        ]
    parts = [Part(name="FAISS", status="present", found=f"{facts['version']}, {facts['options']}")]
    if facts["gpus"]:
        found = f"{facts['gpus']} GPUs"
        return [*parts, Part(name="FAISS on GPUs", status="present", found=found)]
    return [*parts, _missing("FAISS on GPUs", "FAISS sees no GPU", instead)]


def _mpi() -> list[Part]:
    instead = "tools/mine_pairs.py runs as one process"
    launcher = shutil.which("mpiexec") or shutil.which("mpiexec", path=Path(sys.executable).parent)
    if not _installed("mpi4py"):
        return [_missing("MPI", "mpi4py is not installed", instead)]
    try:
        facts = _probe(
            "import mpi4py; mpi4py.rc.initialize = False\n"
            "from mpi4py import MPI; fact = MPI.Get_library_version()"
        )
    except Broken as error:
        found = f"mpi4py {_version('mpi4py')} does not load: {error}"
        return [_broken("MPI", found, f"{instead}; pip install mpich brings a library")]
    # "MPICH Version:      5.0.2", "Open MPI v5.0.8, package: ..."
    library = " ".join(facts.splitlines()[0].split(",")[0].replace("Version:", "").split())
    if launcher is None:
        return [_broken("MPI", f"{library}, but no mpiexec", f"{instead}; pip install mpich")]
    found = f"{library}, {launcher}"
    version = _output([launcher, "--version"])
    if ("Open MPI" in library) != ("Open MPI" in version or "OpenRTE" in version):
        # Every rank would start as a world of its own and do all the work.
        return [_broken("MPI", f"{found} is another MPI's; use the one of the library", instead)]
    return [Part(name="MPI", status="present", found=found)]


def _vllm() -> list[Part]:
    version = _version("vllm")
    if version is None:
        return [_missing("vLLM", "not installed", "tools/synthesize.py generates without it")]
    return [Part(name="vLLM", status="present", found=version)]


def _dali() -> list[Part]:
    instead = "files are read through numpy; no command of this version needs DALI"
    if not _installed("nvidia.dali"):
        return [_missing("DALI", "not installed", instead)]
    packages = ["nvidia-dali-cuda130", "nvidia-dali-cuda120"]
    return [_tried("DALI", "nvidia.dali", packages, instead)]


def _slurm() -> list[Part]:
    program = shutil.which("sbatch")
    if program is None:
        instead = "start the commands yourself, with mpiexec and torchrun where they say so"
        return [_missing("Slurm", "no sbatch on the PATH", instead)]
    version = _output([program, "--version"])
    if not version:
        return [_broken("Slurm", f"{program} --version says nothing", "as without Slurm")]
    return [Part(name="Slurm", status="present", found=version.splitlines()[0])]


def _tried(name: str, module: str, packages: list[str], instead: str) -> Part:
    """The row of an installed package, after an attempt to import ``module``."""
    version = next(filter(None, map(_version, packages)), "version unknown")
    try:
        _probe(f"import {module}; fact = None")
    except Broken as error:
        return _broken(name, f"{version} does not load: {error}", instead)
    return Part(name=name, status="present", found=version)


def _missing(name: str, found: str, instead: str) -> Part:
    return Part(name=name, status="missing", found=found, instead=instead)


def _broken(name: str, found: str, instead: str) -> Part:
    return Part(name=name, status="broken", found=found, instead=instead)


def _needed(requirement: str) -> str:
    return f"nothing replaces it: pip install '{requirement}'"


def _installed(module: str) -> bool:
    """Whether a module can be found; its parents are imported, it is not."""
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError, OSError):
        return False


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(command: list[str]) -> str:
    """What a program prints, empty if it cannot run."""
    try:
        finished = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return finished.stdout.strip()


def _probe(code: str) -> Any:
    """Run ``code`` in a Python process of its own and return what it leaves in ``fact``.

    Raises:
        Broken: If it fails in any way.
    """
    code += "\nimport json; print(); print(json.dumps(fact))"
    try:
        finished = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-c", code],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Broken(f"no answer in {_PROBE_SECONDS} s") from None
    if finished.returncode < 0:
        raise Broken(f"died of {signal.Signals(-finished.returncode).name}")
    if finished.returncode > 0:
        lines = finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"]
        raise Broken(lines[-1])
    return json.loads(finished.stdout.splitlines()[-1])
