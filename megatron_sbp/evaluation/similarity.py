"""How far texts repeat each other: self-BLEU, extractive fragments, longest common subsequences."""

from collections.abc import Iterator

import numpy as np

from megatron_sbp.corpus.shingles import ngrams
from megatron_sbp.corpus.words import MIX, Words, mixed

_SIZES = (1, 2, 3, 4)
_NO_MATCH = 0.1  # counted in place of 0 matches: smoothing 1 of Chen and Cherry, 2014
_LONG = 16  # words from which on a match is followed on its own


def self_bleu(words: Words) -> np.ndarray:
    """BLEU-4 of every document with all others as its references (Zhu et al., 2018, Texygen).

    It grows with the number of documents: it means nothing without it.

    Returns:
        float64 [documents], nan for documents of fewer than four words.
    """
    lengths = words.counts
    logarithms = np.zeros(len(words))
    for size in _SIZES:
        matches = np.maximum(_matches_elsewhere(words, size), _NO_MATCH)
        logarithms += np.log(matches / np.maximum(lengths - size + 1, 1)) / len(_SIZES)
    brevity = np.minimum(0.0, 1 - _closest(lengths) / np.maximum(lengths, 1))
    return np.where(lengths >= _SIZES[-1], np.exp(logarithms + brevity), np.nan)


def _matches_elsewhere(words: Words, size: int) -> np.ndarray:
    """Per document its n-grams that another document has, each as often as one other has it."""
    found = ngrams(words, size)
    order = np.argsort(found.hashes, kind="stable")  # then by document, as they stand
    grams, documents = found.hashes[order], found.documents[order]
    first = np.flatnonzero(_differs(grams) | _differs(documents))
    counts = np.diff(np.append(first, len(grams)))
    grams, documents = grams[first], documents[first]
    order = np.lexsort((-counts, grams))
    grams, documents, counts = grams[order], documents[order], counts[order]
    # The largest count of a gram stands first; the document that has it looks at the second.
    top = np.flatnonzero(_differs(grams))
    group = np.cumsum(_differs(grams)) - 1
    elsewhere = counts[top][group]
    second = np.append(counts, 0)[top + 1] * (np.diff(np.append(top, len(grams))) > 1)
    elsewhere[top] = second
    return np.bincount(documents, np.minimum(counts, elsewhere), len(words))


def _differs(values: np.ndarray) -> np.ndarray:
    """Whether each value is another one than that before it; True for the first."""
    return np.concatenate([np.ones(min(1, len(values)), dtype=bool), values[1:] != values[:-1]])


def distinct(values: np.ndarray) -> np.ndarray:
    """The different values, ascending; several times faster than ``np.unique`` on hashes."""
    ranked = np.sort(values)
    return ranked[_differs(ranked)]


def _closest(lengths: np.ndarray) -> np.ndarray:
    """Of every length the closest of all others, the shorter of two; itself if there is none."""
    if len(lengths) < 2:
        return lengths
    order = np.argsort(lengths, kind="stable")
    ranked = lengths[order]
    shorter, longer = np.roll(ranked, 1), np.roll(ranked, -1)
    shorter[0], longer[-1] = longer[0], shorter[-1]
    found = np.where(ranked - shorter <= longer - ranked, shorter, longer)
    found[0], found[-1] = longer[0], shorter[-1]
    closest = np.empty_like(lengths)
    closest[order] = found
    return closest


def extractiveness(first: Words, second: Words) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and density of every d2 by the d1 of the same place (Grusky et al., 2018).

    d2 is read from left to right; at each word the longest run of words that d1 has somewhere is
    taken as one fragment. Coverage is the share of words in fragments, density the mean over the
    words of the length of their fragment (0 for a word in none).

    Returns:
        float64 [documents] each, nan for a d2 without words.
    """
    lengths = _longest_matches(first, second)
    words = np.maximum(second.counts, 1)
    covered = np.bincount(second.documents, lengths > 0, len(second)) / words
    squares = np.fromiter(_squares(first, second, lengths), np.int64, len(second))
    some = second.counts > 0
    return np.where(some, covered, np.nan), np.where(some, squares / words, np.nan)


def _longest_matches(first: Words, second: Words) -> np.ndarray:
    """Per word of d2 the longest run from there that its d1 has, up to ``_LONG`` words."""
    lengths = np.zeros(len(second.hashes), dtype=np.int64)
    there, their_keys, their_ends = _runs(first)
    here, keys, ends = _runs(second)
    for size in range(1, _LONG + 1):
        found = _among(keys, their_keys)
        here, keys, ends = here[found], keys[found], ends[found]
        lengths[here] = size
        found = _among(their_keys, keys)
        there, their_keys, their_ends = there[found], their_keys[found], their_ends[found]
        # One word more, for those whose document goes on.
        more, theirs = here + size < ends, there + size < their_ends
        here, ends, there, their_ends = here[more], ends[more], there[theirs], their_ends[theirs]
        keys = keys[more] * MIX + second.hashes[here + size]
        their_keys = their_keys[theirs] * MIX + first.hashes[there + size]
        if not len(here) or not len(there):
            break
    return lengths


def _runs(words: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per word its place, a key of word and document, and the end of its document."""
    keys = words.hashes + mixed(words.documents.astype(np.uint64) + np.uint64(1))
    return np.arange(len(keys)), keys, words.starts[1:][words.documents]


def _among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each key is one of the others."""
    if not len(others):
        return np.zeros(len(keys), dtype=bool)
    others = np.sort(others)
    places = np.searchsorted(others, keys)
    return others[np.minimum(places, len(others) - 1)] == keys


def _squares(first: Words, second: Words, lengths: np.ndarray) -> Iterator[int]:
    """Per d2 the sum of the squared lengths of its fragments."""
    steps = lengths.tolist()
    for number in range(len(second)):
        place, end = second.starts[number : number + 2].tolist()
        total = 0
        while place < end:
            step = steps[place]
            if step == _LONG:
                step = _length_of_match(
                    first.hashes[first.starts[number] : first.starts[number + 1]],
                    second.hashes[place:end],
                )
            total += step * step
            place += step or 1
        yield total


def _length_of_match(words: np.ndarray, run: np.ndarray) -> int:
    """The most words of the beginning of a run that stand in a document in a row."""
    longest = 0
    for place in np.flatnonzero(words == run[0]):
        size = min(len(run), len(words) - int(place))
        differ = words[place : place + size] != run[:size]
        longest = max(longest, int(differ.argmax()) if differ.any() else size)
    return longest


def rouge_l(first: Words, second: Words) -> np.ndarray:
    """ROUGE-L of the pairs (Lin, 2004): F1 of their longest common subsequence of words.

    Returns:
        float64 [documents], nan where both have no words.
    """
    total = first.counts + second.counts
    common = [
        longest_common_subsequence(
            first.hashes[first.starts[n] : first.starts[n + 1]].tolist(),
            second.hashes[second.starts[n] : second.starts[n + 1]].tolist(),
        )
        for n in range(len(first))
    ]
    return np.where(total > 0, 2 * np.array(common) / np.maximum(total, 1), np.nan)


def longest_common_subsequence(first: list[int], second: list[int]) -> int:
    """Length of the longest common subsequence, a row of the table in the bits of one integer.

    Hyyrö, 2004: a bit of ``row`` is 0 where the row's value grows by one.
    """
    places: dict[int, int] = {}
    for place, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(first)) - 1
    row = whole
    for word in second:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & whole
    return len(first) - row.bit_count()
