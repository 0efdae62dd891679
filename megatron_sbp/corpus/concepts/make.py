"""Write a corpus whose concepts are known: training, held-out and oracle documents."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp import cli
from megatron_sbp.corpus.concepts.difficulty import Difficulty
from megatron_sbp.corpus.concepts.floor import Likelihood, likelihood
from megatron_sbp.corpus.concepts.truth import concept_path, concepts_of, read_documents, told
from megatron_sbp.corpus.concepts.vocabulary import save_tokenizer
from megatron_sbp.corpus.concepts.world import World
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter, optimal_dtype
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.npy import save_npy

REAL, HELDOUT, ORACLE = "real", "real-heldout", "oracle"
"""Names of the prefixes."""

_BATCH = 1 << 15


@dataclass(kw_only=True, slots=True)
class MakeOptions(Difficulty):
    """Options of tools/make_concepts.py."""

    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    documents_per_concept: int = field(default=5, metadata={"metavar": "DOCUMENTS"})
    """Training documents about each concept."""
    heldout_per_concept: int = field(default=2, metadata={"metavar": "DOCUMENTS"})
    """Held-out documents about each concept."""
    oracle_factor: int = field(default=20, metadata={"metavar": "TIMES"})
    """Documents of the oracle for every training document, all different; 0: none."""

    def __post_init__(self) -> None:
        # With slots the class is made anew, and a bare super() would still mean the first one.
        Difficulty.__post_init__(self)
        for name, least in (
            ("documents_per_concept", 1),
            ("heldout_per_concept", 1),
            ("oracle_factor", 0),
        ):
            if getattr(self, name) < least:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {getattr(self, name)}: must be at least {least}")
        wanted = sum(each for _, each in self.splits().values())
        if wanted > self.documents:
            raise InputError(
                f"{wanted:,} documents per concept, the oracle's included: only "
                f"{self.documents:,} can be written; raise --told, --wordings or --styles"
            )

    def difficulty(self) -> Difficulty:
        """The options that decide concepts and documents."""
        return Difficulty(**{entry.name: getattr(self, entry.name) for entry in fields(Difficulty)})

    def splits(self) -> dict[str, tuple[int, int]]:
        """Per prefix the first of its documents about a concept, and how many there are."""
        heldout, real = self.heldout_per_concept, self.documents_per_concept
        splits = {
            HELDOUT: (0, heldout),
            REAL: (heldout, real),
            ORACLE: (heldout + real, real * self.oracle_factor),
        }
        return {name: split for name, split in splits.items() if split[1]}


def make_concepts(options: MakeOptions) -> Manifest:
    """Write the corpus box of ``options.output``, or recognise it, and print its summary.

    The oracle is a stream, which takes 8 bytes of memory per document; what training and held-out
    documents say is held in memory for the floor, some hundred bytes per document.

    Raises:
        InputError: If the output is another one's.
    """
    difficulty = options.difficulty()
    deciding = {
        "concepts": asdict(difficulty),
        "documents_per_concept": options.documents_per_concept,
        "heldout_per_concept": options.heldout_per_concept,
        "oracle_factor": options.oracle_factor,
    }
    with Stage.open(options.output, "preprocess", options=deciding, inputs=[]) as stage:
        if not stage.complete:
            stage.finish(counts=_write(options, World.draw(difficulty), stage.workspace))
        _summarise(Path(options.output), stage.manifest)
        return stage.manifest


def _write(options: MakeOptions, world: World, workspace: Path) -> dict[str, Any]:
    """Write everything into the workspace; returns the counts of the manifest."""
    save_tokenizer(world.grammar.vocabulary, workspace / "tokenizer")
    world.save(workspace)
    characters = {
        name: _write_split(world, workspace / name, *split)
        for name, split in options.splits().items()
    }
    counts = _counts(world, workspace)
    counts["characters"] = characters[REAL] + characters[HELDOUT]
    if ORACLE in characters:
        oracle = Corpus([workspace / ORACLE])
        counts |= {
            "oracle_documents": len(oracle),
            "oracle_tokens": oracle.num_tokens,
            "oracle_prefix": ORACLE,
        }
    readers = floor(world, workspace)
    return counts | {
        "floor": {name: reader.summary() for name, reader in readers.items()},
        # Of readers that are given the first token of every document.
        "floor_after_first": {name: reader.summary(given=1) for name, reader in readers.items()},
    }


def _write_split(world: World, prefix: Path, first: int, each: int) -> int:
    """Write a prefix and its column of concepts; returns its characters.

    Args:
        world: The concepts.
        prefix: What to write.
        first: Place of its first document in the order of every concept's.
        each: Documents of every concept.
    """
    count = world.difficulty.concepts * each
    column = np.empty(count, np.int32)
    grammar, characters = world.grammar, 0
    with (
        IndexedWriter(prefix, optimal_dtype(len(grammar.vocabulary))) as writer,
        cli.Progress(f"writing {prefix.name}", count, "documents") as progress,
    ):
        for start in range(0, count, _BATCH):
            numbers = np.arange(start, min(start + _BATCH, count))
            concepts, places = world.mixture(numbers, each)
            rows = grammar.render(world.write(concepts, first + places))
            writer.extend(rows.tokens, rows.lengths)
            column[numbers] = concepts
            characters += int(grammar.characters[rows.tokens].sum())
            progress.update(len(numbers))
    save_npy(concept_path(prefix), column)
    return characters


def _counts(world: World, directory: Path) -> dict[str, Any]:
    """The counts that every corpus has."""
    real, heldout = Corpus([directory / REAL]), Corpus([directory / HELDOUT])
    lengths = np.concatenate([real.lengths, heldout.lengths])
    return {
        "documents": len(real),
        "tokens": real.num_tokens,
        "heldout_documents": len(heldout),
        "heldout_tokens": heldout.num_tokens,
        "skipped": {},
        "vocabulary": len(world.grammar.vocabulary),
        "median_document": int(np.median(lengths)),
        "longest_document": int(lengths.max()),
        "prefix": REAL,
        "heldout_prefix": HELDOUT,
    }


def floor(world: World, directory: Path) -> dict[str, Likelihood]:
    """The held-out documents to readers that know all, the told, or none of the values.

    Args:
        world: The concepts.
        directory: With the prefixes.
    """
    real = Corpus([directory / REAL])
    heldout = read_documents(world, Corpus([directory / HELDOUT]))
    every = np.ones(world.values.shape, dtype=bool)
    readers = {
        "all": every,
        "told": told(world, concepts_of(real), read_documents(world, real)),
        "none": ~every,
    }
    return {name: likelihood(world, heldout, known) for name, known in readers.items()}


def _summarise(directory: Path, manifest: Manifest) -> None:
    """Print what the corpus holds."""
    counts = manifest.counts
    rows: dict[str, object] = {
        "prefix": directory / counts["prefix"],
        "concepts": manifest.options["concepts"]["concepts"],
        "documents": counts["documents"],
        "tokens": counts["tokens"],
        "held-out documents": counts["heldout_documents"],
        "held-out tokens": counts["heldout_tokens"],
        "oracle's documents": counts.get("oracle_documents", 0),
        "oracle's tokens": counts.get("oracle_tokens", 0),
        "tokens per document": f"median {counts['median_document']:,}, "
        f"longest {counts['longest_document']:,}",
        "vocabulary": counts["vocabulary"],
    }
    for reader in ("all", "told", "none"):
        nats = counts["floor"][reader]
        rows[f"floor, {reader} values known"] = (
            f"{nats['per_token']:.4f} nats per token, {nats['per_document']:.3f} per document, "
            f"{nats['per_value_token']:.3f} per value"
        )
    rows["time"] = cli.clock(manifest.seconds)
    cli.summary("concepts", rows)
