"""How well encoders find documents that are known to be related.

Of all pairs of documents, the ones with the highest scores are compared with known links: which
share of the linked pairs is among the best N pairs, with N the number of linked pairs and some
multiples, so that every encoder gives equally many pairs; and the share of documents whose nearest
neighbour is linked to them. Documents and links are JSON Lines: {"id", "text"} and {"a", "b"}.

    python -m benchmarks.pair_quality --documents FILE --links FILE --encoder lexical minilm

The corpus is made and embedded with the commands' own functions. For `megatron:DIR` give the
model's tokenizer with --tokenizer; it is measured with and without the mean vector subtracted.
"""

import gzip
import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_sbp import cli
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.preprocess import Options as PreprocessOptions
from megatron_sbp.corpus.preprocess import preprocess
from megatron_sbp.embedding.embed import embed
from megatron_sbp.embedding.megatron import PREFIX
from megatron_sbp.embedding.options import EmbedOptions
from megatron_sbp.embedding.shards import Embeddings
from megatron_sbp.errors import InputError

MULTIPLES = (1, 2, 4, 8)
_BLOCK = 1024  # documents whose scores with all others are in memory at a time
_SAMPLE = 20_000  # pairs for the median score


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of the benchmark."""

    documents: str = field(metadata={"metavar": "FILE"})
    """Documents, JSON Lines (also .gz) with `id` and `text`."""
    links: str = field(metadata={"metavar": "FILE"})
    """Linked documents, JSON Lines (also .gz) with their ids as `a` and `b`."""
    encoder: list[str] = field(metadata={"metavar": "NAME"})
    """Encoders, as for tools/embed_documents.py."""
    long_documents: list[Literal["head", "mean"]] = field(default_factory=lambda: ["head"])
    """What of long documents is read; several values are measured one after another."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the corpus; by default one is trained."""
    max_documents: int | None = field(default=None, metadata={"metavar": "NUMBER"})
    """Take the first documents of the file only."""
    output: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Keep corpus and embeddings here; by default they are removed at the end."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What one encoder found."""

    recovered: list[float]
    """Share of the linked pairs among the best pairs, for each of ``MULTIPLES``."""
    nearest: float
    """Share of documents whose nearest neighbour is linked to them."""
    typical: float | None = None
    """Median score of random pairs, which a threshold on scores has to be seen against."""


def main() -> None:
    options = cli.parse(Options, str(__doc__))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(options.output or temporary)
        corpus = _make_corpus(options, directory / "corpus")
        links = read_links(options.links, number_documents(options.documents, corpus))
        rows = {"random": chance(links, len(corpus))}
        for label, settings in _settings(options):
            box = directory / re.sub(r"\W+", "-", label)
            embed(EmbedOptions(corpus=[str(corpus.prefixes[0])], output=str(box), **settings))
            rows[label] = measure(Embeddings(box).rows(0, len(corpus)), links)
    _print(rows, len(corpus), len(links))


def _make_corpus(options: Options, directory: Path) -> Corpus:
    trained = None if options.tokenizer else 8192
    preprocess(
        PreprocessOptions(
            input=[options.documents],
            output_prefix=str(directory / "documents"),
            tokenizer=options.tokenizer,
            train_tokenizer=trained,
            max_documents=options.max_documents,
            heldout_share=0,
            on_error="skip",
        )
    )
    return Corpus([directory / "documents"])


def _settings(options: Options) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and options of everything that is measured."""
    for encoder in options.encoder:
        if encoder == "lexical":
            yield encoder, {"encoder": encoder}
            continue
        for policy in options.long_documents:
            settings = {"encoder": encoder, "long_documents": policy}
            if encoder.startswith(PREFIX):
                yield f"{encoder}, {policy}, not centred", settings | {"center": False}
            yield f"{encoder}, {policy}", settings


def _lines(path: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    try:
        with gzip.open(path, "rt") if path.endswith(".gz") else open(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise InputError(f"{path}:{number}: not JSON ({error}); mend it") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; check the path") from None


def number_documents(path: str, corpus: Corpus) -> dict[str, int]:
    """Id in the file -> number in the corpus, which may lack documents of the file.

    Raises:
        InputError: If the corpus has a text that the file does not have at its place.
    """
    numbers: dict[str, int] = {}
    texts = enumerate(corpus.texts(range(len(corpus))))
    wanted = next(texts, None)
    for document in _lines(path):
        if wanted is not None and document["text"] == wanted[1]:
            numbers[document["id"]] = wanted[0]
            wanted = next(texts, None)
    if wanted is not None:
        raise InputError(
            f"{path}: document {wanted[0]} of the corpus has another text than any that follows; "
            "give a tokenizer that decodes text exactly, or none"
        )
    return numbers


def read_links(path: str, numbers: dict[str, int]) -> np.ndarray:
    """Linked pairs of documents that are in the corpus, int64 [links, 2], each once, ascending.

    Raises:
        InputError: If there are none.
    """
    pairs = {
        tuple(sorted((numbers[link["a"]], numbers[link["b"]])))
        for link in _lines(path)
        if link["a"] in numbers and link["b"] in numbers and link["a"] != link["b"]
    }
    if not pairs:
        raise InputError(f"{path}: links no two documents of the corpus; give links by their ids")
    return np.array(sorted(pairs), dtype=np.int64)


def chance(links: np.ndarray, documents: int) -> Quality:
    """What random scores would find on average."""
    pairs = documents * (documents - 1) / 2
    return Quality(
        [min(multiple * len(links) / pairs, 1.0) for multiple in MULTIPLES],
        2 * len(links) / (documents * (documents - 1)),
    )


def measure(vectors: np.ndarray, links: np.ndarray) -> Quality:
    """Compare the best pairs and the nearest neighbours with links.

    Args:
        vectors: Unit rows [documents, d].
        links: As ``read_links``.
    """
    vectors = vectors.astype(np.float32)
    documents = len(vectors)
    linked = links[:, 0] * documents + links[:, 1]
    most = min(MULTIPLES[-1] * len(links), documents * (documents - 1) // 2)
    scores, pairs = np.empty(0, np.float32), np.empty(0, np.int64)
    hits = 0
    for start in range(0, documents, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, documents))
        block = vectors[rows] @ vectors.T
        block[np.arange(len(rows)), rows] = -np.inf
        nearest = block.argmax(1)
        codes = np.minimum(rows, nearest) * documents + np.maximum(rows, nearest)
        hits += int(np.isin(codes, linked).sum())
        above, column = np.nonzero(np.arange(documents) > rows[:, None])
        scores = np.concatenate([scores, block[above, column]])
        pairs = np.concatenate([pairs, rows[above] * documents + column])
        best = np.argsort(-scores, kind="stable")[:most]
        scores, pairs = scores[best], pairs[best]
    found = np.cumsum(np.isin(pairs, linked))
    return Quality(
        [int(found[min(multiple * len(links), most) - 1]) / len(links) for multiple in MULTIPLES],
        hits / documents,
        _typical(vectors),
    )


def _typical(vectors: np.ndarray) -> float:
    draw = np.random.default_rng(0).integers(0, len(vectors), (2, _SAMPLE))
    one, other = draw[:, draw[0] != draw[1]]
    return float(np.median(np.einsum("ij,ij->i", vectors[one], vectors[other])))


def _print(rows: dict[str, Quality], documents: int, links: int) -> None:
    width = max(map(len, rows))
    pairs = documents * (documents - 1) // 2
    print(f"{documents:,} documents, {links:,} linked pairs of {pairs:,}")
    print(
        "share of the linked pairs among the best N pairs; nearest neighbours that are linked; "
        "median score"
    )
    heads = [f"N = {links:,}", *(f"x {multiple}" for multiple in MULTIPLES[1:])]
    print(" " * width, *(f"{head:>10}" for head in [*heads, "nearest", "median"]))
    for name, quality in rows.items():
        cells = [f"{share:.1%}" for share in (*quality.recovered, quality.nearest)]
        cells.append("" if quality.typical is None else f"{quality.typical:.2f}")
        print(f"{name:<{width}}", *(f"{cell:>10}" for cell in cells))


if __name__ == "__main__":
    cli.run(main)
