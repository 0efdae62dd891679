"""A look at mined pairs: some as text, side by side, and all of them in figures and a plot."""

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.mining.filters import Overlap
from megatron_sbp.mining.overview import Overview, draw
from megatron_sbp.mining.pairs import Pairs, PairStore

_ROWS = 1 << 22  # Scores looked at a time.
_NARROWEST = 40
_PLOTS = (".png", ".svg")


@dataclass(kw_only=True, slots=True)
class InspectOptions:
    """Options of ``tools/inspect_pairs.py``."""

    pairs: str = field(metadata={"metavar": "DIR"})
    """Directory of mined pairs."""
    corpus: list[str] = field(default_factory=list, metadata={"metavar": "PREFIX"})
    """Prefixes of the corpus that was mined, in the same order; without it no text is shown."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the corpus, by default `tokenizer/` beside the first prefix."""
    sample: int = field(default=10, metadata={"metavar": "PAIRS"})
    """Pairs shown, drawn at random."""
    seed: int = 0
    """Seed of the draw."""
    min_similarity: float = -2.0
    """Show only pairs with at least this score."""
    max_similarity: float = 2.0
    """Show only pairs with at most this score."""
    lines: int = 16
    """Lines of text shown of a document; 0: all."""
    shingle_words: int = field(default=5, metadata={"metavar": "WORDS"})
    """Words of a shingle, for the overlap."""
    width: int = field(default=0, metadata={"metavar": "COLUMNS"})
    """Width of the output in characters; 0: the terminal's."""
    plot: str | None = field(default=None, metadata={"metavar": "FILE"})
    """Draw all pairs: how many are left at a threshold, and how many anchors have; .png or .svg."""

    def __post_init__(self) -> None:
        least = {"sample": 1, "seed": 0, "lines": 0, "shingle_words": 1, "width": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {getattr(self, name)}: must be at least {bound}")
        if 0 < self.width < _NARROWEST:
            raise InputError(f"--width {self.width}: must be at least {_NARROWEST}, or 0")
        if self.plot is not None and Path(self.plot).suffix not in _PLOTS:
            raise InputError(f"--plot {self.plot}: must end with {' or '.join(_PLOTS)}")
        if self.plot is not None and not Path(self.plot).parent.is_dir():
            raise InputError(f"--plot {self.plot}: no such directory; make it first")


def inspect(options: InspectOptions) -> Iterator[str]:
    """Lines to print: a sample of pairs, then the figures of all of them; draw the plot.

    Raises:
        InputError: If store or corpus cannot be read, or no pair has such a score.
    """
    corpus = Corpus(options.corpus, options.tokenizer) if options.corpus else None
    store = PairStore(options.pairs, corpus)
    if not len(store):
        raise InputError(f"{store.directory}: has no pairs; mine again with other options")
    if corpus is None:
        yield "no text: --corpus is not given"
    else:
        yield from _texts(store, corpus, options)
        yield "=" * _width(options)
    overview = Overview.of(store)
    yield from overview.lines()
    if options.plot is not None:
        draw(overview, Path(options.plot))
        yield f"plot written to {options.plot}"


def _texts(store: PairStore, corpus: Corpus, options: InspectOptions) -> Iterator[str]:
    """Sampled pairs, their documents side by side."""
    sample = _sample(store, options)
    jaccard, containment = Overlap(corpus, options.shingle_words).compare(sample)
    width = _width(options)
    for row in range(len(sample)):
        anchor, neighbor = int(sample.anchor[row]), int(sample.neighbor[row])
        yield "=" * width
        yield (
            f"{_place(corpus, anchor)} -> {_place(corpus, neighbor)}   "
            f"score {sample.score[row]:.4f}   Jaccard {jaccard[row]:.2f}   "
            f"containment {containment[row]:.2f}"
        )
        yield "-" * width
        yield from _side_by_side(corpus.text(anchor), corpus.text(neighbor), width, options.lines)


def _width(options: InspectOptions) -> int:
    return options.width or max(_NARROWEST, shutil.get_terminal_size((120, 24)).columns)


def _sample(store: PairStore, options: InspectOptions) -> Pairs:
    """Random pairs inside the score limits, in the order of the store."""
    rows = []
    for start in range(0, len(store), _ROWS):
        score = store.score[start : start + _ROWS]
        inside = (score >= options.min_similarity) & (score <= options.max_similarity)
        rows.append(start + np.flatnonzero(inside))
    found = np.concatenate([*rows, np.empty(0, np.int64)])
    if not len(found):
        raise InputError(
            f"{store.directory}: none of its {len(store):,} pairs has a score between "
            f"{options.min_similarity} and {options.max_similarity}; widen the limits"
        )
    draw = np.random.default_rng(options.seed)
    return store[np.sort(draw.permutation(found)[: options.sample])]


def _place(corpus: Corpus, document: int) -> str:
    prefix, row = corpus.locate(document)
    return f"{corpus.prefixes[prefix].name}:{row}"


def _side_by_side(left: str, right: str, width: int, lines: int) -> Iterator[str]:
    """Two texts in two columns, each cut after a number of lines (0: not at all)."""
    column = (width - 3) // 2
    columns = [_wrap(text, column, lines) for text in (left, right)]
    for first, second in zip_longest(*columns, fillvalue=""):
        yield f"{first:<{column}} | {second}".rstrip()


def _wrap(text: str, width: int, lines: int) -> list[str]:
    """Printable lines of a text; documents must not be able to steer the terminal."""
    wrapped = []
    for line in text.splitlines():
        printable = "".join(
            c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line.expandtabs(4)
        )
        wrapped += textwrap.wrap(printable, width, drop_whitespace=False) or [""]
        if lines and len(wrapped) > lines:
            return [*wrapped[:lines], "..."]
    return wrapped
