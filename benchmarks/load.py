"""A corpus of very many tiny documents through preprocessing, embedding and mining.

    python -m benchmarks.load --output DIR

Prints what each command took and the most memory that it held, with all of its processes; DIR gets
the curves and load.svg, and --publish copies the figure to docs/. A document has four of the six
words of its family, of five documents, and three common words, so that mining has pairs to find. A
hundred million pairs take gigabytes of disk, so few neighbors are kept, and only near ones: many
documents of so few words are alike by chance. An interrupted run continues.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.commands import mpiexec, tool
from benchmarks.memory import Curve, draw, watch
from megatron_sbp import cli
from megatron_sbp.corpus.words import mixed
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import atomic_write
from megatron_sbp.mining.layout import parse_bytes

_FIGURE = Path(__file__).parents[1] / "docs" / "load.svg"
_PER_FILE = 1_000_000
_FAMILY, _OWN, _TOLD, _COMMON = 5, 6, 4, 3
_WORDS, _FREQUENT = 60_000, 20_000


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the load."""

    output: str = field(metadata={"metavar": "DIR"})
    """Where documents, boxes and curves go."""
    documents: int = 50_000_000
    """How many."""
    dimensions: int = 64
    """Of their embeddings."""
    memory: str = "8G"
    """What all processes of a command together may hold."""
    ranks: int = 0
    """Of mining; 0: one per core."""
    seed: int = 0
    """Of the documents."""
    publish: bool = False
    """Also replace docs/load.svg."""

    def __post_init__(self) -> None:
        parse_bytes(self.memory, "--memory")
        if self.documents < 1000:
            raise InputError(f"--documents {self.documents}: must be at least 1000")


def write_documents(directory: Path, options: Options) -> None:
    """Write JSON Lines files of at most a million documents each."""
    words = _words()
    for number, first in enumerate(range(0, options.documents, _PER_FILE)):
        path = directory / f"{number:05d}.jsonl"
        if not path.exists():
            ids = np.arange(first, min(first + _PER_FILE, options.documents))
            told = words[_told(ids, options)]
            with atomic_write(path) as temporary, open(temporary, "w") as file:
                for row in told.tolist():
                    file.write('{"text": "' + " ".join(row) + '"}\n')


def _words() -> np.ndarray:
    """Words of three syllables, str [words]."""
    syllables = np.array([one + other for one in "bdfgklmnprstvz" for other in "aeiou"])
    places = np.random.default_rng(0).choice(len(syllables) ** 3, _WORDS, replace=False)
    first, second, third = (
        syllables[places // len(syllables) ** power % len(syllables)] for power in range(3)
    )
    return np.char.add(np.char.add(first, second), third)


def _told(ids: np.ndarray, options: Options) -> np.ndarray:
    """The words of documents, int64 [documents, words of one]."""
    # The documents of a family are far from one another.
    family = ids[:, None] % -(-options.documents // _FAMILY)
    own = (mixed((family * _OWN + np.arange(_OWN)).astype(np.uint64)) % _WORDS).astype(np.int64)
    random = np.random.default_rng([options.seed, int(ids[0])])
    common = random.integers(_FREQUENT, size=(len(ids), _COMMON))
    return np.concatenate([random.permuted(own, axis=1)[:, :_TOLD], common], axis=1)


def commands(options: Options) -> dict[str, list[str]]:
    """The command of every stage."""
    root = Path(options.output)
    ranks = options.ranks or len(os.sched_getaffinity(0))
    corpus, embeddings = f"{root}/corpus/tiny", f"{root}/embeddings"
    # The rest is for libraries, centroids and candidates.
    memory = parse_bytes(options.memory, "--memory") // 2 // ranks
    return {
        "preprocess": [*tool("preprocess_documents"), "--input", f"{root}/documents",
                       "--output-prefix", corpus, "--train-tokenizer", "8192"],
        "embed": [*tool("embed_documents"), "--corpus", corpus, "--encoder", "lexical",
                  "--dimensions", str(options.dimensions), "--output", embeddings],
        "mine": [*mpiexec(ranks), *tool("mine_pairs"), "--embeddings", embeddings,
                 "--search", "clusters", "--min-similarity", "0.9", "--neighbors", "4",
                 "--memory", str(memory), "--output", f"{root}/pairs"],
    }  # fmt: skip


def run(options: Options) -> list[Curve]:
    """Do what is not done yet."""
    directory = Path(options.output, "documents")
    directory.mkdir(parents=True, exist_ok=True)
    write_documents(directory, options)
    curves = []
    for name, command in commands(options).items():
        path = Path(options.output, f"{name}.json")
        if not path.exists():
            curve = watch(name, command)
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(asdict(curve)))
        curves.append(Curve(**json.loads(path.read_text())))
    return curves


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    curves, path = run(options), Path(options.output, "load.svg")
    cli.summary(
        f"{options.documents:,} documents",
        {
            curve.name: f"{cli.clock(curve.seconds)}, {options.documents / curve.seconds:,.0f} "
            f"documents/s, at most {curve.most / (1 << 30):.2f} GiB"
            for curve in curves
        },
    )
    draw(curves, path)
    if options.publish:
        shutil.copyfile(path, _FIGURE)
    for curve in curves:
        if curve.most > parse_bytes(options.memory, "--memory"):
            raise InputError(f"{curve.name} held more than --memory {options.memory}; see above")


if __name__ == "__main__":
    cli.run(main)
