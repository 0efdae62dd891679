"""Which documents of a source are taken: length, copies, faults, random shares."""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Literal

from megatron_sbp.corpus.duplicates import Duplicates
from megatron_sbp.corpus.readers import Document, Fault

# Documents compared with each other at a time, and their characters.
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 512, 1 << 20


class Selection:
    """The documents of a source that go into the corpus.

    Args:
        source: Documents and faults.
        min_characters: Length of the shortest document taken.
        max_characters: Length of the longest document taken, None for any.
        max_documents: Number of documents after which to end, None for all.
        deduplicate: Kind of copies to leave out.
        on_error: Whether a fault ends the work or is counted.
    """

    def __init__(
        self,
        source: Iterable[Document | Fault],
        *,
        min_characters: int = 1,
        max_characters: int | None = None,
        max_documents: int | None = None,
        deduplicate: Literal["none", "exact", "near"] = "none",
        on_error: Literal["stop", "skip"] = "stop",
    ):
        self._source = source
        self._shortest = min_characters
        self._longest = max_characters
        self._most = max_documents
        self._duplicates = None if deduplicate == "none" else Duplicates(deduplicate)
        self._stop = on_error == "stop"
        self.taken = 0
        """Documents taken so far."""
        self.skipped: Counter[str] = Counter()
        """Documents left out so far, by reason."""

    def __iter__(self) -> Iterator[Document]:
        """Give the documents taken.

        Raises:
            InputError: At the first fault under ``on_error="stop"``.
        """
        for batch in self._batches():
            for record, reason in zip(batch, self._reasons(batch), strict=True):
                if isinstance(record, Fault):
                    self.refuse(record)
                elif reason:
                    self.skipped[reason] += 1
                else:
                    self.taken += 1
                    yield record
                    if self.taken == self._most:
                        return

    def _batches(self) -> Iterator[list[Document | Fault]]:
        """The source's records; several at a time where they are compared with each other."""
        batch: list[Document | Fault] = []
        characters = 0
        for record in self._source:
            batch.append(record)
            characters += 0 if isinstance(record, Fault) else len(record.text)
            full = len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS
            if self._duplicates is None or full:
                yield batch
                batch, characters = [], 0
        yield batch

    def refuse(self, fault: Fault) -> None:
        """Count a fault, or raise it under ``on_error="stop"``."""
        if self._stop:
            raise fault.error()
        self.skipped[fault.reason] += 1

    def _reasons(self, batch: Sequence[Document | Fault]) -> list[str | None]:
        """Why each document is left out, None if it is taken; None for faults."""
        texts = [None if isinstance(record, Fault) else record.text for record in batch]
        reasons = [None if text is None else self._wrong_length(text) for text in texts]
        if self._duplicates is not None:
            compared = [
                (place, text)
                for place, (text, reason) in enumerate(zip(texts, reasons, strict=True))
                if text is not None and reason is None
            ]
            seen = self._duplicates.seen([text for _, text in compared])
            for (place, _), reason in zip(compared, seen, strict=True):
                reasons[place] = reason
        return reasons

    def _wrong_length(self, text: str) -> str | None:
        if len(text) < self._shortest:
            return "too short"
        if self._longest is not None and len(text) > self._longest:
            return "too long"
        return None


def draw(purpose: str, seed: int, number: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments.

    Decisions drawn so are the same however the work is divided, and need no state.
    """
    digest = blake2b(f"{purpose}:{seed}:{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def sample(documents: Iterable[Document], characters: int, seed: int) -> list[str]:
    """Texts of a random subset of at most the given number of characters, but at least one text.

    Those with the smallest draws, as many as fit; memory holds the sample only.
    """
    kept: list[tuple[float, str]] = []  # heap, largest draw first
    size = 0
    limit = 1.0  # smallest draw that did not fit; without it short documents would be preferred
    for number, document in enumerate(documents):
        drawn = draw("sample", seed, number)
        if drawn >= limit:
            continue
        heapq.heappush(kept, (-drawn, document.text))
        size += len(document.text)
        while size > characters and len(kept) > 1:
            evicted, text = heapq.heappop(kept)
            limit = -evicted
            size -= len(text)
    return [text for _, text in kept]
