"""A tokenizer with a token for every word, in the format of Hugging Face."""

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_sbp.corpus.concepts.words import PIECE
from megatron_sbp.corpus.token_bytes import byte_alphabet
from megatron_sbp.corpus.tokenizer import EOD, FILENAME, PAD, SEP, Tokenizer

_UNKNOWN = "<|unknown|>"
SPECIAL = [EOD, SEP, PAD, _UNKNOWN]
"""The first tokens of the vocabulary: those of trained tokenizers, and one for other words."""


def save_tokenizer(words: Sequence[str], directory: Path) -> Tokenizer:
    """Write the tokenizer of a vocabulary.

    Of every word of a text the longest token is taken that it begins with, then of the rest
    (WordPiece), which splits names into their parts. Other words become the unknown token.

    Args:
        words: Text of every token, the special ones first.
        directory: Where to save; made if need be.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    letters = {byte: letter for letter, byte in byte_alphabet().items()}
    plain = ["".join(letters[byte] for byte in word.encode()) for word in words[len(SPECIAL) :]]
    vocabulary = {word: number for number, word in enumerate(SPECIAL + plain)}
    backend = Backend(
        models.WordPiece(vocabulary, unk_token=_UNKNOWN, continuing_subword_prefix="")
    )
    split = pre_tokenizers.Split(Regex(PIECE.pattern), "isolated")
    to_letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_letters])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    directory.mkdir(parents=True)
    backend.save(str(directory / FILENAME))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOD,
        "eos_token": EOD,
        "sep_token": SEP,
        "pad_token": PAD,
        "unk_token": _UNKNOWN,
        "clean_up_tokenization_spaces": False,
    }
    text = json.dumps(config, indent=1) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return Tokenizer(directory)
