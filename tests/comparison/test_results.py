"""What a comparison says is what its runs say, reckoned slowly."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from megatron_sbp.comparison.results import ARMS, ArmRun, summarise
from megatron_sbp.errors import InputError
from tests.comparison.simulated import FLOOR, LOSSES, STEPS, TOKENS, simulate, source

RUNS = simulate()


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return summarise(RUNS, floor=FLOOR)


def slow_loss(run: ArmRun) -> float:
    """Nats per token, document by document."""
    nats = tokens = 0.0
    for of_document, length in zip(run.loss.tolist(), run.tokens.tolist(), strict=True):
        nats, tokens = nats + of_document, tokens + length
    return nats / tokens


def losses(runs: list[ArmRun], arm: str) -> dict[int, float]:
    return {run.seed: slow_loss(run) for run in runs if run.arm == arm}


def row(rows: list[dict[str, Any]], **names: str) -> dict[str, Any]:
    """The one row with these names."""
    (found,) = [row for row in rows if all(row[key] == name for key, name in names.items())]
    return found


def t_of(values: list[float]) -> Any:
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return pytest.approx(low), pytest.approx(high)


# Losses and differences


def test_arms_stand_in_order_with_their_means(content: dict[str, Any]) -> None:
    assert [arm["arm"] for arm in content["arms"]] == list(ARMS)
    for arm in content["arms"]:
        of_seeds = losses(RUNS, arm["arm"])
        assert {run["seed"]: pytest.approx(run["loss"]) for run in arm["runs"]} == of_seeds
        assert arm["loss"] == pytest.approx(sum(of_seeds.values()) / 3)
        assert tuple(arm["interval"]) == t_of(list(of_seeds.values()))
        assert arm["above_floor"]["told"] == pytest.approx(arm["loss"] - 1.79)


def test_differences_are_paired_by_seed(content: dict[str, Any]) -> None:
    for found in content["differences"]:
        one, other = (losses(RUNS, found[name]) for name in ("arm", "reference"))
        apart = [one[seed] - other[seed] for seed in (1, 2, 3)]
        assert found["difference"] == pytest.approx(sum(apart) / 3)
        assert tuple(found["by_seed"]) == t_of(apart)


def test_every_pair_of_an_arm_and_a_reference_is_there_once(content: dict[str, Any]) -> None:
    pairs = [frozenset((row["arm"], row["reference"])) for row in content["differences"]]
    assert len(pairs) == len(set(pairs)) == 6 + 5 + 4 + 3
    assert {row["reference"] for row in content["differences"] if row["arm"] == "sbp"} == {
        "repetition",
        "repetition-tuned",
        "equal-compute",
        "random-pairs",
    }


def test_differences_by_document_are_those_of_a_plain_bootstrap(content: dict[str, Any]) -> None:
    found = row(content["differences"], arm="sbp", reference="random-pairs")
    chosen = {arm: [run.loss for run in RUNS if run.arm == arm] for arm in ("sbp", "random-pairs")}
    apart = np.mean(chosen["sbp"], axis=0) - np.mean(chosen["random-pairs"], axis=0)
    tokens = RUNS[0].tokens
    random = np.random.default_rng(21)
    drawn = []
    for _ in range(4000):
        places = random.integers(len(tokens), size=len(tokens))
        drawn.append(apart[places].sum() / tokens[places].sum())
    low, high = np.quantile(drawn, [0.025, 0.975])
    # Quantiles of 1,000 resamples are off by a few hundredths of the width.
    assert found["by_document"] == pytest.approx([low, high], abs=0.12 * (high - low))


def test_seeds_that_only_one_arm_has_are_left_out_of_pairs() -> None:
    runs = [run for run in RUNS if run.arm != "sbp" or run.seed != 2]
    content = summarise(runs)
    one, other = losses(runs, "sbp"), losses(runs, "repetition")
    found = row(content["differences"], arm="sbp", reference="repetition")
    assert found["seeds"] == 2
    assert found["difference"] == pytest.approx((one[1] - other[1] + one[3] - other[3]) / 2)
    assert any("sbp has seed 1, 3 only" in limit for limit in content["limits"])


@pytest.mark.parametrize(
    ("gap", "verdict"), [(-0.5, "better"), (0.5, "worse"), (0.0, "inside the noise")]
)
def test_verdicts(gap: float, verdict: str) -> None:
    content = summarise(simulate({"repetition": 2.6, "sbp": 2.6 + gap}, range(5)))
    assert row(content["differences"], arm="sbp")["verdict"] == verdict
    assert f"({verdict})" in content["headline"]


def test_a_gain_on_few_documents_alone_is_inside_the_noise() -> None:
    """Seeds agree, but all of the difference comes from one document."""
    runs = simulate({"repetition": 2.6, "sbp": 2.6}, noise=0)
    for run in runs:
        run.loss = run.tokens * 2.6 + np.random.default_rng(run.seed).normal(0, 1e-3, 120)
        run.loss[7] -= 5 * (run.arm == "sbp")
    (found,) = summarise(runs)["differences"]
    assert found["by_seed"][1] < 0 <= found["by_document"][1] + 1e-3
    assert found["verdict"] == "inside the noise"


# Recovered shares


def test_recovered_shares_are_ratios_of_gains(content: dict[str, Any]) -> None:
    for base in ("repetition", "repetition-tuned"):
        start, oracle = losses(RUNS, base), losses(RUNS, "oracle")
        for arm in {"sbp", "sbp-tuned", "random-pairs", "repetition-tuned", "equal-compute"}:
            if arm == base:
                continue
            found = row(content["recovered"], arm=arm, base=base)
            gains = [start[seed] - loss for seed, loss in losses(RUNS, arm).items()]
            whole = [start[seed] - loss for seed, loss in oracle.items()]
            assert found["share"] == pytest.approx(sum(gains) / sum(whole))
    assert len(content["recovered"]) == 5 + 4


def test_a_gain_inside_the_noise_has_a_share_without_bounds() -> None:
    runs = simulate({"repetition": 2.0, "sbp": 2.0, "oracle": 2.0})
    gains = {"repetition": (0, 0, 0), "sbp": (0.02, -0.03, 0.02), "oracle": (-0.05, 0.15, -0.07)}
    for run in runs:
        run.loss = run.tokens * (2 - gains[run.arm][run.seed - 1])
    (found,) = summarise(runs)["recovered"]
    assert found["share"] == pytest.approx(0.01 / 0.03)
    assert found["interval"] == {"kind": "any", "low": None, "high": None}
    assert found["bounds"] == "without bounds: the oracle's gain is inside the noise"


def test_an_oracle_that_is_not_better_leaves_no_share() -> None:
    (found,) = summarise(simulate({"repetition": 2.0, "sbp": 1.9, "oracle": 2.2}))["recovered"]
    assert found["share"] is None
    assert found["bounds"] == "the oracle is not better than repetition"


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    content = summarise(simulate(seeds=[4]))
    assert all(arm["interval"] is None for arm in content["arms"])
    assert {row["verdict"] for row in content["differences"]} == {"cannot be told"}
    assert {row["by_seed"] for row in content["differences"]} == {None}
    assert all(row["by_document"] for row in content["differences"])
    assert {row["bounds"] for row in content["recovered"]} == {"one seed"}
    assert content["limits"][0].startswith("There is one seed")
    assert "one seed" in content["headline"]


# Parts, curves, knobs, costs


def test_held_out_sources_and_kinds_of_tokens() -> None:
    runs = [replace(run, heldout={"towns": 70, "hills": 30, "lakes": 20}) for run in simulate()]
    for run in runs:
        run.parts = {"value": (run.loss / 2, run.tokens // 3)}
    content = summarise(runs, floor=FLOOR)
    chosen = [run for run in runs if run.arm == "oracle"]
    for name, places in (
        ("towns", range(70)),
        ("hills", range(70, 100)),
        ("lakes", range(100, 120)),
    ):
        expected = [
            sum(run.loss[place] for place in places) / sum(run.tokens[place] for place in places)
            for run in chosen
        ]
        found = row(content["splits"], name=name)
        assert found["arms"]["oracle"]["loss"] == pytest.approx(np.mean(expected))
        assert tuple(found["arms"]["oracle"]["interval"]) == t_of(expected)
    value = row(content["splits"], name="value")
    per_token = [(run.loss.sum() / 2) / (run.tokens // 3).sum() for run in chosen]
    assert value["arms"]["oracle"]["loss"] == pytest.approx(np.mean(per_token))
    assert value["floor"] == {"all": 1.5, "told": 2.1, "none": 3.5}


def test_curves_are_means_over_seeds_with_their_ends() -> None:
    runs = simulate({"sbp": 2.0}, seeds=[1, 2])
    runs[0].curve = [(5, 4.0), (20, float("nan")), (25, 3.0), (50, 2.0)]
    runs[1].curve = [(5, 4.5), (20, 3.5), (50, 2.5)]
    content = summarise(runs)
    (curve,) = content["curves"]["heldout"]
    assert curve["points"] == [[TOKENS / 10, 4.25, 4.0, 4.5], [TOKENS, 2.25, 2.0, 2.5]]
    (training,) = content["curves"]["training"]
    assert len(training["points"]) == STEPS
    assert content["lowest"] == {"sbp": {"tokens": TOKENS, "loss": 2.25}}


def test_long_training_curves_are_means_over_blocks() -> None:
    (run,) = simulate({"sbp": 2.0}, seeds=[1])
    run.training_curve = [(step, float(step)) for step in range(1, 1001)]
    run.iterations = 1000
    (curve,) = summarise([run])["curves"]["training"]
    assert (curve["block"], len(curve["points"])) == (5, 200)
    assert curve["points"][1] == [TOKENS / 100, 8.0, 8.0, 8.0]


def test_a_rise_of_the_held_out_loss_is_said(content: dict[str, Any]) -> None:
    said = [limit for limit in content["limits"] if limit.startswith("Held-out loss of ")]
    assert len(said) == 1
    assert "of repetition was lowest after" in said[0]


def test_knobs_have_the_recipes_own_value_from_the_arms() -> None:
    varied: list[dict[str, Any]] = [
        {"knob": "share", "value": value, "seed": seed, "loss": 2.0 + value + seed / 10}
        for value in (0.6, 0.1)
        for seed in (1, 2)
    ]
    varied += [
        {"knob": "size", "value": 5, "seed": 1, "loss": 1.9, "oracle": 1.8, "truth": {"true": 0.5}}
    ]
    content = summarise(RUNS, varied=varied, recipe_values={"share": "0.375", "size": 3})
    share, size = content["sensitivity"]
    assert [point["value"] for point in share["points"]] == [0.1, "0.375", 0.6]
    assert [point["seeds"] for point in share["points"]] == [2, 2, 2]  # seed 3 was not varied
    assert share["points"][0]["loss"] == pytest.approx(2.25)
    assert (share["points"][0]["low"], share["points"][0]["high"]) == pytest.approx((2.2, 2.3))
    own, oracle = losses(RUNS, "sbp"), losses(RUNS, "oracle")
    assert share["points"][1]["loss"] == pytest.approx((own[1] + own[2]) / 2)
    assert share["points"][1]["oracle"] is None  # the same corpus: a line of the plot says it
    assert share["lines"]["oracle"] == pytest.approx((oracle[1] + oracle[2]) / 2)
    assert size["points"][0]["oracle"] == pytest.approx(oracle[1])
    assert size["points"][1]["oracle"] == 1.8
    assert size["lines"] == {}
    assert size["points"][1]["truth"] == {"true": 0.5}


def test_truth_and_sweep_are_averaged_over_seeds() -> None:
    truth = [
        {"measure": "true", "of": "sbp", "value": value, "interval": [0, 1]} for value in (0.2, 0.4)
    ]
    truth += [{"measure": "true", "of": "oracle", "value": 1.0, "interval": [0.9, 1.0]}]
    sweep = [
        {"settings": {"weight-decay": decay}, "seed": seed, "loss": loss}
        for decay, seed, loss in [(0.1, 1, 3.0), (0.5, 1, 2.0), (0.5, 2, 2.5), (9, 1, np.nan)]
    ]
    content = summarise(RUNS, truth=truth, sweep=sweep)
    (measure,) = content["truth"]
    assert measure["of"]["sbp"] == {"value": pytest.approx(0.3), "interval": None}
    assert measure["of"]["oracle"] == {"value": 1.0, "interval": [0.9, 1.0]}
    assert [row["settings"]["weight-decay"] for row in content["sweep"]] == [0.5, 0.1, 9]
    assert [row["loss"] for row in content["sweep"]] == [2.25, 3.0, None]
    assert any("the best of 3 settings" in limit for limit in content["limits"])


def test_tokens_and_epochs_are_those_of_the_ledger(content: dict[str, Any]) -> None:
    arms = {arm["arm"]: arm for arm in content["arms"]}
    assert arms["repetition"]["read"] == {
        "real": {"tokens": TOKENS // 20, "epochs": pytest.approx(20)},
        "synthetic": None,
    }
    assert arms["sbp"]["read"]["real"]["epochs"] == pytest.approx(12.5)
    assert arms["sbp"]["read"]["synthetic"] == {"tokens": 825_000, "epochs": 1}
    assert arms["sbp"]["flop"] == pytest.approx(sum(arms["sbp"]["stages"].values()))
    assert any("1.90 times the operations" in limit for limit in content["limits"])


def test_synthetic_documents_of_one_seed_alone_are_said() -> None:
    runs = simulate({"sbp": 2.0, "random-pairs": 2.3})
    for run in runs:
        if run.arm == "sbp":
            run.sources = [source("synthetic", 10, 10) | {"prefix": f"synthetic/{run.seed}"}]
    limits = " ".join(summarise(runs)["limits"])
    assert "All seeds of arm random-pairs read the same synthetic documents" in limits
    assert "All seeds of arm sbp " not in limits


def test_what_makes_arms_incomparable_is_an_alarm() -> None:
    runs = simulate()
    assert summarise(runs)["warnings"] == []
    runs[-1].training_tokens = 10
    (sbp,) = [run for run in runs if (run.arm, run.seed) == ("sbp", 2)]
    sbp.sources = [source("synthetic", 1000, 1500)]
    unequal, repeated = sorted(summarise(runs)["warnings"])
    assert "oracle was trained on 1,466,670 tokens and repetition on 2,200,000" in unequal
    assert "sbp, seed 2: the synthetic documents of corpus/synthetic were read 1.50" in repeated


# What was not run, and what cannot be


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_that_was_not_run_is_named(arm: str) -> None:
    content = summarise(simulate({name: loss for name, loss in LOSSES.items() if name != arm}))
    assert list(content["missing"]) == [arm]
    assert [limit for limit in content["limits"] if limit.startswith(f"Arm {arm} was not run")]


def test_the_content_is_what_json_can_hold() -> None:
    settings = {"weight-decay": np.float32(0.5), "path": ARMS.__class__, "seeds": (1, 2)}
    runs = simulate({"sbp": 2.0}, settings=settings)
    content = summarise(runs, truth=[{"measure": "precision", "of": "sbp", "value": np.nan}])
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["truth"][0]["of"]["sbp"]["value"] is None


def test_runs_that_do_not_belong_together_are_refused() -> None:
    runs = simulate({"repetition": 2.5, "sbp": 2.0})
    with pytest.raises(InputError, match="no run to compare"):
        summarise([])
    with pytest.raises(InputError, match="sbp: two runs have seed 3"):
        summarise([*runs, runs[-1]])
    other = replace(runs[-1], tokens=runs[-1].tokens[:-1], loss=runs[-1].loss[:-1])
    with pytest.raises(InputError, match="sbp, seed 3: was evaluated on other documents than rep"):
        summarise([*runs[:-1], other])
    diverged = replace(runs[-1], loss=runs[-1].loss * np.nan)
    with pytest.raises(InputError, match="sbp, seed 3: its held-out loss is nan"):
        summarise([*runs[:-1], diverged])
