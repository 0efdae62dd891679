"""The stages of a comparison as jobs: of the recipe, or of the recipe with one flag changed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sbp.comparison.job import Job
from megatron_sbp.comparison.options import CompareOptions
from megatron_sbp.errors import InputError
from megatron_sbp.loop import synthetic_share
from megatron_sbp.manifest import Manifest
from megatron_sbp.recipes import Flags, Recipe
from megatron_sbp.recipes.run import Arm, Run, RunOptions

SHARE = "sbp-synthetic-share"
# Stage -> the stages whose output it reads.
_READS: dict[str, tuple[str, ...]] = {
    "corpus": (),
    "embed": ("corpus",),
    "mine": ("embed",),
    "repetition": ("corpus",),
    "oracle": ("corpus",),
    "tune": ("mine", "repetition"),
    "synthesize": ("tune",),
    "filter": ("synthesize",),
    "sbp": ("filter",),
}
# Section of the recipe -> the stages that its flags are for.
_STAGES_OF: dict[str, tuple[str, ...]] = {
    "preprocess": ("corpus",),
    "concepts": ("corpus",),
    "embed": ("embed",),
    "mine": ("mine",),
    "train": ("repetition", "oracle", "tune", "sbp"),
    "pretrain": ("repetition", "oracle", "sbp"),
    "tune": ("tune",),
    "synthesize": ("synthesize",),
    "filter": ("filter",),
}


def changed_by(flag: str) -> frozenset[str]:
    """The stages whose output depends on a flag.

    Args:
        flag: As ``--set`` takes it.

    Raises:
        InputError: If it is for no stage that the arm sbp depends on.
    """
    section = flag.rpartition(".")[0]
    first = ("sbp",) if flag == SHARE else _STAGES_OF.get(section)
    if first is None:
        raise InputError(
            f"sensitivity {flag}: give {SHARE}, or a flag with its section before it, one of "
            f"{', '.join(_STAGES_OF)}"
        )
    found = set(first)
    for stage, reads in _READS.items():
        if found & set(reads):
            found.add(stage)
    return frozenset(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Prefixes of a corpus, and the jobs that write them."""

    real: str
    oracle: str
    heldout: str
    """What no run is trained on and every arm is scored on."""
    jobs: tuple[str, ...]

    @property
    def tokenizer(self) -> str:
        """Its directory."""
        return str(Path(self.real).parent / "tokenizer")


class Branch:
    """The jobs of a recipe, each once however often it is asked for.

    Args:
        jobs: Where they go; a job that is there is not added again.
        options: What is compared.
        recipe: The recipe.
        settings: What is set besides ``--set``.
        directory: Below ``--output``, of the stages that ``settings`` change.
        changed: These stages.
        main: The recipe without ``settings``. If the corpus is the same, synthesizers are measured
            on its held-out pairs, so that their losses can be compared.
    """

    def __init__(
        self,
        jobs: dict[str, Job],
        options: CompareOptions,
        recipe: Recipe,
        settings: Sequence[str] = (),
        directory: str = "",
        changed: frozenset[str] = frozenset(),
        main: "Branch | None" = None,
    ):
        self._jobs, self._options, self._recipe = jobs, options, recipe
        self._settings, self._directory, self.changed = list(settings), directory, changed
        self._root = Path(options.output)
        self._measured_on = self if main is None or "corpus" in changed else main

    def run(self, seed: int | None = None, arm: Arm = "sbp", settings: Sequence[str] = ()) -> Run:
        """The recipe with the settings made."""
        seeds = [] if seed is None else [f"train.seed={seed}", f"synthesize.seed={seed}"]
        options = RunOptions(arm=arm, **self.choices([*seeds, *settings]))
        return Run(self._options.recipe, self._recipe, options)

    def choices(self, settings: Sequence[str] = ()) -> dict[str, Any]:
        """Fields of ``RunOptions`` for the settings made."""
        chosen = [*self._options.set, *self._settings, *settings]
        # It is a flag of pretrain alone, of which synthesize takes what it needs.
        shares = [setting for setting in chosen if setting.startswith(f"{SHARE}=")]
        share = float(shares[-1].partition("=")[2]) if shares else None
        others = [setting for setting in chosen if setting not in shares]
        return {"gpus_per_node": 1, "share": share, "set": others}

    def name(self, stage: str, name: str) -> str:
        """Where a stage's output lies, below ``--output``."""
        return f"{self._directory}/{name}" if stage in self.changed else name

    def path(self, name: str) -> str:
        """The output of a job."""
        return str(self._root / name)

    def _add(
        self,
        name: str,
        script: str | None,
        paths: Sequence[str],
        flags: Flags,
        needs: Sequence[str],
        later: Callable[[], Flags | None] | None = None,
        ranks: int = 1,
    ) -> str:
        self._jobs.setdefault(
            name,
            Job(
                name=name,
                script=script,
                paths=tuple(paths),
                flags=flags,
                needs=tuple(needs),
                later=later,
                ranks=ranks,
            ),
        )
        return name

    def corpus(self) -> Corpus:
        """The documents: made with known truth, or the user's."""
        if "concepts" not in self._recipe:
            return self._documents()
        name = self.name("corpus", "corpus")
        flags = self.run().flags("concepts")
        job = self._add(name, "make_concepts", ["--output", self.path(name)], flags, [])
        real, heldout, oracle = (
            self.path(f"{name}/{prefix}") for prefix in ("real", "real-heldout", "oracle")
        )
        return Corpus(real=real, oracle=oracle, heldout=heldout, jobs=(job,))

    def _documents(self) -> Corpus:
        """All documents for the oracle; of these the first ones are the real corpus.

        Whether a document is held out depends on its number and the seed alone, so no document
        that is held out of the one is trained on in the other.
        """
        flags = self.run().flags("preprocess")
        whole, part = (self.name("corpus", f"corpus/{kind}") for kind in ("oracle", "real"))
        oracle, real = (self.path(f"{whole}/oracle"), self.path(f"{part}/real"))
        given = ["--input", *self._options.input, "--output-prefix"]
        self._add(whole, "preprocess_documents", [*given, oracle], flags, [])
        tokenizer = {"train-tokenizer": None, "tokenizer": self.path(f"{whole}/tokenizer")}
        self._add(
            part,
            "preprocess_documents",
            [*given, real],
            flags | tokenizer,
            [whole],
            lambda: {"max-documents": self._documents_of(whole) // self._options.oracle_factor},
        )
        heldout = f"{oracle}-heldout"
        return Corpus(real=real, oracle=oracle, heldout=heldout, jobs=(whole, part))

    def _documents_of(self, corpus: str) -> int:
        """All documents of the oracle's corpus, held-out ones included."""
        counts = Manifest.read(self.path(corpus)).counts
        documents = int(counts["documents"] + counts["heldout_documents"])
        given, factor = " ".join(self._options.input), self._options.oracle_factor
        if not counts["heldout_documents"]:
            raise InputError(
                f"{given}: none of the {documents:,} documents was held out, so there is nothing "
                "to compare on; give more, or a larger --heldout-share in the recipe"
            )
        if documents < factor:
            raise InputError(
                f"{given}: {documents:,} documents are no {factor} times as many as the real "
                "corpus would have; give more, or a smaller --oracle-factor"
            )
        return documents

    def pairs(self, *, heldout: bool = False, control: bool = False) -> str:
        """Pairs of the real documents, or of held-out ones; or random pairs of real ones."""
        corpus = self.corpus()
        documents = corpus.heldout if heldout else corpus.real
        which = "-heldout" if heldout else ""
        embeddings = self.name("embed", f"embeddings{which}")
        given = ["--corpus", documents]
        self._add(
            embeddings,
            "embed_documents",
            [*given, "--output", self.path(embeddings)],
            self.run().flags("embed"),
            corpus.jobs,
        )
        given += ["--embeddings", self.path(embeddings)]
        needs = [*corpus.jobs, embeddings]
        name = self.name("mine", "random-pairs" if control else f"pairs{which}")
        if control:
            mined = self.pairs()
            given += ["--control", "random", "--pairs", self.path(mined)]
            needs.append(mined)
        return self._add(
            name,
            "mine_pairs",
            [*given, "--output", self.path(name)],
            self.run().flags("mine"),
            needs,
            ranks=min(2, self._options.cores),
        )

    def train(
        self,
        stage: str,
        name: str,
        flags: Flags,
        given: Sequence[str],
        needs: Sequence[str],
        later: Callable[[], Flags | None] | None = None,
    ) -> str:
        """A training run.

        Args:
            stage: What decides where it lies.
            name: Its output.
            flags: All that are no paths.
            given: Its data paths and what else is its own.
            needs: The jobs that write them.
            later: See ``Job``.
        """
        name = self.name(stage, name)
        box = self.path(name)
        line = [*given, "--load", box, "--save", box]
        line += ["--tokenizer-model", self.corpus().tokenizer]
        # Its own, as runs side by side would write the same files at the same time.
        line += ["--data-cache-path", self.path(f"index-cache/{name}")]
        return self._add(name, None, line, flags, needs, later)

    def on_real(
        self,
        arm: str,
        seed: int,
        *,
        name: str = "",
        settings: Sequence[str] = (),
        later: Callable[[], Flags | None] | None = None,
        needs: Sequence[str] = (),
    ) -> str:
        """A run on real documents: those that are repeated, or the oracle's."""
        corpus = self.corpus()
        stage: Arm = "oracle" if arm == "oracle" else "repetition"
        documents = corpus.oracle if arm == "oracle" else corpus.real
        return self.train(
            stage,
            name or f"runs/{arm}/seed-{seed}",
            self.run(seed, stage, settings).flags("pretrain"),
            ["--train-data-path", documents, "--valid-data-path", corpus.heldout],
            [*corpus.jobs, *needs],
            later,
        )

    def synthetic(self, seed: int, *, control: bool = False) -> str:
        """Synthetic documents that passed the filters, by a synthesizer of this seed."""
        corpus, run = self.corpus(), self.run(seed)
        kind = "random-pairs" if control else "sbp"
        start = self.on_real("repetition", seed)
        mined, heldout = self.pairs(control=control), self._measured_on.pairs(heldout=True)
        tuned = self.train(
            "tune",
            f"runs/{'random-' if control else ''}synthesizer/seed-{seed}",
            run.flags("tune"),
            ["--train-data-path", corpus.real, "--valid-data-path", corpus.heldout,
             "--sbp-objective", "synthesis", "--sbp-pairs", self.path(mined), self.path(heldout),
             "--pretrained-checkpoint", self.path(start)],
            [*corpus.jobs, mined, heldout, start],
        )  # fmt: skip
        drawn = self.name("synthesize", f"synthetic/{kind}/seed-{seed}")
        kept = self.name("filter", f"filtered/{kind}/seed-{seed}")
        given = ["--corpus", corpus.real, "--output-prefix"]
        self._add(
            drawn,
            "synthesize",
            ["--load", self.path(tuned), *given, self.prefix(drawn)],
            run.flags("synthesize"),
            [*corpus.jobs, tuned],
        )
        return self._add(
            kept,
            "filter_synthetic",
            ["--synthetic", self.prefix(drawn), *given, self.prefix(kept)],
            run.flags("filter"),
            [*corpus.jobs, drawn],
        )

    def prefix(self, corpus: str) -> str:
        """The prefix of a synthetic corpus."""
        return self.path(f"{corpus}/synthetic")

    def on_both(
        self,
        arm: str,
        seed: int,
        *,
        filtered: str | None = None,
        settled: Callable[[], Flags | None] = dict,
        needs: Sequence[str] = (),
    ) -> str:
        """A run on real and synthetic documents, by default those of ``synthetic``."""
        corpus, run = self.corpus(), self.run(seed)
        filtered = filtered or self.synthetic(seed, control=arm == "random-pairs")
        prefix = self.prefix(filtered)

        def later() -> dict[str, Any] | None:
            flags = settled()
            return flags if flags is None else flags | {SHARE: synthetic_share(run, Path(prefix))}

        return self.train(
            "sbp",
            f"runs/{arm}/seed-{seed}",
            {flag: value for flag, value in run.flags("pretrain").items() if flag != SHARE},
            ["--train-data-path", corpus.real, "--valid-data-path", corpus.heldout,
             "--sbp-synthetic-data", prefix],
            [*corpus.jobs, filtered, *needs],
            later,
        )  # fmt: skip

    def evaluation(
        self,
        trained: str,
        later: Callable[[], Flags | None] | None = None,
        needs: Sequence[str] = (),
    ) -> str:
        """What a run loses on the held-out documents."""
        corpus = self.corpus()
        name = evaluation_of(trained)
        line = ["--load", self.path(trained), "--corpus", corpus.heldout]
        line += ["--tokenizer", corpus.tokenizer, "--output", self.path(name)]
        flags = self.run().flags("evaluate")
        if "concepts" in self._recipe:  # the kinds of tokens are told apart
            flags |= {"token-losses": True}
        return self._add(name, "evaluate", line, flags, [*corpus.jobs, trained, *needs], later)


def evaluation_of(trained: str) -> str:
    """Name of the evaluation of a training run."""
    head, _, tail = trained.rpartition("runs/")
    return f"{head}evaluations/{tail}"
