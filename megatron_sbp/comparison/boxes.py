"""The outputs of a comparison's jobs, read for its report."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.comparison.arm_run import ArmRun
from megatron_sbp.comparison.branch import SHARE, Branch, evaluation_of
from megatron_sbp.comparison.experiment import Experiment
from megatron_sbp.corpus.concepts.grammar import NAME, STRUCTURE, VALUE
from megatron_sbp.corpus.concepts.world import World
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.evaluation.concepts import check_pairs, check_synthetic, figures
from megatron_sbp.manifest import Manifest
from megatron_sbp.metrics import read_metrics
from megatron_sbp.npy import open_npy

_KINDS = {"structure": STRUCTURE, "name": NAME, "value": VALUE}
_SHOWN = ("weight-decay", "hidden-dropout", "attention-dropout", SHARE, "train-iters")
_HELDOUT = "lm loss validation"


class Boxes:
    """What the jobs of an experiment have left.

    Args:
        experiment: All of its jobs are done.
    """

    def __init__(self, experiment: Experiment):
        self._experiment = experiment
        self._root = experiment.root
        corpus = experiment.main.corpus()
        self._heldout = Path(corpus.heldout)
        self._concepts: str | None = None
        """Directory of the corpus whose truth is known."""
        if "concepts" in experiment.recipe:
            self._concepts = str(self._heldout.parent)

    def runs(self) -> Iterator[ArmRun]:
        """Every arm with every seed."""
        kinds = self._kinds()
        for arm, seed, name in self._experiment.runs():
            counts = Manifest.read(self._root / name).counts
            stages = self._experiment.cost.of(arm)
            curves = read_metrics(self._root / name)
            heldout = next((metric for metric in curves if metric.startswith(_HELDOUT)), None)
            loss, tokens = (self._column(name, column) for column in ("loss", "tokens"))
            yield ArmRun(
                arm=arm,
                seed=seed,
                loss=loss,
                tokens=tokens,
                training_tokens=counts["tokens"],
                flop=sum(stages.values()),
                iterations=counts["iterations"],
                curve=curves[heldout] if heldout else [],
                training_curve=curves.get("lm loss", []),
                settings=self._settings(name),
                sources=counts["ledger"],
                stages=stages,
                parts=self._parts(name, *kinds) if kinds is not None else {},
            )

    def _column(self, run: str, column: str) -> np.ndarray:
        return open_npy(self._root / evaluation_of(run) / f"{self._heldout.name}.{column}.npy")

    def _settings(self, run: str) -> dict[str, str]:
        """What a run was called with of what may distinguish arms."""
        line = Manifest.read(self._root / run).options["arguments"]
        return {flag: line[line.index(f"--{flag}") + 1] for flag in _SHOWN if f"--{flag}" in line}

    def _kinds(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Document and kind of every held-out token of a concepts corpus, int64 [tokens] each."""
        if self._concepts is None:
            return None
        corpus = Corpus([self._heldout])
        tokens = [corpus.tokens(document) for document in range(len(corpus))]
        kinds = World.open(self._concepts).grammar.kinds[np.concatenate(tokens)]
        return np.repeat(np.arange(len(corpus)), [*map(len, tokens)]), kinds

    def _parts(
        self, run: str, document: np.ndarray, kinds: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """A run's loss by kind of token: per document nats and tokens."""
        losses, documents = self._column(run, "token_losses"), int(document[-1]) + 1
        parts = {}
        for name, kind in _KINDS.items():
            these = (kinds == kind) & np.isfinite(losses)  # nan: given, not predicted
            parts[name] = (
                np.bincount(document[these], losses[these], documents),
                np.bincount(document[these], minlength=documents),
            )
        return parts

    def sweep(self) -> Iterator[dict[str, Any]]:
        """What repetition-tuned was chosen from."""
        options = self._experiment.options
        if not any(arm.endswith("-tuned") for arm in options.arms):
            return
        for tried in self._experiment.sweep:
            yield {
                "settings": tried.flags,
                "seed": options.seeds[0],
                "loss": self._experiment.loss(tried.name),
            }

    def varied(self) -> Iterator[dict[str, Any]]:
        """The runs of the section ``sensitivity``."""
        for varied in self._experiment.varied:
            for seed, runs in varied.runs.items():
                losses = {arm: self._experiment.loss(run) for arm, run in runs.items()}
                row = {"knob": varied.knob, "value": varied.value, "seed": seed}
                truth = self._measures(varied.branch, varied.synthetic[seed])
                yield row | {"loss": losses.pop("sbp"), "truth": truth} | losses

    def _measures(self, branch: Branch, synthetic: str) -> dict[str, float]:
        """Of pairs and synthetic documents of a branch, what is true."""
        if self._concepts is None:
            return {}
        rows = [*self._of_pairs(branch), *self._of_documents(branch, synthetic, "sbp")]
        return {row["measure"]: row["value"] for row in rows}

    def floor(self) -> dict[str, Any] | None:
        """The entropy floor of a concepts corpus, of the tokens that the arms predicted."""
        if self._concepts is None:
            return None
        _, _, run = next(iter(self._experiment.runs()))
        alone = Manifest.read(self._root / evaluation_of(run)).counts.get("documents_alone")
        counts = Manifest.read(self._concepts).counts
        floor: dict[str, Any] = counts["floor_after_first" if alone else "floor"]
        return floor

    def truth(self) -> Iterator[dict[str, Any]]:
        """Of the pairs and the first seed's synthetic documents, what is true."""
        if self._concepts is None:
            return
        seed, main = self._experiment.options.seeds[0], self._experiment.main
        synthetic = [arm for arm in ("sbp", "random-pairs") if arm in self._experiment.options.arms]
        if synthetic:
            yield from self._of_pairs(main)
        for arm in synthetic:
            documents = main.synthetic(seed, control=arm == "random-pairs")
            yield from self._of_documents(main, documents, arm)

    def _of_pairs(self, branch: Branch) -> Iterator[dict[str, Any]]:
        """Precision and recall of the mined pairs; all of them are above the lowest threshold."""
        directory = Path(branch.corpus().real).parent
        row = check_pairs(directory, branch.path(branch.pairs()))[0]
        yield {"measure": "pairs that share a concept", "of": "mined pairs", "value": row.precision}
        yield {
            "measure": "pairs that share a concept, found",
            "of": "mined pairs",
            "value": row.recall,
        }

    def _of_documents(self, branch: Branch, synthetic: str, arm: str) -> Iterator[dict[str, Any]]:
        """What synthetic documents say."""
        directory = Path(branch.corpus().real).parent
        filtered = branch.prefix(synthetic)
        chance = 1 / World.open(directory).difficulty.values
        for measure, figure in figures(check_synthetic(directory, [filtered]), chance).items():
            if figure.value is not None:
                row = {"measure": measure, "of": arm, "value": figure.value}
                yield row | {"interval": figure.interval}
