"""The doctor tells what is there, and survives whatever is broken."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from megatron_sbp.doctor import Part, show

TOOL = Path(__file__).parents[1] / "tools" / "doctor.py"


def doctor(*argv: str, path: str | None = None, python_path: Path | None = None) -> str:
    """What the command prints, with another PATH or with modules that come before the real ones."""
    environment = dict(os.environ)
    if path is not None:
        environment["PATH"] = path
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path)
    finished = subprocess.run(
        [sys.executable, str(TOOL), *argv], capture_output=True, text=True, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout


def rows(**settings: object) -> dict[str, dict[str, str]]:
    table = json.loads(doctor("--json", **settings))  # type: ignore[arg-type]
    return {row["name"]: row for row in table}


def fake_module(directory: Path, name: str, body: str) -> None:
    package = directory.joinpath(*name.split("."))
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(body)


def fake_program(directory: Path, name: str, says: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\necho '{says}'\n")
    (directory / name).chmod(0o755)


@pytest.fixture(scope="module")
def here() -> dict[str, dict[str, str]]:
    return rows()


def test_every_part_is_named(here: dict[str, dict[str, str]]) -> None:
    wanted = """Python, processor cores, memory, disk, torch, CUDA devices, NCCL, megatron-core,
        transformers, Transformer Engine, Apex, FAISS, FAISS on GPUs, MPI, vLLM, DALI, Slurm"""
    assert list(here) == [name.strip() for name in wanted.split(",")]


def test_what_is_missing_or_broken_says_what_is_done_instead(
    here: dict[str, dict[str, str]],
) -> None:
    for row in here.values():
        assert row["found"]
        assert bool(row["instead"]) == (row["status"] != "present"), row


def test_versions_are_those_of_the_installed_packages(here: dict[str, dict[str, str]]) -> None:
    assert here["Python"]["found"] == sys.version.split()[0]
    for name, package in {
        "torch": "torch",
        "megatron-core": "megatron-core",
        "transformers": "transformers",
    }.items():
        assert here[name]["status"] == "present"
        assert here[name]["found"].startswith(metadata.version(package).split("+")[0])


def test_devices_agree_with_torch(here: dict[str, dict[str, str]]) -> None:
    import torch

    assert (here["CUDA devices"]["status"] == "present") == torch.cuda.is_available()
    if torch.cuda.is_available():
        assert torch.cuda.get_device_name(0) in here["CUDA devices"]["found"]


def test_the_table_has_every_row(here: dict[str, dict[str, str]]) -> None:
    shown = show([Part(**row) for row in here.values()])  # type: ignore[arg-type]
    for row in here.values():
        assert f"{row['name']} " in shown
    assert shown.count("instead: ") == sum(row["status"] != "present" for row in here.values())
    assert max(map(len, shown.splitlines())) <= 120


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """Packages that do not load, each in another way."""
    fake_module(tmp_path, "torch", "raise OSError('libcudart.so.13: cannot open shared object')")
    fake_module(tmp_path, "transformers", "raise SystemExit(3)")
    fake_module(tmp_path, "transformer_engine", "")
    fake_module(tmp_path, "transformer_engine.pytorch", "raise ImportError('no cuDNN here')")
    fake_module(tmp_path, "faiss", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    fake_module(tmp_path, "mpi4py.MPI", "raise RuntimeError('cannot load MPI library')")
    (tmp_path / "mpi4py" / "__init__.py").write_text("class rc: pass")
    # PyPI's apex lacks its own dependencies here; that must not be the reason that is given.
    fake_module(tmp_path, "apex", "import pyramid_that_is_not_installed")
    return tmp_path


def test_broken_installs_are_rows_with_the_reason(broken: Path) -> None:
    found = rows(python_path=broken)
    for name, reason in {
        "torch": "libcudart.so.13: cannot open shared object",
        "CUDA devices": "torch does not load",
        "NCCL": "torch does not load",
        "transformers": "exit status 3",
        "Transformer Engine": "no cuDNN here",
        "FAISS": "died of SIGSEGV",
        "FAISS on GPUs": "FAISS does not load",
        "MPI": "cannot load MPI library",
        "Apex": "not NVIDIA's",
    }.items():
        assert found[name]["status"] == "broken"
        assert reason in found[name]["found"]


def test_apex_of_nvidia_and_programs_on_the_path(
    broken: Path, here: dict[str, dict[str, str]]
) -> None:
    """Beside packages that do not load, other parts are found as ever."""
    (broken / "apex" / "__init__.py").write_text("")
    fake_module(broken, "apex.multi_tensor_apply", "")
    fake_program(broken / "bin", "sbatch", "slurm 23.11.4")
    shutil.rmtree(broken / "mpi4py")
    library = here["MPI"]["found"]
    other = "HYDRA build details" if "Open MPI" in library else "mpirun (Open MPI) 5.0.8"
    fake_program(broken / "bin", "mpiexec", other)

    found = rows(path=f"{broken / 'bin'}:{os.environ['PATH']}", python_path=broken)
    assert found["Apex"]["status"] == "present"
    assert (found["Slurm"]["status"], found["Slurm"]["found"]) == ("present", "slurm 23.11.4")
    # With the launcher of another MPI every rank would be a world of its own.
    assert found["MPI"]["status"] == "broken"
    assert "another MPI's" in found["MPI"]["found"]
