"""Damaged manifests, metrics and recipes."""

import copy
import json
import math
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from megatron_sbp import recipes
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.metrics import read_metrics
from megatron_sbp.recipes.run import STAGES, Run, RunOptions
from tests.conftest import ROOT
from tests.hostile.fuzz import cheap, damaged, fuzzed, read_or_refused, refused

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(max_size=8), some),
    max_leaves=8,
)


# Manifests


def fields() -> dict[str, Any]:
    entry = {"bytes": 3, "sha256": "0" * 64, "mtime_ns": 5}
    manifest = Manifest(stage="mine", options={"k": 1}, inputs={"a": entry}, outputs={"b": entry})
    return json.loads(json.dumps(vars(manifest)))


@fuzzed(100)
@given(raw=damaged(json.dumps(fields()).encode(), most=4))
def test_damaged_manifests(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("box")
    (directory / "manifest.json").write_bytes(raw)
    found = read_or_refused(lambda: Manifest.read(directory), measured=False)
    if found is not None:
        assert vars(found) == {**vars(Manifest(stage="", options={}, inputs={})), **json.loads(raw)}


@fuzzed(100)
@given(name=st.sampled_from(sorted(fields())), value=JSON)
def test_fields_of_another_kind(
    name: str, value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("box")
    (directory / "manifest.json").write_text(json.dumps(fields() | {name: value}))
    found = read_or_refused(lambda: Manifest.read(directory), measured=False)
    if found is not None:
        read_or_refused(lambda: found.check_outputs(directory), measured=False)
        assert all(isinstance(entry["bytes"], int) for entry in found.outputs.values())


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../../x", "..\\x", "C:\\x", "\\\\host\\x", "a\0b", ".."],
)
def test_names_that_leave_the_box(name: str, tmp_path: Path) -> None:
    changed = fields() | {"outputs": {name: fields()["outputs"]["b"]}}
    (tmp_path / "manifest.json").write_text(json.dumps(changed))
    refused(lambda: Manifest.read(tmp_path), "lies outside its directory")


@pytest.mark.parametrize("link", ["b", "folder"])
def test_links_that_leave_the_box(link: str, tmp_path: Path) -> None:
    box, outside = tmp_path / "box", tmp_path / "outside"
    outside.mkdir()
    (outside / "b").write_text("abc")
    with Stage.open(box, "mine", options={}, inputs=[]) as stage:
        (stage.workspace / "folder").mkdir()
        for name in ("b", "folder/b"):
            (stage.workspace / name).write_text("abc")
        stage.finish(counts={})
    Manifest.read(box).check_outputs(box)
    (box / "folder" / "b").unlink() if link == "folder" else None
    (box / "folder").rmdir() if link == "folder" else (box / "b").unlink()
    (box / link).symlink_to(outside if link == "folder" else outside / "b")
    refused(lambda: Manifest.read(box).check_outputs(box), "outside its box")


# Metrics


def entries(values: list[Any]) -> bytes:
    lines = [
        {"iteration": step, "metric": "lm loss", "value": value}
        for step, value in enumerate(values)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


METRICS = entries([5.0, 4.5, 4, math.nan, math.inf])


@fuzzed(150)
@given(raw=damaged(METRICS, most=4))
def test_damaged_metrics(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("run")
    (directory / "metrics.jsonl").write_bytes(raw)
    found = read_or_refused(lambda: read_metrics(directory), measured=False)
    if found is None:
        return
    series: dict[str, dict[int, float]] = {}
    for line in raw.splitlines():
        entry = json.loads(line)
        series.setdefault(entry["metric"], {})[entry["iteration"]] = float(entry["value"])
    assert repr(found) == repr({name: sorted(of.items()) for name, of in series.items()})


@pytest.mark.parametrize(
    "line",
    [
        b'{"iteration": Infinity, "metric": "a", "value": 1}',
        b'{"iteration": 1.5, "metric": "a", "value": 1}',
        b'{"iteration": -1, "metric": "a", "value": 1}',
        b'{"iteration": true, "metric": "a", "value": 1}',
        b'{"iteration": 1, "metric": ["a"], "value": 1}',
        b'{"iteration": 1, "metric": 7, "value": 1}',
        b'{"iteration": 1, "metric": "a", "value": "1"}',
        b'{"iteration": 1, "metric": "a", "value": ' + b"9" * 400 + b"}",
        b"[" * 100_000,
        b"\xff\xfe",
        b"",
    ],
    ids=lambda line: line[:44].decode("latin-1"),
)
def test_lines_that_are_no_metric(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(METRICS + line + b"\n")
    refused(lambda: read_metrics(tmp_path), "line 6: not a metric")


# Recipes


def load(directory: Path, text: str | bytes) -> recipes.Recipe:
    path = directory / "recipe.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return recipes.load(str(path))


def _line(recipe: recipes.Recipe, stage: str) -> list[str]:
    return recipes.arguments(Run("recipe", recipe, RunOptions()).flags(stage))


def arguments(recipe: recipes.Recipe) -> dict[str, list[str] | None]:
    """The arguments of every stage, None where the recipe is refused."""
    lines: dict[str, list[str] | None] = {}
    for stage in STAGES:
        lines[stage] = read_or_refused(
            partial(_line, recipe, stage),
            measured=False,
        )
    return lines


WHOLE: dict[str, Any] = {
    "preprocess": {"train-tokenizer": 4096},
    "train": {"seq-length": 128, "lr": 1e-3, "global-batch-size": 8, "micro-batch-size": 2},
    "pretrain": {"train-iters": 5, "bf16": True},
    "arms": {"sbp": {"sbp-synthetic-share": 0.5}, "repetition": {}},
    "precision": {"bf16": {"h100": {"bf16": True}}},
    "layouts": {"h100": {8: {"tensor-model-parallel-size": 2}}},
    "sizes": {8: {"lr": 2}},
    "synthetic": {"oversampling": 1.5},
}


@fuzzed(25)
@given(raw=damaged(yaml.safe_dump(WHOLE, sort_keys=False).encode(), most=4))
def test_damaged_recipes(raw: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("recipe")
    recipe = read_or_refused(lambda: load(directory, raw), measured=False)
    if recipe is not None:
        assert recipe == {name: of for name, of in yaml.safe_load(raw).items() if name != "base"}
        arguments(recipe)


PATHS = [("layouts",), ("layouts", "h100"), ("layouts", "h100", 8), ("precision", "bf16", "h100")]
PATHS += [(a, b) for a, inner in WHOLE.items() for b in inner] + [(name,) for name in WHOLE]
PATHS += [
    ("layouts", "h100", 8, "tensor-model-parallel-size"),
    ("arms", "sbp", "sbp-synthetic-share"),
]


@fuzzed(40)
@given(path=st.sampled_from(PATHS), value=JSON | st.sampled_from([0, -1, math.nan, 2**70, "0", {}]))
def test_values_of_another_kind(
    path: tuple[Any, ...], value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changed = copy.deepcopy(WHOLE)
    inner = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    directory = tmp_path_factory.mktemp("recipe")
    recipe = read_or_refused(lambda: load(directory, yaml.safe_dump(changed)), measured=False)
    if recipe is not None:
        arguments(recipe)


@pytest.mark.parametrize(
    "text",
    [
        "train: {x: !!python/object/apply:os.system ['touch made']}",
        "train: {x: !!python/name:os.system }",
        "train: {x: !!python/object/new:type [a, [], {}]}",
        '!!python/object/apply:builtins.exec [\'open("made", "w")\']',
        "train: {x: !!python/module:os }",
    ],
)
def test_recipes_run_no_code(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(lambda: load(tmp_path, text), "not YAML .*could not determine a constructor")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def bomb(key: str) -> str:
    """Forty sections, each with the one before it twice."""
    lines = [f"a{n}: &a{n} {{{key}: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 40)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb("x"), "aliases"),
        (bomb("<<"), "aliases"),
        ("train: &a {x: *a}", "no text, number"),
        ("train: &a {x: [*a]}", "no text, number"),
        ("train: " + "[" * 50_000, "more than 20 brackets"),
        ("train: " + "{x: " * 20 + "1" + "}" * 20, "nested 7 deep"),
        ("train: {x: 2020-99-99}", "not YAML"),
        ("train: {x: !!timestamp now}", "not YAML"),
        ("train: {x: !!bool maybe}", "not YAML"),
        ("train: {x: !!int none}", "not YAML"),
        ("train: {x: " + "9" * 9999 + "}", "not YAML"),
        ("train: {x: 2020-01-01}", "put it in quotes"),
        ("train: {? [1] : 2}", "not YAML"),
        ("train: {null: 2}", "no name of a flag"),
        ("train: [1]", "no mapping"),
        ("base: {a: b}", "no name of a recipe"),
        ("base: [5]", "no name of a recipe"),
        ('base: "a\\0b"', "not YAML|no such recipe|null byte"),
        (b"train: {x: \xff}", "not YAML"),
        ("- train", "no sections"),
        ("", "no sections"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_hostile_recipes(text: str | bytes, message: str, tmp_path: Path) -> None:
    refused(lambda: load(tmp_path, text), message)


def test_a_recipe_may_have_an_alias(tmp_path: Path) -> None:
    text = "layouts: {h100: &any {8: {x: 1}}, h200: *any}"
    assert load(tmp_path, text) == {"layouts": {gpu: {8: {"x": 1}} for gpu in ("h100", "h200")}}


def test_bases_in_a_circle_and_in_a_lattice(tmp_path: Path) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"base: {tmp_path / base}.yaml")
    refused(lambda: recipes.load(str(tmp_path / "a.yaml")), "a base of itself")
    # Read anew at every mention, these would be 2^60 files.
    (tmp_path / "n0.yaml").write_text("train: {x: 1}")
    for number in range(1, 61):
        below = tmp_path / f"n{number - 1}.yaml"
        (tmp_path / f"n{number}.yaml").write_text(f"base: [{below}, {below}]")
    with cheap():
        assert recipes.load(str(tmp_path / "n60.yaml")) == {"train": {"x": 1}}


def test_a_directory_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").mkdir()
    refused(lambda: recipes.load(str(tmp_path / "a.yaml")), "Is a directory; check the path")


def test_an_argument_with_a_line_break_is_not_two(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('embed: {encoder: "x\\n--output\\n/elsewhere"}')
    command = [sys.executable, "-m", "megatron_sbp.recipes", "show", str(tmp_path / "a.yaml")]
    finished = subprocess.run(
        [*command, "--stage", "embed"], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 2 and "/elsewhere\n" not in finished.stdout
    assert finished.stderr.count("\n") == 1 and "has a line break" in finished.stderr
