"""Byte-level BPE: training, saving as a Hugging Face directory, and use through `tokenizers`."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_sbp.corpus.token_bytes import TokenBytes
from megatron_sbp.errors import InputError, require

EOD, SEP, PAD = "<|endoftext|>", "<|sep|>", "<|pad|>"
FILENAME = "tokenizer.json"
_CONFIG = "tokenizer_config.json"


class Tokenizer:
    """A Hugging Face tokenizer directory, read without importing `transformers`.

    Text never becomes a special token here: a document that contains ``<|endoftext|>`` literally
    is encoded as those characters. Special tokens are put in by id.

    Args:
        directory: Holds ``tokenizer.json`` and ``tokenizer_config.json``.

    Raises:
        InputError: If a file is missing or damaged, or no end-of-sequence token is named.
    """

    def __init__(self, directory: str | Path):
        from tokenizers import Tokenizer as Backend

        self.directory = Path(directory)
        path = self.directory / FILENAME
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; give the directory of a Hugging Face tokenizer "
                "(a corpus made by preprocess_documents.py has one beside it)"
            )
        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # `tokenizers` raises the bare class
            raise InputError(f"{path}: not a tokenizer ({error}); make it again") from None
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.vocab_size: int = self._backend.get_vocab_size(with_added_tokens=True)
        """Number of ids, special tokens included (Megatron's ``vocab_size``)."""
        config = self._config()
        eod = self._special(config, "eos_token")
        if eod is None:
            raise InputError(
                f"{self.directory / _CONFIG}: names no eos_token, which ends every document; "
                "add one to the tokenizer"
            )
        self.eod: int = eod
        """Id that ends a document (``eos_token``, Megatron's ``eod``)."""
        bos = self._special(config, "bos_token")
        self.bos: int = eod if bos is None else bos
        """Id that begins a sequence; ``eod`` if the tokenizer names none."""
        self.sep: int | None = self._special(config, "sep_token")
        """Id between the two documents of a pair, if the tokenizer names one."""
        pad = self._special(config, "pad_token")
        self.pad: int = eod if pad is None else pad
        """Id that fills up a sequence; ``eod`` if the tokenizer names none."""

    def _config(self) -> dict[str, Any]:
        """The named special tokens; older directories keep them in a file of their own."""
        config: dict[str, Any] = {}
        for name in ("special_tokens_map.json", _CONFIG):
            path = self.directory / name
            try:
                config |= json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                continue
            except (ValueError, TypeError) as error:
                raise InputError(f"{path}: not a JSON object ({error}); make it again") from None
        return config

    def _special(self, config: dict[str, Any], name: str) -> int | None:
        token = config.get(name)
        if isinstance(token, dict):  # an AddedToken written out
            token = token.get("content")
        return None if token is None else self._backend.token_to_id(token)

    @cached_property
    def sha256(self) -> str:
        """Checksum of ``tokenizer.json``: equal for equal vocabularies saved the same way."""
        return hashlib.sha256((self.directory / FILENAME).read_bytes()).hexdigest()

    def knows(self, token: int) -> bool:
        """Whether an id is one of the vocabulary."""
        return 0 <= token < 1 << 32 and self._backend.id_to_token(token) is not None

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any special token."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_template(self, text: str) -> list[int]:
        """Ids of a text in which the names of special tokens stand for these."""
        self._backend.encode_special_tokens = False
        try:
            return self.encode(text)
        finally:
            self._backend.encode_special_tokens = True

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of several texts, without any special token."""
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, tokens: Iterable[int]) -> str:
        """Text of ids; special tokens among them are written out."""
        return self._backend.decode(list(tokens), skip_special_tokens=False)

    def decode_batch(self, documents: Iterable[np.ndarray]) -> list[str]:
        """Texts of several arrays of ids; special tokens among them are written out."""
        if self.token_bytes is not None:
            return list(self.token_bytes.texts(list(documents)))
        ids = [tokens.tolist() for tokens in documents]
        return self._backend.decode_batch(ids, skip_special_tokens=False)

    @cached_property
    def token_bytes(self) -> TokenBytes | None:
        """A table of the tokens, if the tokenizer is byte-level."""
        return TokenBytes.of(self._backend)


def train(texts: Iterable[str], vocab_size: int, directory: str | Path) -> Tokenizer:
    """Train byte-level BPE and save it as a Hugging Face directory.

    No normaliser and no prefix space, so that decoding gives back every text exactly.

    Args:
        texts: The corpus or a sample of it.
        vocab_size: Number of ids, the 256 bytes and the three special tokens included.
        directory: Where to save; made if need be.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOD, SEP, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    backend.save(str(directory / FILENAME))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOD,
        "eos_token": EOD,
        "sep_token": SEP,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    (directory / _CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    return Tokenizer(directory)


def copy(source: str, directory: str | Path) -> Tokenizer:
    """Put an existing tokenizer into a corpus.

    Args:
        source: Directory of a Hugging Face tokenizer, or a name on the Hugging Face Hub.
        directory: Where to save.

    Raises:
        InputError: If there is no such tokenizer, it has no fast version or names no eos_token.
    """
    directory = Path(directory)
    if (Path(source) / FILENAME).is_file():
        # The files as they are, so that corpora of one tokenizer agree on its checksum.
        directory.mkdir(parents=True, exist_ok=True)
        for pattern in ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt"):
            for path in Path(source).glob(pattern):
                shutil.copy(path, directory)
        return Tokenizer(directory)
    transformers = require("transformers", package="transformers")
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(source)
    except Exception as error:  # the Hub, the file system and every tokenizer raise their own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"--tokenizer {source}: cannot be loaded ({reason}); give a directory with "
            f"{FILENAME} or a name on the Hugging Face Hub"
        ) from None
    if not loaded.is_fast:
        raise InputError(
            f"--tokenizer {source}: has no fast version ({FILENAME}); choose one that has"
        )
    loaded.save_pretrained(directory)
    return Tokenizer(directory)
