"""Documents to a Megatron corpus: tokenizer, training prefix and held-out prefix."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_sbp import cli
from megatron_sbp.corpus import encoding, python_docs, readers, tokenizer
from megatron_sbp.corpus.indexed import IndexedWriter, bin_path, idx_path, optimal_dtype
from megatron_sbp.corpus.python_docs import PythonDocs
from megatron_sbp.corpus.readers import Document, Fault, FileSource
from megatron_sbp.corpus.selection import Selection, draw, sample
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage

_MIN_VOCABULARY = 256 + 3  # every byte and the special tokens
_MEGA = 1_000_000


@dataclass(kw_only=True, slots=True)
class Options:
    """Options of tools/preprocess_documents.py."""

    input: list[str] = field(metadata={"metavar": "FILE"})
    """Files, directories or glob patterns: JSON Lines (.jsonl, .ndjson, .json, each also .gz or
    .zst), Parquet, or text (.txt, .md, .rst, one document per file); or the word python-docs, the
    documentation of the Python on this machine."""
    output_prefix: str
    """Megatron prefix to write, in a directory of its own: DIR/NAME gives DIR/NAME.bin and
    DIR/NAME.idx, DIR/NAME-heldout.bin and .idx, and DIR/tokenizer."""
    tokenizer: str | None = None
    """Existing Hugging Face tokenizer, a directory or a name on the Hub; or use
    --train-tokenizer."""
    train_tokenizer: int | None = field(default=None, metadata={"metavar": "IDS"})
    """Train a byte-level BPE tokenizer of this many ids on the documents."""
    tokenizer_sample: int = field(default=100, metadata={"metavar": "MEGACHARACTERS"})
    """Train the tokenizer on at most this many million characters, sampled by document."""
    text_key: str = "text"
    """JSON key or Parquet column that holds the text."""
    workers: int | None = None
    """Processes that tokenise; by default one per available CPU."""
    heldout_share: float = 0.05
    """Share of the documents, 0 to 1, that is held out, chosen at random by document."""
    seed: int = 0
    """Decides which documents are held out and sampled, and the order of python-docs."""
    append_eod: bool = True
    """End every document with the end-of-document token."""
    max_documents: int | None = None
    """Stop after this many documents, held-out ones included; by default take all."""
    min_characters: int = 1
    """Leave out documents shorter than this."""
    max_characters: int | None = None
    """Leave out documents longer than this; by default none."""
    deduplicate: Literal["none", "exact", "near"] = "none"
    """Leave out copies of earlier documents: exact, equal but for white space; near, sharing at
    least 0.8 of the five-word shingles as well. Memory grows with the corpus for both."""
    on_error: Literal["stop", "skip"] = "stop"
    """What to do about a document that cannot be used: stop and name it, or skip and count it."""

    def __post_init__(self) -> None:
        prefix = Path(self.output_prefix)
        if prefix.parent == Path(".") or not prefix.name:
            name = prefix.name or "corpus"
            raise InputError(
                f"--output-prefix {self.output_prefix}: needs a directory of its own; "
                f"use {name}/{name}"
            )
        if (self.tokenizer is None) == (self.train_tokenizer is None):
            raise InputError("give one of --tokenizer and --train-tokenizer")
        if self.train_tokenizer is not None and self.train_tokenizer < _MIN_VOCABULARY:
            raise InputError(
                f"--train-tokenizer {self.train_tokenizer}: needs at least {_MIN_VOCABULARY} ids, "
                "256 bytes and 3 special tokens"
            )
        if not 0 <= self.heldout_share < 1:
            raise InputError(
                f"--heldout-share {self.heldout_share}: must be at least 0 and less than 1"
            )
        if python_docs.INPUT_NAME in self.input and len(self.input) > 1:
            raise InputError(
                f"--input {' '.join(self.input)}: {python_docs.INPUT_NAME} stands alone; "
                f"a file of that name is ./{python_docs.INPUT_NAME}"
            )
        for flag, value, least in (
            ("--workers", self.workers, 1),
            ("--max-documents", self.max_documents, 1),
            ("--min-characters", self.min_characters, 1),
            ("--max-characters", self.max_characters, self.min_characters),
            ("--tokenizer-sample", self.tokenizer_sample, 1),
            ("--seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise InputError(f"{flag} {value}: must be at least {least}")

    @property
    def from_python_docs(self) -> bool:
        """Whether the input is the documentation of this machine's Python."""
        return self.input == [python_docs.INPUT_NAME]

    @property
    def tokenizer_file(self) -> Path | None:
        """The file of an existing tokenizer on this machine."""
        path = Path(self.tokenizer) / tokenizer.FILENAME if self.tokenizer else None
        return path if path and path.is_file() else None

    def deciding(self) -> dict[str, Any]:
        """What decides the content of the output, besides the input files."""
        names = set(self.__dataclass_fields__) - {"input", "output_prefix", "workers"}
        chosen = {name: getattr(self, name) for name in sorted(names)}
        chosen["name"] = Path(self.output_prefix).name
        if self.tokenizer_file:  # an input, known by its content
            chosen["tokenizer"] = tokenizer.FILENAME
        if self.from_python_docs:
            chosen["python_docs"] = python_docs.sources()
        return chosen


def preprocess(options: Options) -> Manifest:
    """Write the corpus box of ``options.output_prefix``, or recognise it, and print its summary.

    Memory does not depend on the size of the input but for 4 bytes per document, what
    ``--deduplicate`` keeps, and the documents of python-docs.

    Raises:
        InputError: If the input cannot be used; nothing is then left under the final name.
    """
    files = [] if options.from_python_docs else readers.expand(options.input)
    inputs = files + ([options.tokenizer_file] if options.tokenizer_file else [])
    directory = Path(options.output_prefix).parent
    with Stage.open(directory, "preprocess", options=options.deciding(), inputs=inputs) as stage:
        if not stage.complete:
            source: FileSource | PythonDocs
            if options.from_python_docs:
                source = PythonDocs(options.seed, options.max_characters)
            else:
                source = FileSource(files, options.text_key)
            stage.finish(counts=_write(options, source, stage.workspace))
        _summarise(directory, stage.manifest)
        return stage.manifest


def _write(options: Options, source: FileSource | PythonDocs, workspace: Path) -> dict[str, Any]:
    """Write tokenizer and prefixes into the workspace; returns the counts of the manifest."""
    directory = workspace / "tokenizer"
    if options.tokenizer is not None:
        vocabulary = tokenizer.copy(options.tokenizer, directory)
    else:
        vocabulary = _train(options, source, directory)
    selection = _select(options, source, options.deduplicate)
    documents = _watched("tokenising", options, source, selection)
    workers = options.workers or len(os.sched_getaffinity(0))
    batches = encoding.encode(documents, directory, workers, append_eod=options.append_eod)
    prefix = workspace / Path(options.output_prefix).name
    heldout_prefix = Path(f"{prefix}-heldout")
    dtype = optimal_dtype(vocabulary.vocab_size)
    with (
        closing(batches),
        IndexedWriter(prefix, dtype) as kept,
        IndexedWriter(heldout_prefix, dtype) as heldout,
    ):
        characters = _divide(options, batches, selection, kept, heldout)
    if not len(kept):
        raise _nothing_left(options, selection, len(heldout))
    if not len(heldout):  # Megatron cannot open a prefix without documents.
        bin_path(heldout_prefix).unlink()
        idx_path(heldout_prefix).unlink()
    lengths = np.concatenate([kept.lengths, heldout.lengths])
    return {
        "documents": len(kept),
        "tokens": kept.tokens,
        "heldout_documents": len(heldout),
        "heldout_tokens": heldout.tokens,
        "characters": characters,
        "skipped": dict(selection.skipped),
        "vocabulary": vocabulary.vocab_size,
        "median_document": int(np.median(lengths)),
        "longest_document": int(lengths.max()),
        "prefix": prefix.name,
        "heldout_prefix": heldout_prefix.name if len(heldout) else None,
    }


def _divide(
    options: Options,
    batches: Iterable[encoding.Batch],
    selection: Selection,
    kept: IndexedWriter,
    heldout: IndexedWriter,
) -> int:
    """Write every document to one of the two prefixes; returns the characters written."""
    characters = number = 0
    for batch in batches:
        usable = _usable(options, batch, selection)
        draws = [draw("heldout", options.seed, number + i) for i in range(len(usable))]
        out = np.array(draws) < options.heldout_share
        for writer, mask in ((kept, usable & ~out), (heldout, usable & out)):
            writer.extend(batch.tokens[np.repeat(mask, batch.lengths)], batch.lengths[mask])
        characters += sum(len(document.text) for document in compress(batch.documents, usable))
        number += len(usable)
    return characters


def _select(
    options: Options,
    source: FileSource | PythonDocs,
    deduplicate: Literal["none", "exact", "near"],
) -> Selection:
    return Selection(
        source,
        min_characters=options.min_characters,
        max_characters=options.max_characters,
        max_documents=options.max_documents,
        deduplicate=deduplicate,
        on_error=options.on_error,
    )


def _watched(
    title: str, options: Options, source: FileSource | PythonDocs, selection: Selection
) -> Iterator[Document]:
    """The selected documents, with progress by what has been read or by their number."""
    limit = options.max_documents
    total, unit = (limit, "documents") if limit else (source.total, source.unit)
    with cli.Progress(title, total, unit) as progress:
        for document in selection:
            yield document
            progress.update((selection.taken if limit else source.position) - progress.done)


def _train(options: Options, source: FileSource | PythonDocs, directory: Path) -> Tokenizer:
    """Train the tokenizer on a sample of the documents."""
    assert options.train_tokenizer is not None
    # Copies do no harm to a tokenizer, and looking for them twice would cost.
    selection = _select(options, source, "none")
    documents = _watched("sampling for the tokenizer", options, source, selection)
    texts = sample(documents, options.tokenizer_sample * _MEGA, options.seed)
    if not texts:
        raise _nothing_left(options, selection, 0)
    characters = sum(map(len, texts))
    print(
        f"training the tokenizer on {len(texts):,} documents, {characters:,} characters",
        file=sys.stderr,
        flush=True,
    )
    return tokenizer.train(texts, options.train_tokenizer, directory)


def _usable(options: Options, batch: encoding.Batch, selection: Selection) -> np.ndarray:
    """Which documents of a batch have tokens (bool [documents]); the others are refused."""
    usable = batch.lengths > int(options.append_eod)
    for number in np.flatnonzero(~usable):
        document = batch.documents[number]
        detail = f"the tokenizer makes no tokens of {document.text[:20]!r}; remove it"
        selection.refuse(Fault(document.place, "empty document", detail))
    return usable


def _nothing_left(options: Options, selection: Selection, heldout: int) -> InputError:
    """The error of a corpus without training documents."""
    reasons = [f"{count:,} {reason}" for reason, count in selection.skipped.items()]
    reasons += [f"{heldout:,} held out"] if heldout else []
    return InputError(
        f"--input {' '.join(options.input)}: no documents to train on "
        f"({', '.join(reasons) or 'the input is empty'}); give more or widen the selection"
    )


def _summarise(directory: Path, manifest: Manifest) -> None:
    """Print what the corpus holds."""
    counts = manifest.counts
    rows = {
        "prefix": directory / counts["prefix"],
        "documents": counts["documents"],
        "tokens": counts["tokens"],
        "held-out documents": counts["heldout_documents"],
        "held-out tokens": counts["heldout_tokens"],
        "tokens per document": f"median {counts['median_document']:,}, "
        f"longest {counts['longest_document']:,}",
        "characters per token": round(
            counts["characters"] / (counts["tokens"] + counts["heldout_tokens"]), 2
        ),
        "vocabulary": counts["vocabulary"],
    }
    rows |= {f"left out: {reason}": count for reason, count in sorted(counts["skipped"].items())}
    rows["time"] = cli.clock(manifest.seconds)
    cli.summary("corpus", rows)
