"""Encoders that are Hugging Face models, with the pooling and prompt that they were trained with.

Pooling, prompt and longest input come from the files that sentence-transformers keeps beside a
model; that library itself is not needed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.encoders import Encoded
from megatron_sbp.embedding.heads import cut_where_safe, cuts_are_safe, is_certain
from megatron_sbp.embedding.transformer import (
    LIBRARIES_BYTES,
    LongDocuments,
    Machine,
    Pooling,
    Transformer,
    TransformerSpec,
    cannot_load,
    check_dimensions,
    check_length,
)
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import fingerprint

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "1_Pooling/*")
_MODULES = {"Transformer", "Pooling", "Normalize"}
_POOLING: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
}


def fetch(name: str) -> Path:
    """The directory of a model: ``name`` itself, or the Hugging Face Hub's files under that name.

    Raises:
        InputError: If neither exists, or it has no safetensors weights.
    """
    directory = Path(name)
    if not directory.is_dir():
        from huggingface_hub import snapshot_download

        try:
            directory = Path(snapshot_download(name, allow_patterns=list(_FILES)))
        except Exception as error:  # of the Hub, of the network, of the file system
            raise cannot_load(name, error) from None
    for needed, pattern in (
        ("config.json", "config.json"),
        ("safetensors weights", "*.safetensors"),
    ):
        if not any(directory.glob(pattern)):
            raise InputError(
                f"--encoder {name}: {directory} has no {needed}; give a Hugging Face model that "
                "has, `minilm`, `lexical`, or `megatron:DIR`"
            )
    return directory


@dataclass(kw_only=True, frozen=True)
class HuggingFaceSpec(TransformerSpec):
    """A Hugging Face model and how its hidden states become one vector."""

    directory: Path
    """Where its files are."""
    prompt: str
    """Text put before every document, and before every window of one."""
    lower_case: bool
    """Whether text is lower-cased before it is tokenised."""

    @classmethod
    def resolve(
        cls,
        name: str,
        directory: Path,
        *,
        machine: Machine,
        pooling: Pooling | None = None,
        prompt: str | None = None,
        max_length: int = 0,
        long_documents: LongDocuments = "head",
        max_windows: int = 8,
        dimensions: int = 0,
    ) -> "HuggingFaceSpec":
        """Fill in from the model's files what is not given.

        Raises:
            InputError: If a file is damaged, asks for what this loader does not do, or a value
                given does not fit the model.
        """
        limit = _longest_input(directory)
        check_length(name, max_length, limit)
        check_dimensions(name, dimensions, _hidden_size(directory, dimensions))
        _refuse_other_modules(name, directory)
        transformer = _read_json(directory / "sentence_bert_config.json")
        return cls(
            name=name,
            directory=directory,
            pooling=pooling or _own_pooling(name, directory),
            prompt=_own_prompt(directory) if prompt is None else prompt,
            max_length=max_length or min(limit, transformer.get("max_seq_length") or limit),
            lower_case=bool(transformer.get("do_lower_case")),
            long_documents=long_documents,
            max_windows=max_windows if long_documents == "mean" else 1,
            dimensions=dimensions,
            machine=machine,
        )

    @property
    def memory_bytes(self) -> int:
        """Libraries, and the weights twice: as stored and as converted."""
        return LIBRARIES_BYTES + 2 * sum(path.stat().st_size for path in self._weights())

    def _weights(self) -> list[Path]:
        return sorted(self.directory.glob("*.safetensors"))

    def settings(self) -> dict[str, Any]:
        """Every field but where it lies and runs, and the checksums of the files it is made of."""
        files = [self.directory / name for name in ("config.json", "tokenizer.json")]
        own = {
            "encoder": self.name if self.name != str(self.directory) else self.directory.name,
            "prompt": self.prompt,
            "lower_case": self.lower_case,
            "sha256": {
                path.name: fingerprint(path)["sha256"]
                for path in files + self._weights()
                if path.exists()
            },
        }
        return own | super().settings()

    def prepare(self, corpus: Corpus, directory: Path) -> None:
        """Nothing: its files are there, and it learns nothing from the corpus."""

    def open(
        self, corpus: Corpus, directory: Path, *, threads: int | None = None, gpu: int = 0
    ) -> "HuggingFaceEncoder":
        """Load tokenizer and weights; the corpus is not looked at."""
        return HuggingFaceEncoder(self, threads, gpu)


class HuggingFaceEncoder:
    """A loaded model; see ``HuggingFaceSpec``.

    Args:
        spec: The model and its settings.
        threads: Threads of torch in this process, None for torch's own choice.
        gpu: Number of the CUDA device, if it runs on one.

    Raises:
        InputError: If the model cannot be loaded, or the prompt leaves no room for documents.
    """

    def __init__(self, spec: HuggingFaceSpec, threads: int | None = None, gpu: int = 0):
        import transformers

        self._spec = spec
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                spec.directory, local_files_only=True
            )
        except Exception as error:  # every tokenizer class raises its own
            raise cannot_load(spec.name, error) from None
        if not self._tokenizer.is_fast:
            raise InputError(
                f"--encoder {spec.name}: has no fast tokenizer (tokenizer.json); choose another"
            )
        self._tokenizer.truncation_side = "right"
        self._check_prompt()
        self._cuts = cuts_are_safe(self._tokenizer)
        pad = self._tokenizer.pad_token_id
        self._transformer = Transformer(
            spec.directory, spec, pad=0 if pad is None else pad, threads=threads, gpu=gpu
        )

    def _check_prompt(self) -> None:
        length = len(self._tokenizer(self._spec.prompt)["input_ids"])
        if length >= self._spec.max_length:
            raise InputError(
                f"--max-length {self._spec.max_length}: prompt and special tokens alone take "
                f"{length} tokens; give more"
            )

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenise, cut into windows, run in batches of similar length, pool; see ``Encoder``."""
        if self._spec.lower_case:
            texts = [text.lower() for text in texts]
        encodings = self._tokenize(texts)
        documents = [self._windows(encoding) for encoding in encodings]
        vectors = self._transformer.vectors([windows for windows, _ in documents])
        vectors = vectors[:, : self._spec.dimensions or None]
        return Encoded(vectors, sum(longer for _, longer in documents))

    def encode_documents(self, corpus: Corpus, documents: Sequence[int]) -> Encoded:
        """Vectors of documents; see ``Encoder.encode_documents``."""
        return self.encode(list(corpus.texts(documents)))

    def _tokenize(self, texts: Sequence[str]) -> list[Any]:
        """Encodings of prompt and text, as long as all windows of a document can be."""
        limit = self._spec.max_length * self._spec.max_windows
        heads = [cut_where_safe(text, limit) for text in texts] if self._cuts else texts
        encodings = self._encodings(heads, limit)
        unsure = [
            row
            for row, encoding in enumerate(encodings)
            if len(heads[row]) < len(texts[row]) and not is_certain(encoding)
        ]
        for row, encoding in zip(
            unsure, self._encodings([texts[row] for row in unsure], limit), strict=True
        ):
            encodings[row] = encoding
        return encodings

    def _encodings(self, texts: Sequence[str], limit: int) -> list[Any]:
        if not texts:
            return []
        batch = self._tokenizer(
            [self._spec.prompt + text for text in texts],
            truncation=True,
            max_length=limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return batch.encodings

    def _windows(self, encoding: Any) -> tuple[list[list[int]], bool]:
        """Token ids of every window of a document, and whether it is longer than they read.

        Every window has the special tokens and the prompt of the whole.
        """
        ids, longer = encoding.ids, bool(encoding.overflowing)
        if len(ids) <= self._spec.max_length:
            return [ids], longer
        special = encoding.special_tokens_mask
        first, last = special.index(0), len(special) - special[::-1].index(0)
        if self._spec.prompt:
            prompt = len(self._spec.prompt)
            first += sum(end <= prompt for _, end in encoding.offsets[first:last])
        room = self._spec.max_length - first - (len(ids) - last)
        starts = range(first, last, room)
        windows = [
            ids[:first] + ids[start : min(start + room, last)] + ids[last:] for start in starts
        ]
        most = self._spec.max_windows
        return windows[:most], longer or len(windows) > most


def _read_json(path: Path) -> Any:
    """Content of a JSON file, an empty mapping if there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); get the model again") from None


def _longest_input(directory: Path) -> int:
    """Tokens that the model has positions for."""
    limits = (
        _read_json(directory / "config.json").get("max_position_embeddings"),
        _read_json(directory / "tokenizer_config.json").get("model_max_length"),
    )
    return min((int(limit) for limit in limits if limit), default=512)


def _hidden_size(directory: Path, otherwise: int) -> int:
    """Dimensions of the model; ``otherwise`` where its file has another name for them."""
    return _read_json(directory / "config.json").get("hidden_size", otherwise)


def _refuse_other_modules(name: str, directory: Path) -> None:
    """Raise if sentence-transformers would do more than transformer, pooling and normalisation."""
    for module in _read_json(directory / "modules.json"):
        kind = module["type"].rpartition(".")[2]
        if kind not in _MODULES:
            raise InputError(
                f"--encoder {name}: its modules.json has a {kind} layer, which this loader does "
                "not apply; choose a model without"
            )


def _own_pooling(name: str, directory: Path) -> Pooling:
    """The pooling of the model's files; mean where there are none, as sentence-transformers does.

    They name it in one of two ways: ``pooling_mode`` with its name, or a flag per kind.
    """
    config = _read_json(directory / "1_Pooling" / "config.json")
    modes = config.get("pooling_mode", [])
    modes = [modes] if isinstance(modes, str) else modes
    flags = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
    modes = modes or [flag.removeprefix("pooling_mode_") for flag in flags]
    if not config:
        return "mean"
    if len(modes) == 1 and modes[0] in _POOLING and config.get("include_prompt", True):
        return _POOLING[modes[0]]
    raise InputError(
        f"--encoder {name}: its pooling is {' + '.join(modes) or 'unknown'}"
        f"{'' if config.get('include_prompt', True) else ' without the prompt'}; this loader "
        "does mean, cls and last, name one with --pooling"
    )


def _own_prompt(directory: Path) -> str:
    """The prompt that the model wants before a document, usually none."""
    config = _read_json(directory / "config_sentence_transformers.json")
    prompts = config.get("prompts") or {}
    return prompts.get(config.get("default_prompt_name") or "document") or ""
