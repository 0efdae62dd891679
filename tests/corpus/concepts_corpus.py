"""A small concepts corpus for several test files."""

from pathlib import Path

from megatron_sbp.corpus.concepts.make import MakeOptions, make_concepts
from megatron_sbp.corpus.documents import Corpus


def small_corpus(output: Path) -> MakeOptions:
    """Write 60 concepts, 180 training, 60 held-out and 720 oracle documents."""
    options = MakeOptions(
        output=str(output),
        concepts=60,
        attributes=10,
        values=32,
        told=5,
        wordings=4,
        styles=4,
        name_tokens=3,
        name_syllables=32,
        documents_per_concept=3,
        heldout_per_concept=1,
        oracle_factor=4,
        seed=9,
    )
    make_concepts(options)
    return options


def corpus_of(options: MakeOptions, name: str) -> Corpus:
    return Corpus([Path(options.output) / name])
