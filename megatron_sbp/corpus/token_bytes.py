"""Text of the tokens of byte-level BPE by table look-up, an order faster than decoding them.

The tokenizers of GPT-2, Llama 3, Qwen and their relatives, and those that this package trains,
write the bytes of a token in an alphabet of printable characters, one for each byte. Their decoder
puts the bytes of all tokens together and reads them as UTF-8.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np


class TokenBytes:
    """The bytes of every token of a vocabulary.

    Args:
        vocabulary: Token as the tokenizer writes it -> id.
    """

    def __init__(self, vocabulary: Mapping[str, int]):
        alphabet = byte_alphabet()
        pieces = [b""] * (max(vocabulary.values()) + 1)
        for token, number in vocabulary.items():
            # An added token with other characters stands for itself.
            inside = all(character in alphabet for character in token)
            pieces[number] = (
                bytes(alphabet[character] for character in token) if inside else token.encode()
            )
        self.lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        """int64 [ids], bytes of each token."""
        self._begins = np.cumsum(self.lengths) - self.lengths
        self._bytes = np.frombuffer(b"".join(pieces), dtype=np.uint8)

    @classmethod
    def of(cls, backend: Any) -> Self | None:
        """The table of a tokenizer of the ``tokenizers`` library, None if it is not byte-level.

        What the tokenizer does before it makes tokens does not matter here, as they are read only.
        """
        from tokenizers import decoders

        if not isinstance(backend.decoder, decoders.ByteLevel):
            return None
        return cls(backend.get_vocab(with_added_tokens=True))

    def texts(self, documents: Sequence[np.ndarray]) -> Iterator[str]:
        """Text of each of several arrays of ids, which must be in the vocabulary.

        Bytes that are no UTF-8 become the replacement character, as in the tokenizer's decoder.
        """
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        tokens = np.concatenate([np.empty(0, np.int64), *documents]).astype(np.int64)
        sizes = self.lengths[tokens]
        ends = np.concatenate([[0], sizes]).cumsum()
        rows = np.arange(ends[-1]) + np.repeat(self._begins[tokens] - ends[:-1], sizes)
        data = self._bytes[rows].tobytes()
        bounds = ends[np.concatenate([[0], lengths]).cumsum()].tolist()
        for begin, end in pairwise(bounds):
            yield data[begin:end].decode("utf-8", "replace")


def byte_alphabet() -> dict[str, int]:
    """Character -> the byte that it stands for (GPT-2's alphabet; Radford et al., 2019).

    Bytes that are printable characters of Latin-1 stand for themselves, the others follow from
    U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + place): byte for place, byte in enumerate(others)}
