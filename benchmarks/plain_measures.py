"""Plain readings of the measures of texts: one text at a time, with ``re``, sets and datasketch."""

import re
from collections import Counter
from collections.abc import Iterable

Gram = tuple[str, ...]


def words(text: str) -> list[str]:
    """Lower-cased words."""
    return re.findall(r"\w+", text.lower())


def ngrams(found: list[str], size: int) -> list[Gram]:
    """All n-grams of some words."""
    return [tuple(found[at : at + size]) for at in range(len(found) - size + 1)]


def shingles(text: str) -> set[Gram]:
    """5-word shingles."""
    found = words(text)
    return set(ngrams(found, min(5, len(found)) or 1))


def containment(text: str, seed: str) -> float:
    """Share of the shingles of a text that its seed has."""
    own = shingles(text)
    return len(own & shingles(seed)) / max(len(own), 1)


def same_words(text: str, seed: str) -> bool:
    """Whether two texts have the same words."""
    return words(text) == words(seed)


def is_repetitive(text: str) -> bool:
    """MassiveText's rules on repetition (Rae et al., 2021, table A1)."""
    for separator in ("\n", "\n\n"):
        parts = Counter(part.strip() for part in text.split(separator) if part.strip())
        again = {part: times - 1 for part, times in parts.items() if times > 1}
        characters = sum(len(part) * times for part, times in parts.items())
        if sum(again.values()) > 0.3 * sum(parts.values()):
            return True
        if sum(len(part) * times for part, times in again.items()) > 0.2 * characters:
            return True
    found = re.findall(r"\w+", text)
    whole = sum(map(len, found))
    for size, limit in {2: 0.20, 3: 0.18, 4: 0.16}.items():
        counts = Counter(ngrams(found, size))
        times = max(counts.values(), default=0)
        longest = max((sum(map(len, g)) for g, n in counts.items() if n == times), default=0)
        if times > 1 and times * longest > limit * whole:
            return True
    for size, limit in {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}.items():
        grams = ngrams(found, size)
        counts = Counter(grams)
        inside = {at + n for at, gram in enumerate(grams) if counts[gram] > 1 for n in range(size)}
        if sum(len(found[at]) for at in inside) > limit * whole:
            return True
    return False


def extractiveness(seed: str, text: str) -> tuple[float, float]:
    """Coverage and density of a text by its seed (Grusky et al., 2018, figure 3)."""
    source, found = words(seed), words(text)
    fragments, at = [], 0
    while at < len(found):
        longest = 0
        for start, word in enumerate(source):
            size = 0
            if word == found[at]:
                limit = min(len(found) - at, len(source) - start)
                while size < limit and found[at + size] == source[start + size]:
                    size += 1
            longest = max(longest, size)
        fragments.append(longest)
        at += longest or 1
    count = max(len(found), 1)
    return sum(fragments) / count, sum(size * size for size in fragments) / count


def overlap(wanted: set[Gram], text: str, size: int) -> set[Gram]:
    """The n-grams of a text that are among those wanted."""
    return wanted & set(ngrams(words(text), size))


def near_duplicates(texts: Iterable[str]) -> list[bool]:
    """Whether each text is like an earlier one, with datasketch's MinHash and LSH."""
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(num_perm=128, params=(16, 8))
    kept: list[MinHash] = []
    found = []
    for text in texts:
        signature = MinHash(num_perm=128)
        signature.update_batch([" ".join(shingle).encode() for shingle in shingles(text)])
        candidates = index.query(signature)
        found.append(any(kept[number].jaccard(signature) >= 0.8 for number in candidates))
        if not found[-1]:
            index.insert(len(kept), signature)
            kept.append(signature)
    return found
