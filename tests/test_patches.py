"""Patches for checkouts: they only insert, come off again, and touch no file but their own."""

import ast
import difflib
import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sbp import patches
from megatron_sbp.errors import InputError
from tests.conftest import ROOT, run_command

PATCHES = ROOT / "patches"
TOOL = ROOT / "tools" / "apply_patches.py"
RELEASES = yaml.safe_load((PATCHES / "releases.yaml").read_text())
FILE = "script.py"

LINES = st.lists(
    st.sampled_from([b"", b"a = 1", b"a = 1\r", b"+", b"-- x", b"\xff\x0c"]), max_size=9
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_patches(directory: Path, tag: str, before: bytes, after: bytes) -> None:
    """A patch by GNU diff, and the releases that it is one of."""
    directory.mkdir(exist_ok=True)
    (directory / "before").write_bytes(before)
    (directory / "after").write_bytes(after)
    labels = ["--label", f"a/{FILE}", "--label", f"b/{FILE}"]
    diff = subprocess.run(
        ["diff", "-a", "-U0", *labels, "before", "after"], cwd=directory, capture_output=True
    )
    assert diff.returncode == 1
    (directory / f"{tag}.patch").write_bytes(diff.stdout)
    release = {"file": FILE, "before": sha256(before), "after": sha256(after)}
    other = {"file": FILE, "before": "0" * 64, "after": "1" * 64}
    (directory / "releases.yaml").write_text(yaml.safe_dump({"other": other, tag: release}))


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patches")


@settings(max_examples=40, deadline=None)
@given(lines=LINES, inserted=st.lists(st.tuples(st.integers(0, 9), LINES), min_size=1, max_size=4))
def test_a_patch_inserts_and_comes_off_again(
    room: Path, lines: list[bytes], inserted: list[tuple[int, list[bytes]]]
) -> None:
    patched = list(lines)
    for place, new in inserted:
        patched[place:place] = new
    before, after = (b"".join(line + b"\n" for line in part) for part in (lines, patched))
    if before == after:
        return
    path = room / FILE
    path.write_bytes(before)
    path.chmod(0o750)
    write_patches(room / "patches", "v1", before, after)

    target = patches.find(room, room / "patches")
    assert (target.tag, target.patched, target.path) == ("v1", False, path.resolve())
    target.apply()
    assert path.read_bytes() == after
    target = patches.find(room, room / "patches")
    assert target.patched
    target.reverse()
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert {entry.name for entry in room.iterdir()} == {FILE, "patches"}, (
        "no temporary file is left"
    )


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_file_that_differs_by_a_byte_is_refused(room: Path, data: st.DataObject) -> None:
    before = b"import a\nimport b\n"
    after = b"import a\nimport hook\nimport b\n"
    write_patches(room / "patches", "v1", before, after)
    content = bytearray(data.draw(st.sampled_from([before, after])))
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (room / FILE).write_bytes(content)
    with pytest.raises(InputError, match=r"script\.py: not the file of a known.* other, v1;"):
        patches.find(room, room / "patches")
    assert (room / FILE).read_bytes() == content


@pytest.mark.parametrize(
    "patch",
    [
        "@@ -1 +1 @@\n-a\n+b\n",
        "@@ -1,0 +2 @@\n+b\n-a\n",
        "@@ -1,2 +1,3 @@\n a\n+b\n c\n",
        "@@ -1,0 +2 @@ def text():\n+b\n",
        "+b\n",
    ],
)
def test_a_patch_that_does_more_than_insert_is_refused(tmp_path: Path, patch: str) -> None:
    path = tmp_path / "v1.patch"
    path.write_text(f"--- a/{FILE}\n+++ b/{FILE}\n{patch}")
    with pytest.raises(InputError, match=r"v1\.patch:\d+: "):
        patches.read(path)


def test_a_damaged_patch_leaves_the_file_alone(tmp_path: Path) -> None:
    before = b"import a\nimport b\n"
    (tmp_path / FILE).write_bytes(before)
    write_patches(tmp_path / "patches", "v1", before, b"import a\nimport hook\nimport b\n")
    patch = tmp_path / "patches" / "v1.patch"
    patch.write_bytes(patch.read_bytes().replace(b"hook", b"rook"))
    with pytest.raises(InputError, match=r"v1\.patch does not make of .*script\.py"):
        patches.find(tmp_path, tmp_path / "patches").apply()
    assert (tmp_path / FILE).read_bytes() == before


def test_the_command_says_what_it_does(tmp_path: Path) -> None:
    before, after = b"import a\nimport b\n", b"import a\nimport hook\nimport b\n"
    write_patches(tmp_path / "patches", "v1", before, after)
    path, line = tmp_path / FILE, "  after line 1: import hook"
    path.write_bytes(before)
    steps = [
        ("--check", "not patched", None, before),
        ("--reverse", "not patched", "already without the patch, nothing to do", before),
        (None, "not patched", "applied: these lines are inserted", after),
        (None, "patched", "already patched, nothing to do", after),
        ("--check", "patched", None, after),
        ("--reverse", "patched", "reversed: these lines are removed", before),
    ]
    for flag, state, done, content in steps:
        run = run_command(TOOL, tmp_path, "--patches", tmp_path / "patches", *filter(None, [flag]))
        assert run.returncode == 0, run.stderr
        assert run.stdout.splitlines() == [
            f"{path.resolve()}: of v1, {state}",
            line,
            *filter(None, [done]),
        ]
        assert path.read_bytes() == content

    path.unlink()
    run = run_command(TOOL, tmp_path)
    assert run.returncode == 2
    known = ", ".join(RELEASES)
    assert run.stderr.startswith(f"error: {tmp_path}: has no pretrain_gpt.py")
    assert known in run.stderr and run.stderr.count("\n") == 1


# The patches of this repository


@pytest.mark.parametrize("tag", RELEASES)
def test_a_patch_holds_nothing_of_upstream(tag: str) -> None:
    lines = (PATCHES / f"{tag}.patch").read_text().splitlines()
    assert lines[:2] == [f"--- a/{RELEASES[tag]['file']}", f"+++ b/{RELEASES[tag]['file']}"]
    inserted = [line[1:] for line in lines if line.startswith("+") and line not in lines[:2]]
    assert all("megatron_sbp" in line for line in inserted), "what is inserted is our own"
    assert len(patches.read(PATCHES / f"{tag}.patch")) == len(lines) - 2 - len(inserted)


def test_every_release_gets_the_same_lines() -> None:
    insertions = [patches.read(PATCHES / f"{tag}.patch") for tag in RELEASES]
    assert len({tuple(tuple(one.lines) for one in patch) for patch in insertions}) == 1
    shown = (ROOT / "docs" / "patches.md").read_text()
    assert all(line.decode().strip() in shown for one in insertions[0] for line in one.lines)


def take_checkout(tag: str, directory: Path) -> Path:
    """A release in a directory of its own: the file that is patched as a copy, the rest by links.

    ``MEGATRON_LM_CHECKOUTS`` names a directory with the files of every release in ``TAG/``; without
    them the test is skipped.
    """
    checkouts = os.environ.get("MEGATRON_LM_CHECKOUTS")
    if not checkouts:
        pytest.skip("MEGATRON_LM_CHECKOUTS names no directory with Megatron-LM's releases")
    source = Path(checkouts) / tag
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    for entry in source.iterdir():
        if entry.name == RELEASES[tag]["file"]:
            shutil.copy(entry, directory)
        else:
            (directory / entry.name).symlink_to(entry)
    return directory


@pytest.mark.parametrize("tag", RELEASES)
def test_upstream_files_are_patched_and_restored(tag: str, tmp_path: Path) -> None:
    checkout = take_checkout(tag, tmp_path)
    path = checkout / RELEASES[tag]["file"]
    before = path.read_bytes()
    assert run_command(TOOL, checkout).returncode == 0
    after = path.read_bytes()
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    changes = [change for change in matcher.get_opcodes() if change[0] != "equal"]
    assert changes and {kind for kind, *_ in changes} == {"insert"}
    _check_stand_ins(after)
    assert run_command(TOOL, checkout, "--reverse").returncode == 0
    assert path.read_bytes() == before

    if shutil.which("git") is None:
        return
    for reverse, content in (([], after), (["--reverse"], before)):
        command = ["git", "apply", "--unidiff-zero", *reverse, str(PATCHES / f"{tag}.patch")]
        subprocess.run(command, cwd=checkout, check=True)
        assert path.read_bytes() == content


def _check_stand_ins(source: bytes) -> None:
    """The names that a script calls are those of the last import that binds them: ours."""
    origin = {
        name.asname or name.name: node.module
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    for name in ("pretrain", "parse_and_validate_args"):
        assert origin[name] == "megatron_sbp.training.hooks"
