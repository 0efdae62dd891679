"""A corpus as every room sees it: a list of Megatron prefixes with flat int64 document ids."""

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.indexed import Index, bin_path, idx_path, read_index
from megatron_sbp.corpus.tokenizer import FILENAME, Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import FILENAME as MANIFEST
from megatron_sbp.manifest import Manifest, fingerprint

_DECODE_BATCH = 256


class Corpus:
    """Documents of one or more prefixes, memory-mapped.

    The flat id of a document is its index in its prefix plus the number of documents of all
    prefixes before it.

    Args:
        prefixes: Paths without ``.bin``/``.idx``; their order decides the ids.
        tokenizer: Directory of a Hugging Face tokenizer; by default ``tokenizer/`` beside the first
            prefix. It is opened when first needed.

    Raises:
        InputError: If a file is missing, damaged, or does not fit its partner (see
            ``indexed.read_index``).
    """

    def __init__(self, prefixes: Sequence[str | Path], tokenizer: str | Path | None = None):
        if not prefixes:
            raise InputError("no corpus prefix given; give at least one (a path without .bin)")
        self.prefixes = [Path(prefix) for prefix in prefixes]
        opened = {prefix: _open(prefix) for prefix in dict.fromkeys(self.prefixes)}
        self._indexes = [opened[prefix][0] for prefix in self.prefixes]
        self._bins = [opened[prefix][1] for prefix in self.prefixes]
        self.counts = np.array([len(index.lengths) for index in self._indexes], dtype=np.int64)
        """int64 [number of prefixes], documents of each."""
        self.offsets = np.concatenate(([0], np.cumsum(self.counts)))
        """int64 [number of prefixes + 1], flat id of each prefix's first document, then the sum."""
        # A list: looking up one document in it is several times faster than in an array.
        self._begins: list[int] = self.offsets.tolist()
        self._tokenizer_directory = Path(tokenizer or self.prefixes[0].parent / "tokenizer")

    def __len__(self) -> int:
        return self._begins[-1]

    def __reduce__(self) -> tuple[Any, ...]:
        # For worker processes: pickled, the arrays would be copied instead of mapped.
        return Corpus, (self.prefixes, self._tokenizer_directory)

    @cached_property
    def lengths(self) -> np.ndarray:
        """int32 [documents], tokens per document, the end-of-document token included.

        With several prefixes this is a copy, 4 bytes per document of the corpus; ``lengths_of``
        makes none.
        """
        if len(self._indexes) == 1:
            return self._indexes[0].lengths
        return np.concatenate([index.lengths for index in self._indexes])

    def lengths_of(self, documents: np.ndarray) -> np.ndarray:
        """Tokens of some documents, the end-of-document token included.

        Args:
            documents: Flat ids, int64 [n].

        Returns:
            int64 [n].

        Raises:
            InputError: If there is no such document.
        """
        lengths = np.empty(len(documents), dtype=np.int64)
        for number, where, rows in self._by_prefix(documents):
            lengths[where] = self._indexes[number].lengths[rows]
        return lengths

    def _by_prefix(self, documents: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Per prefix that has some of the documents its number, their places, and their rows."""
        if not len(documents):
            return
        self.locate(int(documents.min()))
        self.locate(int(documents.max()))
        if len(self.prefixes) == 1:
            yield 0, np.arange(len(documents)), documents
            return
        prefixes = np.searchsorted(self.offsets, documents, side="right") - 1
        order = np.argsort(prefixes, kind="stable")
        for where in np.split(order, np.flatnonzero(np.diff(prefixes[order])) + 1):
            number = int(prefixes[where[0]])
            yield number, where, documents[where] - self.offsets[number]

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents, the end-of-document tokens included."""
        return sum(len(tokens) for tokens in self._bins)

    def locate(self, document: int) -> tuple[int, int]:
        """Prefix number and index in that prefix of a flat id.

        Raises:
            InputError: If there is no such document.
        """
        if not 0 <= document < self._begins[-1]:
            raise InputError(
                f"document {document}: the corpus has ids 0 to {len(self) - 1}; "
                "give all prefixes, in the order they had when the ids were made"
            )
        prefix = bisect_right(self._begins, document) - 1
        return prefix, int(document - self._begins[prefix])

    def tokens(self, document: int) -> np.ndarray:
        """Token ids of a document as a read-only view, as they stand in the ``.bin``."""
        prefix, row = self.locate(document)
        index = self._indexes[prefix]
        start = index.pointers.item(row) // index.dtype.itemsize
        return self._bins[prefix][start : start + index.lengths.item(row)]

    def body(self, document: int) -> np.ndarray:
        """Token ids of a document without the end-of-document token at its end, if it has one."""
        tokens = self.tokens(document)
        if len(tokens) and tokens[-1] == self.tokenizer.eod:
            return tokens[:-1]
        return tokens

    def body_lengths(self, documents: np.ndarray, eod: int) -> np.ndarray:
        """Tokens of documents without the ``eod`` at their end.

        Args:
            documents: Flat ids, int64 [n].
            eod: The end-of-document token.

        Returns:
            int64 [n].

        Raises:
            InputError: If there is no such document.
        """
        lengths = self.lengths_of(documents)
        for number, where, rows in self._by_prefix(documents):
            index, tokens = self._indexes[number], self._bins[number]
            some = lengths[where] > 0
            ends = index.pointers[rows[some]] // index.dtype.itemsize + lengths[where[some]]
            lengths[where[some]] -= tokens[ends - 1] == eod
        return lengths

    def end_in(self, documents: np.ndarray, token: int) -> np.ndarray:
        """Whether each of some documents scattered over the corpus ends in a token.

        They are read one by one: mapped, each would make the system read megabytes around it.

        Args:
            documents: Flat ids, int64 [n].
            token: The token.

        Returns:
            bool [n], False for empty documents.
        """
        found = np.zeros(len(documents), dtype=bool)
        for number, where, rows in self._by_prefix(documents):
            index, size = self._indexes[number], self._indexes[number].dtype.itemsize
            some = index.lengths[rows] > 0
            lengths = index.lengths[rows[some]].astype(np.int64)
            places = (index.pointers[rows[some]] + (lengths - 1) * size).tolist()
            with open(bin_path(self.prefixes[number]), "rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                last = b"".join(os.pread(file.fileno(), size, place) for place in places)
            found[where[some]] = np.frombuffer(last, index.dtype) == token
        return found

    def text(self, document: int) -> str:
        """Text of a document."""
        return next(self.texts([document]))

    def texts(self, documents: Iterable[int]) -> Iterator[str]:
        """Texts of the given documents, in their order, decoded in batches.

        Raises:
            InputError: If a document has a token that the tokenizer does not have.
        """
        for batch in batched(documents, _DECODE_BATCH):
            bodies = [self.body(document) for document in batch]
            for document, body in zip(batch, bodies, strict=True):
                for token in (int(body.min()), int(body.max())) if len(body) else ():
                    if not self.tokenizer.knows(token):
                        prefix, row = self.locate(document)
                        raise InputError(
                            f"{self.prefixes[prefix]}: document {row} has token {token}, but "
                            f"{self.tokenizer.directory} has {self.tokenizer.vocab_size} ids; give "
                            "the tokenizer that the corpus was made with"
                        )
            yield from self.tokenizer.decode_batch(bodies)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the corpus.

        Raises:
            InputError: If there is none, or a prefix was made with another one.
        """
        tokenizer = Tokenizer(self._tokenizer_directory)
        for prefix in self.prefixes:
            recorded = _recorded_tokenizer(prefix)
            if recorded not in (None, tokenizer.sha256):
                raise InputError(
                    f"{tokenizer.directory}: is not the tokenizer that {prefix} was made with "
                    f"(sha256 {tokenizer.sha256[:12]}, its manifest says {recorded[:12]}); "
                    f"use {prefix.parent / 'tokenizer'}, or make the corpus again"
                )
        return tokenizer

    def files(self) -> list[Path]:
        """Every ``.idx`` and ``.bin``, which is what a stage names as its inputs."""
        return [path(prefix) for prefix in self.prefixes for path in (idx_path, bin_path)]

    @cached_property
    def fingerprints(self) -> list[dict[str, Any]]:
        """Per prefix its path, documents, tokens and the checksum of its ``.idx``.

        Stages that store ids keep this, so that ids and corpus can be matched by content.
        """
        checksums = {
            prefix: fingerprint(idx_path(prefix))["sha256"]
            for prefix in dict.fromkeys(self.prefixes)
        }
        return [
            {
                "prefix": str(prefix),
                "documents": len(index.lengths),
                "tokens": len(tokens),
                "idx_sha256": checksums[prefix],
            }
            for prefix, index, tokens in zip(self.prefixes, self._indexes, self._bins, strict=True)
        ]


def recorded_corpus(manifest: Manifest, source: str | Path) -> list[dict[str, Any]]:
    """``Corpus.fingerprints`` of the corpus that the ids in a box mean.

    Args:
        manifest: Of the box.
        source: The box, named in the error.

    Raises:
        InputError: If its manifest does not have them.
    """
    found = manifest.counts.get("corpus")
    kinds = {"prefix": str, "documents": int, "tokens": int, "idx_sha256": str}
    if not isinstance(found, list) or not all(
        isinstance(entry, dict)
        and all(isinstance(entry.get(key), kind) for key, kind in kinds.items())
        and entry["documents"] >= 0
        for entry in found
    ):
        raise InputError(
            f"{source}: its manifest does not say which corpus its ids mean; make it again"
        )
    return found


def _open(prefix: Path) -> tuple[Index, np.ndarray]:
    """The index of a prefix and its tokens, both memory-mapped."""
    index = read_index(prefix)
    if bin_path(prefix).stat().st_size == 0:
        # An empty file, the corpus of empty documents only, cannot be mapped.
        return index, np.empty(0, index.dtype)
    return index, np.asarray(np.memmap(bin_path(prefix), index.dtype, mode="r"))


def _recorded_tokenizer(prefix: Path) -> str | None:
    """Checksum of the ``tokenizer.json`` that the box of a prefix was made with, if it says so."""
    if not (prefix.parent / MANIFEST).is_file():
        return None
    manifest = Manifest.read(prefix.parent)
    entry = manifest.outputs.get(f"tokenizer/{FILENAME}", {})
    return entry.get("sha256")
