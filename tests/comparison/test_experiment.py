"""The jobs of a comparison: each once, needing what they read, the arms alike but for one thing."""

import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from megatron_sbp.comparison.arm_run import ARMS
from megatron_sbp.comparison.branch import changed_by
from megatron_sbp.comparison.experiment import Experiment
from megatron_sbp.comparison.options import CompareOptions, parse
from megatron_sbp.comparison.run import _do
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.loop import by_flag
from megatron_sbp.manifest import Manifest
from tests.conftest import ROOT

TINY = str(ROOT / "tests" / "comparison" / "tiny.yaml")
SEED = random.randrange(1 << 30)


def experiment(directory: Path, *flags: str) -> Experiment:
    return Experiment(parse("", ["--recipe", TINY, "--output", str(directory), *flags]))


@pytest.fixture
def whole(tmp_path: Path) -> Experiment:
    return experiment(tmp_path / "run", "--sensitivity")


def owner(found: Experiment, argument: str) -> str | None:
    """The job whose output a path lies in."""
    inside = argument.removeprefix(f"{found.root}/")
    names = [name for name in found.jobs if f"{inside}/".startswith(f"{name}/")]
    return max(names, key=len, default=None) if inside != argument else None


def test_every_job_needs_the_jobs_that_it_reads(whole: Experiment) -> None:
    places = list(whole.jobs)
    for name, job in whole.jobs.items():
        read = {owner(whole, path) for path in job.known} - {None, name}
        chosen = {need for need in job.needs if need not in read}
        assert read <= set(job.needs), name
        # What is chosen from the sweep, and what is computed from a corpus, is no path.
        assert all("evaluations/" in need for need in chosen) or not chosen, name
        assert bool(chosen) == ("-tuned/" in name), name
        assert all(places.index(need) < places.index(name) for need in job.needs), name


def test_shared_stages_are_there_once(whole: Experiment) -> None:
    """Counted from what the arms are, seed by seed: nothing is made twice."""
    main = [job for name, job in whole.jobs.items() if not name.startswith("sensitivity/")]
    scripts = Counter(job.script for job in main)
    seeds, settings = 2, 2  # the first setting is the recipe's own
    runs = {
        "on real documents": 3 * seeds,  # repetition, equal-compute, oracle
        "of the sweep": settings - 1,
        "repetition-tuned": seeds - 1,
        "synthesizers": 2 * seeds,
        "on both": 3 * seeds,  # sbp, random-pairs, sbp-tuned
    }
    assert scripts == {
        "make_concepts": 1,
        "embed_documents": 2,  # training and held-out documents
        "mine_pairs": 3,  # of both, and random ones
        None: sum(runs.values()),
        "synthesize": 2 * seeds,
        "filter_synthetic": 2 * seeds,
        "evaluate": sum(runs.values()) - runs["synthesizers"],
    }
    assert len({tuple(job.known) for job in whole.jobs.values()}) == len(whole.jobs)


def test_a_knob_changes_its_stages_and_those_after_them(whole: Experiment) -> None:
    names = {name.removeprefix("sensitivity/") for name in whole.jobs if "sensitivity/" in name}
    chain = ["runs/sbp/seed-1", "evaluations/sbp/seed-1"]
    drawn = ["synthetic/sbp/seed-1", "filtered/sbp/seed-1"]
    assert names == {
        *(f"sbp-synthetic-share=0.1/{name}" for name in chain),  # 0.2 is the recipe's
        *(f"sbp-synthetic-share=0.3/{name}" for name in [*drawn, *chain]),
        *(f"tune.train-iters=5/{name}" for name in ["runs/synthesizer/seed-1", *drawn, *chain]),
    }
    line = by_flag(whole.jobs["sensitivity/tune.train-iters=5/runs/synthesizer/seed-1"].known)
    assert line["--train-iters"] == ["5"]


@pytest.mark.parametrize(
    ("knob", "unchanged"),
    [
        ("sbp-synthetic-share", "corpus embed mine repetition oracle tune synthesize filter"),
        ("filter.min-tokens", "corpus embed mine repetition oracle tune synthesize"),
        ("synthesize.temperature", "corpus embed mine repetition oracle tune"),
        ("tune.lr", "corpus embed mine repetition oracle"),
        ("mine.neighbors", "corpus embed repetition oracle"),
        ("embed.encoder", "corpus repetition oracle"),
        ("pretrain.lr", "corpus embed mine"),
        ("concepts.told", ""),
    ],
)
def test_what_a_knob_leaves_as_it_is(knob: str, unchanged: str) -> None:
    every = "corpus embed mine repetition oracle tune synthesize filter sbp"
    assert changed_by(knob) == set(every.split()) - set(unchanged.split())


def differing(found: Experiment, first: str, second: str) -> set[str]:
    """Flags in which two runs differ, those of their own output left out."""
    a, b = (by_flag(found.jobs[name].known) for name in (first, second))
    own = {"--load", "--save", "--data-cache-path"}
    return {flag for flag in {*a, *b} - own if a.get(flag) != b.get(flag)}


def test_arms_differ_in_nothing_but_what_they_are(whole: Experiment) -> None:
    synthetic = {"--sbp-synthetic-data"}
    # What follows from other jobs (share, weight decay and dropout, length) is not among these.
    of_real = {"repetition": set(), "equal-compute": set(), "oracle": {"--train-data-path"}}
    of_both = {"sbp": synthetic, "random-pairs": synthetic, "sbp-tuned": synthetic}
    wanted: dict[str, set[str]] = {**of_real, **of_both}
    for (one, adds), (other, more) in combinations(wanted.items(), 2):
        for seed in (1, 2):
            pair = (f"runs/{one}/seed-{seed}", f"runs/{other}/seed-{seed}")
            same = {one, other} == {"sbp", "sbp-tuned"}
            assert differing(whole, *pair) == (set() if same else adds | more), pair
    for arm in wanted:
        seeds = differing(whole, f"runs/{arm}/seed-1", f"runs/{arm}/seed-2")
        assert seeds == {"--seed"} | wanted[arm] & synthetic
    sweep = "runs/sweep/weight-decay=0.5,dropout=0.0/seed-1"
    assert differing(whole, sweep, "runs/repetition/seed-1") == {"--weight-decay"}


def test_equal_compute_is_as_long_as_all_of_sbp_costs(whole: Experiment) -> None:
    _do(whole, "corpus")
    cost = whole.cost
    repeated, longer = (
        by_flag(whole.jobs[f"runs/{arm}/seed-1"].line() or [])
        for arm in ("repetition", "equal-compute")
    )
    times = sum(cost.of("sbp").values()) / sum(cost.of("repetition").values())
    assert 1 < times == pytest.approx(sum(cost.of("equal-compute").values()) / cost.stages["sbp"])
    for flag in ("--train-iters", "--lr-warmup-iters"):
        assert int(longer[flag][0]) == round(times * int(repeated[flag][0]))
    # By hand: 6 operations per weight of a product and token; 12 per layer, channel and position
    # looked at, half of the sequence on average.
    vocabulary = -(-Manifest.read(whole.root / "corpus").counts["vocabulary"] // 8) * 8
    weights = 4 * 32 * 32 + 3 * 32 * 64 + vocabulary * 32
    assert cost.stages["repetition"] == 20 * 4 * 64 * (6 * weights + 12 * 32 * 32)


def test_no_document_that_arms_are_scored_on_was_trained_on(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    words = [f"word{number}" for number in range(50)]
    texts = [" ".join(draw.choices(words, k=draw.randint(3, 30))) for _ in range(400)]
    texts = [draw.choice(texts) if draw.random() < 0.2 else text for text in texts]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = yaml.safe_load(Path(TINY).read_text())
    del recipe["concepts"], recipe["compare"]
    recipe["preprocess"] = {"train-tokenizer": 300, "min-characters": 40, "heldout-share": 0.2}
    recipe["preprocess"] |= {"deduplicate": "near"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    line = ["--recipe", path, "--output", tmp_path / "run", "--input", source]
    found = Experiment(parse("", [*map(str, line), "--oracle-factor", "8"]))
    corpus = found.main.corpus()
    for name in corpus.jobs:
        _do(found, name)
    real, oracle, heldout = (
        list(Corpus([prefix]).texts(range(len(Corpus([prefix])))))
        for prefix in (corpus.real, corpus.oracle, corpus.heldout)
    )
    assert not set(heldout) & {*real, *oracle}, SEED
    assert real == oracle[: len(real)], SEED
    kept = len(real) + Manifest.read(Path(corpus.real).parent).counts["heldout_documents"]
    assert kept == (len(oracle) + len(heldout)) // 8, SEED


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "x.jsonl"], "makes its own corpus; leave it out"),
        (["--arms", "sbp", "none"], "--arms none: is no arm; there are repetition, "),
        (["--seeds", "1", "1"], "--seeds 1 1: give each of them once"),
        (["--sensitivity-seeds", "7"], "--sensitivity-seeds 7: is not among --seeds"),
        (["--jobs", "0"], "--jobs 0: must be at least 1"),
        (["--set", "lr"], "--set lr: is not FLAG=VALUE"),
    ],
)
def test_what_cannot_be_compared_is_refused(flags: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        experiment(tmp_path / "run", *flags)
    assert message in str(error.value)


def test_a_knob_that_is_no_flag_of_a_stage_is_refused() -> None:
    with pytest.raises(InputError, match=r"sensitivity lr: give sbp-synthetic-share, or a flag"):
        changed_by("lr")


def test_the_command_line_goes_before_the_recipe(tmp_path: Path) -> None:
    line = ["--recipe", TINY, "--output", str(tmp_path)]
    assert parse("", line).seeds == [1, 2]
    assert parse("", [*line, "--seeds", "5"]).seeds == [5]
    assert CompareOptions(recipe="x", output="y").arms == list(ARMS)
