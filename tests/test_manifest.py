"""The stage protocol: complete under the final name or not there at all; nothing read on trust."""

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp import manifest
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage, fingerprint


def make_box(directory: Path, **options: Any) -> Manifest:
    """A finished box with one file in it and one in a folder."""
    with Stage.open(directory, "mine", options=options, inputs=[]) as stage:
        (stage.workspace / "data.bin").write_bytes(b"abc")
        (stage.workspace / "folder").mkdir()
        (stage.workspace / "folder" / "more.txt").write_text("def")
        return stage.finish(counts={"pairs": 3})


def interrupted(*_: Any) -> None:
    raise KeyboardInterrupt


# The protocol


def test_the_final_name_appears_only_when_complete(tmp_path: Path) -> None:
    box = tmp_path / "box"
    with Stage.open(box, "mine", options={}, inputs=[]) as stage:
        (stage.workspace / "data.bin").write_bytes(b"abc")
        assert not box.exists()
        stage.finish(counts={"pairs": 3})
        assert box.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["box"]
    assert sorted(path.name for path in box.iterdir()) == ["data.bin", "manifest.json"]


def test_the_manifest_says_what_was_written(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("input")
    with Stage.open(tmp_path / "box", "mine", options={"k": 4}, inputs=[source]) as stage:
        (stage.workspace / "folder").mkdir()
        (stage.workspace / "folder" / "data.bin").write_bytes(b"abc")
        stage.finish(counts={"pairs": 3})
    found = Manifest.read(tmp_path / "box")
    assert found.stage == "mine"
    assert found.options == {"k": 4}
    assert found.counts == {"pairs": 3}
    assert found.inputs[str(source)]["sha256"] == hashlib.sha256(b"input").hexdigest()
    entry = found.outputs["folder/data.bin"]
    assert (entry["bytes"], entry["sha256"]) == (3, hashlib.sha256(b"abc").hexdigest())
    assert found.seconds > 0
    assert found.peak_memory_bytes > 2**20
    assert {"python", "packages", "command", "cpus"} <= found.environment.keys()


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        Stage.open(tmp_path / "box", "mine", options={}, inputs=[]) as stage,
    ):
        (stage.workspace / "data.bin").write_bytes(b"abc")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_empty_directory_may_be_given(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    make_box(tmp_path / "box")
    assert Manifest.read(tmp_path / "box").counts == {"pairs": 3}


def test_sigkill_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """The next run does not mistake what a killed one left for anything of its own."""
    box = tmp_path / "box"
    killed = run_stage(box, "os.kill(os.getpid(), signal.SIGKILL)", resumable=False)
    assert killed.returncode == -signal.SIGKILL
    assert not box.exists()
    assert (tmp_path / "box.partial" / "piece").exists()

    with Stage.open(box, "mine", options={}, inputs=[]) as stage:
        assert not (stage.workspace / "piece").exists()
        stage.finish(counts={})
    assert sorted(Manifest.read(box).outputs) == []


def test_a_resumable_stage_finds_its_pieces_after_sigkill(tmp_path: Path) -> None:
    box = tmp_path / "box"
    run_stage(box, "os.kill(os.getpid(), signal.SIGKILL)", resumable=True)
    assert not box.exists()
    with Stage.open(box, "mine", options={}, inputs=[], resumable=True) as stage:
        assert (stage.workspace / "piece").read_text() == "half"
        stage.finish(counts={})
    assert sorted(Manifest.read(box).outputs) == ["piece"]


def test_seconds_of_resumed_attempts_add_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(manifest.time, "perf_counter", lambda: now)
    box = tmp_path / "box"
    with (
        pytest.raises(KeyboardInterrupt),
        Stage.open(box, "mine", options={}, inputs=[], resumable=True) as stage,
    ):
        (stage.workspace / "piece").write_text("half")
        now += 7
        stage.checkpoint()
        now += 2
        raise KeyboardInterrupt
    now += 1000  # the time between the attempts does not count
    with Stage.open(box, "mine", options={}, inputs=[], resumable=True) as stage:
        now += 30
        assert stage.finish(counts={}).seconds == pytest.approx(39)


def test_an_error_is_told_though_the_time_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with (
        pytest.raises(InputError, match="the error itself"),
        Stage.open(tmp_path / "box", "mine", options={}, inputs=[], resumable=True) as stage,
    ):
        (stage.workspace / "piece").write_text("half")
        monkeypatch.setattr(Manifest, "write", full)
        raise InputError("the error itself")
    assert (stage.workspace / "piece").read_text() == "half"


@pytest.mark.parametrize(("step", "complete"), [("environment", False), ("os.rename", True)])
def test_a_stage_stopped_while_it_finishes_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, complete: bool
) -> None:
    """Before its outputs are recorded it goes on with its pieces, afterwards it is complete."""
    box = tmp_path / "box"

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"megatron_sbp.manifest.{step}", interrupted)
        with Stage.open(box, "mine", options={}, inputs=[], resumable=True) as stage:
            stage.scratch.mkdir()
            (stage.scratch / "piece").write_text("piece")
            (stage.workspace / "data").write_text("data")
            stage.finish(counts={"rows": 4})
    assert not box.exists()
    with Stage.open(box, "mine", options={}, inputs=[], resumable=True) as stage:
        assert stage.complete == complete
        if not complete:
            assert (stage.scratch / "piece").read_text() == "piece"
            stage.finish(counts={"rows": 4})
    finished = Manifest.read(box)
    assert (finished.counts, [*finished.outputs]) == ({"rows": 4}, ["data"])
    finished.check_outputs(box)
    assert {path.name for path in box.iterdir()} == {"data", "manifest.json"}
    assert not (tmp_path / "box.partial").exists()


def test_a_finished_output_is_recognised_wherever_its_inputs_lie(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "real.idx").write_text("same content")
    first = tmp_path / "here" / "real.idx"
    with Stage.open(tmp_path / "box", "mine", options={"k": (1, 2)}, inputs=[first]) as stage:
        stage.finish(counts={"pairs": 3})
    moved = tmp_path / "there" / "real.idx"
    with Stage.open(tmp_path / "box", "mine", options={"k": [1, 2]}, inputs=[moved]) as stage:
        assert stage.complete
        assert stage.manifest.counts == {"pairs": 3}


# Refusals


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": {"k": 8}}, "k: 4 -> 8"),
        ({"options": {"k": 4, "extra": 1}}, "extra: 'absent' -> 1"),
        ({"name": "embed"}, "stage: 'mine' -> 'embed'"),
        ({"content": "other"}, "input 0 real.idx"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_was_made_differently_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str, finished: bool
) -> None:
    source = tmp_path / "real.idx"

    def start(name: str = "mine", content: str = "one", options: Any = None) -> None:
        source.write_text(content)
        options = options or {"k": 4}
        box = tmp_path / "box"
        with Stage.open(box, name, options=options, inputs=[source], resumable=True) as stage:
            (stage.workspace / "piece").write_text("half")
            if not finished:
                raise KeyboardInterrupt
            stage.finish(counts={})

    if finished:
        start()
    else:
        with pytest.raises(KeyboardInterrupt):
            start()
    with pytest.raises(InputError, match="made differently") as refusal:
        start(**change)
    assert named in str(refusal.value)
    assert "remove it or choose another output" in str(refusal.value)


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    box = tmp_path / "box"
    with Stage.open(box, "mine", options={}, inputs=[]) as stage:
        second = run_stage(box, "pass", resumable=False)
        assert second.returncode == 2
        assert "another run is writing this output" in second.stderr
        (stage.workspace / "data.bin").write_bytes(b"abc")
        stage.finish(counts={})
    assert sorted(Manifest.read(box).outputs) == ["data.bin"]


def test_a_run_that_opened_the_lock_before_the_rename_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the lock file and locking it, the first run may finish."""
    box = tmp_path / "box"
    first = Stage.open(box, "mine", options={}, inputs=[])
    real_flock = fcntl.flock

    def finish_first(lock: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", real_flock)
        with first:
            first.finish(counts={"pairs": 3})
        real_flock(lock, operation)

    monkeypatch.setattr(fcntl, "flock", finish_first)
    with pytest.raises(InputError, match="another run is writing this output"):
        Stage.open(box, "mine", options={}, inputs=[])
    assert Manifest.read(box).counts == {"pairs": 3}


def test_a_run_that_another_one_is_faster_than_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look for a finished box and making the workspace, the first run may finish."""
    box = tmp_path / "box"
    enter = Stage._enter_workspace

    def finish_first(stage: Stage) -> None:
        monkeypatch.setattr(Stage, "_enter_workspace", enter)
        make_box(box)
        enter(stage)

    monkeypatch.setattr(Stage, "_enter_workspace", finish_first)
    with pytest.raises(InputError, match="another run has just finished"):
        Stage.open(box, "mine", options={}, inputs=[])
    assert [path.name for path in tmp_path.iterdir()] == ["box"]
    assert Stage.open(box, "mine", options={}, inputs=[]).complete


def test_the_lock_of_a_run_killed_at_its_last_step_goes(tmp_path: Path) -> None:
    make_box(tmp_path / "box")
    (tmp_path / "box" / ".lock").touch()
    assert Stage.open(tmp_path / "box", "mine", options={}, inputs=[]).complete
    assert not (tmp_path / "box" / ".lock").exists()


def test_a_refused_resumption_does_not_keep_the_lock(tmp_path: Path) -> None:
    box = tmp_path / "box"
    with (
        pytest.raises(KeyboardInterrupt),
        Stage.open(box, "mine", options={"k": 1}, inputs=[], resumable=True) as stage,
    ):
        (stage.workspace / "piece").write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="made differently"):
        Stage.open(box, "mine", options={"k": 2}, inputs=[], resumable=True)
    with Stage.open(box, "mine", options={"k": 1}, inputs=[], resumable=True) as stage:
        stage.finish(counts={})


@pytest.mark.parametrize("place", ["box", "box.partial"])
def test_files_of_the_user_are_not_touched(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir()
    (tmp_path / place / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds files that no stage wrote"):
        Stage.open(tmp_path / "box", "mine", options={}, inputs=[])
    assert (tmp_path / place / "thesis.txt").read_text() == "years of work"


def test_a_file_in_the_place_of_the_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "box").write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        Stage.open(tmp_path / "box", "mine", options={}, inputs=[])


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.idx: No such file"):
        Stage.open(tmp_path / "box", "mine", options={}, inputs=[tmp_path / "absent.idx"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("d", "has 1 bytes, the manifest says 3"),
        (None, "is missing, the manifest says 3"),
        ("dEf", "is not as its stage wrote it"),
    ],
)
def test_a_damaged_output_is_not_recognised(
    tmp_path: Path, content: str | None, message: str
) -> None:
    make_box(tmp_path / "box")
    data = tmp_path / "box" / "folder" / "more.txt"
    data.unlink()
    if content is not None:
        data.write_text(content)
        os.utime(data, (0, 0))
    with pytest.raises(InputError, match=rf"more\.txt: {message}"):
        Stage.open(tmp_path / "box", "mine", options={}, inputs=[])


def test_what_was_damaged_before_a_box_had_its_name_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Stage, "_give_name", interrupted)
        with Stage.open(tmp_path / "box", "mine", options={}, inputs=[], resumable=True) as stage:
            (stage.workspace / "data").write_text("data")
            stage.finish(counts={})
    (stage.workspace / "data").write_text("dAta")
    os.utime(stage.workspace / "data", (0, 0))
    with pytest.raises(InputError, match=r"partial/data: is not as its stage wrote it"):
        Stage.open(tmp_path / "box", "mine", options={}, inputs=[], resumable=True)
    assert not (tmp_path / "box").exists()


# Fingerprints


def test_a_recorded_fingerprint_is_used_without_reading(tmp_path: Path) -> None:
    make_box(tmp_path / "box")
    data = tmp_path / "box" / "data.bin"
    status = data.stat()
    # Other bytes behind the same size and time: only a file that is not read again hides that.
    data.write_bytes(b"xyz")
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(data)["sha256"] == hashlib.sha256(b"abc").hexdigest()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    make_box(tmp_path / "box")
    data = tmp_path / "box" / "data.bin"
    status = data.stat()
    before = fingerprint(data)
    os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert fingerprint(data) == before
    for content, later in ((b"xyz", 1), (b"longer", 0)):
        data.write_bytes(content)
        os.utime(data, ns=(status.st_atime_ns, status.st_mtime_ns + later))
        digest = hashlib.sha256(content).hexdigest()[:12]
        with pytest.raises(InputError, match=f"{data}: is not as its stage wrote it .*{digest}"):
            fingerprint(data)


def test_a_failed_atomic_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), manifest.atomic_write(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def run_stage(box: Path, ending: str, *, resumable: bool) -> subprocess.CompletedProcess[str]:
    """A stage in a process of its own that writes half of its output and then runs ``ending``."""
    program = f"""
        import os, signal
        from megatron_sbp import cli, manifest
        from megatron_sbp.manifest import Stage

        def main():
            with Stage.open({str(box)!r}, "mine", options={{}}, inputs=[],
                            resumable={resumable}) as stage:
                (stage.workspace / "piece").write_text("half")
                {ending}

        cli.run(main)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )


def test_a_resumed_stage_drops_the_half_written_file(tmp_path: Path) -> None:
    box = tmp_path / "box"
    killed = """with manifest.atomic_write(stage.workspace / "shard") as temporary:
                    temporary.write_text("half")
                    os.kill(os.getpid(), signal.SIGKILL)"""
    run_stage(box, killed, resumable=True)
    workspace = tmp_path / "box.partial"
    assert list(workspace.glob(".shard.tmp-*")), "nothing was left behind: test nothing"
    with Stage.open(box, "mine", options={}, inputs=[], resumable=True) as stage:
        assert not list(stage.workspace.glob(".shard.tmp-*"))
        stage.finish(counts={})
    assert not any("tmp" in name for name in Manifest.read(box).outputs)
