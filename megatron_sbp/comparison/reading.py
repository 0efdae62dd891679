"""What the figures of a comparison say in words, and what limits them."""

from collections.abc import Iterator
from typing import Any

from megatron_sbp.evaluation.pages import nats

_TELLS = {
    "repetition": "whether anything is better than repeating the real documents",
    "repetition-tuned": "whether stronger weight decay or dropout alone gives the same as SBP",
    "equal-compute": "whether repetition catches up when it is given the compute of all of SBP",
    "random-pairs": "whether it matters that the pairs are related",
    "sbp": "what SBP gives",
    "sbp-tuned": "what SBP gives with the regularisation of the tuned repetition",
    "oracle": "what share of the gain of more real documents is recovered",
}
"""Arm -> what is not known without it."""


def percent(share: float) -> str:
    """A share, which may be below 0 or far above 1; the blank before the sign does not break."""
    return f"{100 * share:.0f}\u00a0%".replace("-", "−")


def bounds(row: dict[str, Any]) -> str:
    """The interval of a recovered share, also where it has no bounds."""
    if row["share"] is None:
        return f"the oracle is not better than {row['base']}"
    interval = row["interval"]
    if interval is None:
        return "one seed"
    if interval["kind"] == "any":
        return "without bounds: the oracle's gain is inside the noise"
    low, high = percent(interval["low"]), percent(interval["high"])
    if interval["kind"] == "outside":
        return f"without bounds: up to {low}, or from {high} on"
    return f"{low} to {high}"


def headline(content: dict[str, Any]) -> str:
    """The result in one sentence of figures."""
    losses = {arm["arm"]: arm["loss"] for arm in content["arms"]}
    seeds = len(content["seeds"])
    over = f"{seeds} seeds" if seeds > 1 else "one seed"
    if "sbp" not in losses:
        every = ", ".join(f"{arm} {nats(loss)}" for arm, loss in losses.items())
        return f"Held-out loss in nats per token, {over}: {every}."
    apart = [
        f"{nats(abs(row['difference']))} {'below' if row['difference'] < 0 else 'above'} "
        + row["reference"]
        + (f" ({row['verdict']})" if row["by_seed"] else "")
        for row in content["differences"]
        if row["arm"] == "sbp"
    ]
    shares = [
        f"{percent(row['share'])} ({row['bounds'].split(':')[0]}) of the oracle's gain over "
        + row["base"]
        for row in content["recovered"]
        if row["arm"] == "sbp" and row["share"] is not None
    ]
    said = f"Arm sbp is at {nats(losses['sbp'])} nats per held-out token, {over}"
    said += ": " + ", ".join(apart) if apart else ""
    return said + ("; it recovers " + " and ".join(shares) if shares else "") + "."


def warnings(content: dict[str, Any]) -> list[str]:
    """What makes figures incomparable."""
    arms = {arm["arm"]: arm for arm in content["arms"]}
    found = []
    base = arms.get("repetition")
    for name, arm in arms.items():
        if base and name != "equal-compute" and arm["training_tokens"] != base["training_tokens"]:
            found.append(
                f"{name} was trained on {arm['training_tokens']:,} tokens and repetition on "
                f"{base['training_tokens']:,}; their losses compare only at equal numbers"
            )
        found += [
            f"{name}, seed {ledger['seed']}: the synthetic documents of {row['prefix']} were read "
            f"{row['epochs']:.2f} times; SBP reads them once at most"
            for ledger in arm["ledgers"]
            for row in ledger["sources"]
            if row["kind"] == "synthetic" and row["tokens_seen"] > row["tokens"]
        ]
    return found


def limits(content: dict[str, Any]) -> list[str]:
    """What the result does not say, by what was and what was not run."""
    return [
        *_of_seeds(content),
        *(f"Arm {arm} was not run: it would tell {_TELLS[arm]}." for arm in content["missing"]),
        *_of_tuning(content),
        *_of_compute(content),
        *_of_documents(content),
        *_of_knobs(content),
    ]


def _of_seeds(content: dict[str, Any]) -> Iterator[str]:
    count = len(content["seeds"])
    if count == 1:
        yield (
            "There is one seed: nothing says what another would give, so no verdict is given. "
            "Intervals over documents are about these runs alone."
        )
        return
    yield (
        f"There are {count} seeds. The intervals over seeds take what other seeds would give to "
        f"be normally distributed, which {count} values cannot show."
    )
    for arm in content["arms"]:
        if (have := [run["seed"] for run in arm["runs"]]) != content["seeds"]:
            yield (
                f"Arm {arm['arm']} has seed {', '.join(map(str, have))} only; it is compared over "
                "the seeds that both arms have."
            )
    compared = len(content["differences"])
    if compared > 1:
        yield (
            f"{compared} differences are shown, each with intervals of its own: about one in 20 "
            "intervals of 95 % misses what it stands for."
        )


def _of_tuning(content: dict[str, Any]) -> Iterator[str]:
    if content["sweep"]:
        yield (
            f"repetition-tuned has the best of {len(content['sweep'])} settings by held-out loss: "
            "the choice makes it look a little better than it is. The runs of that sweep are not "
            "in its FLOP."
        )
    for curve in content["curves"]["heldout"]:
        lowest, end = content["lowest"][curve["arm"]], curve["points"][-1]
        if lowest["tokens"] < end[0]:
            yield (
                f"Held-out loss of {curve['arm']} was lowest after {lowest['tokens']:,.0f} of "
                f"{end[0]:,.0f} tokens ({nats(lowest['loss'])}, {nats(end[1])} at the end, as "
                "measured during training); models are compared as they are at the end."
            )


def _of_compute(content: dict[str, Any]) -> Iterator[str]:
    flop = {arm["arm"]: arm["flop"] for arm in content["arms"]}
    if "sbp" in flop and flop.get("repetition"):
        yield (
            "Arms but equal-compute are matched by the tokens that the final model reads. With all "
            f"that comes before it arm sbp takes {flop['sbp'] / flop['repetition']:.2f} times the "
            "operations of repetition."
        )


def _of_documents(content: dict[str, Any]) -> Iterator[str]:
    if len(content["seeds"]) > 1:
        yield (
            "All seeds have the real documents in common, training and held-out: nothing says what "
            "another corpus would give."
        )
    for arm in content["arms"]:
        read = [_synthetic(ledger) for ledger in arm["ledgers"]]
        if len(read) > 1 and read[0] and all(prefixes == read[0] for prefixes in read):
            yield (
                f"All seeds of arm {arm['arm']} read the same synthetic documents: its intervals "
                "do not count what another synthesizer would have written."
            )
    yield (
        "The held-out documents come from the same source as the training documents: their loss "
        "says nothing about other text or tasks."
    )
    if content["floor"]:
        yield (
            "The documents are made by a grammar about concepts that do not exist. What is "
            "recovered here is not what would be recovered on natural text."
        )
    most = max(arm["training_tokens"] for arm in content["arms"])
    yield (
        f"The models read {most:,} tokens at most. The paper's read 200 billion and more, with 3 "
        "and 6 billion parameters."
    )


def _synthetic(ledger: dict[str, Any]) -> list[str]:
    return [row["prefix"] for row in ledger["sources"] if row["kind"] == "synthetic"]


def _of_knobs(content: dict[str, Any]) -> Iterator[str]:
    points = [point for knob in content["sensitivity"] for point in knob["points"]]
    if points:
        fewest = min(point["seeds"] for point in points)
        yield (
            "The knobs of the recipe were turned one at a time, "
            f"with {fewest} seed{'s' if fewest > 1 else ''} a value at least: how they act "
            "together is not known."
        )
    else:
        yield "No knob of the recipe was turned: how the result depends on them is not known."
