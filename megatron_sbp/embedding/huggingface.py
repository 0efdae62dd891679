"""Encoders that are Hugging Face models, with the pooling and prompt that they were trained with.

Pooling, prompt and longest input come from the files that sentence-transformers keeps beside a
model; that library itself is not needed.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.embedding.encoders import Encoded
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import fingerprint

type Pooling = Literal["mean", "cls", "last"]
type Dtype = Literal["bf16", "fp32"]
type Device = Literal["cpu", "cuda"]

_FILES = ("*.json", "*.txt", "*.model", "*.safetensors", "1_Pooling/*")
_MODULES = {"Transformer", "Pooling", "Normalize"}
_POOLING: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
    "lasttoken": "last",
}
# Padded tokens of one batch. On a CPU larger ones fall out of cache: 8 x 256 was the fastest.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 131072}
_LIBRARIES_BYTES = 700 << 20  # Resident size of a process with torch and transformers.


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
            raise _cannot_load(name, error) from None
    for needed, pattern in (
        ("config.json", "config.json"),
        ("safetensors weights", "*.safetensors"),
    ):
        if not any(directory.glob(pattern)):
            raise InputError(
                f"--encoder {name}: {directory} has no {needed}; give a Hugging Face model that "
                "has, `minilm`, or `lexical`"
            )
    return directory


def _cannot_load(name: str, error: Exception) -> InputError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"--encoder {name}: cannot be loaded ({reason}); give the directory of a Hugging Face "
        "model, a name on the Hub that this machine can reach, `minilm`, or `lexical`"
    )


@dataclass(kw_only=True, frozen=True)
class HuggingFaceSpec:
    """A Hugging Face model and how its hidden states become one vector."""

    name: str
    """What the user called it."""
    directory: Path
    """Where its files are."""
    pooling: Pooling
    """Mean over tokens, first token, or last token."""
    prompt: str
    """Text put before every document."""
    max_length: int
    """Tokens read of a document, special tokens included."""
    lower_case: bool
    """Whether text is lower-cased before it is tokenised."""
    dtype: Dtype
    """Type of weights and products; pooling is in float32."""
    device: Device
    """Where the model runs."""
    batch_tokens: int
    """Padded tokens of one batch; vectors depend on it by rounding only."""

    @classmethod
    def resolve(
        cls,
        name: str,
        directory: Path,
        *,
        pooling: Pooling | None = None,
        prompt: str | None = None,
        max_length: int = 0,
        dtype: Dtype | None = None,
        device: Device | None = None,
        batch_tokens: int = 0,
    ) -> "HuggingFaceSpec":
        """Fill in from the model's files and from the machine what is not given.

        Raises:
            InputError: If a file is damaged, asks for what this loader does not do, or a value
                given does not fit the model.
        """
        limit = _longest_input(directory)
        if max_length > limit:
            raise InputError(
                f"--max-length {max_length}: {name} reads at most {limit} tokens; give at most that"
            )
        _refuse_other_modules(name, directory)
        device = _usable_device(device)
        transformer = _read_json(directory / "sentence_bert_config.json")
        return cls(
            name=name,
            directory=directory,
            pooling=pooling or _own_pooling(name, directory),
            prompt=_own_prompt(directory) if prompt is None else prompt,
            max_length=max_length or min(limit, transformer.get("max_seq_length") or limit),
            lower_case=bool(transformer.get("do_lower_case")),
            dtype=dtype or _best_dtype(device),
            device=device,
            batch_tokens=batch_tokens or _BATCH_TOKENS[device],
        )

    @property
    def parallel(self) -> bool:
        """On a CPU one process per core beats the threads of one process."""
        return self.device == "cpu"

    @property
    def memory_bytes(self) -> int:
        """Libraries, and the weights twice: as stored and as converted."""
        return _LIBRARIES_BYTES + 2 * sum(path.stat().st_size for path in self._weights())

    def _weights(self) -> list[Path]:
        return sorted(self.directory.glob("*.safetensors"))

    def settings(self) -> dict[str, Any]:
        """Every field but where it lies and runs, and the checksums of the files it is made of."""
        files = [self.directory / name for name in ("config.json", "tokenizer.json")]
        return {
            "encoder": self.name if self.name != str(self.directory) else self.directory.name,
            "pooling": self.pooling,
            "prompt": self.prompt,
            "max_length": self.max_length,
            "lower_case": self.lower_case,
            "dtype": self.dtype,
            "sha256": {
                path.name: fingerprint(path)["sha256"]
                for path in files + self._weights()
                if path.exists()
            },
        }

    def load(self, corpus: Corpus, threads: int | None = None) -> "HuggingFaceEncoder":
        """Load tokenizer and weights; the corpus is not looked at."""
        return HuggingFaceEncoder(self, threads)


class HuggingFaceEncoder:
    """A loaded model; see ``HuggingFaceSpec``.

    Args:
        spec: The model and its settings.
        threads: Threads of torch in this process, None for torch's own choice.

    Raises:
        InputError: If the model cannot be loaded.
    """

    def __init__(self, spec: HuggingFaceSpec, threads: int | None = None):
        import torch
        import transformers

        if threads is not None:
            torch.set_num_threads(threads)
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._spec = spec
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                spec.directory, local_files_only=True
            )
            model = transformers.AutoModel.from_pretrained(
                spec.directory,
                local_files_only=True,
                dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[spec.dtype],
            )
        except Exception as error:  # every model class raises its own
            raise _cannot_load(spec.name, error) from None
        if not self._tokenizer.is_fast:
            raise InputError(
                f"--encoder {spec.name}: has no fast tokenizer (tokenizer.json); choose another"
            )
        self._tokenizer.padding_side = "right"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = model.to(spec.device).eval()

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Tokenise, run in batches of similar length, pool; see ``Encoder.encode``."""
        if self._spec.lower_case:
            texts = [text.lower() for text in texts]
        batch = self._tokenizer(
            [self._spec.prompt + text for text in texts],
            truncation=True,
            max_length=self._spec.max_length,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        tokens: list[list[int]] = batch["input_ids"]
        vectors = np.zeros((len(texts), self._model.config.hidden_size), dtype=np.float32)
        for rows in _batches([len(ids) for ids in tokens], self._spec.batch_tokens):
            vectors[rows] = self._forward([tokens[row] for row in rows])
        return Encoded(vectors, sum(bool(encoding.overflowing) for encoding in batch.encodings))

    def _forward(self, tokens: list[list[int]]) -> np.ndarray:
        """Pooled hidden states of one batch of token ids, float32 [texts, d]."""
        import torch

        padded = self._tokenizer.pad({"input_ids": tokens}, return_tensors="pt").to(
            self._model.device
        )
        with torch.inference_mode():
            hidden_BLD = self._model(**padded).last_hidden_state.float()
            lengths_B = padded["attention_mask"].sum(1)
            if self._spec.pooling == "cls":
                pooled_BD = hidden_BLD[:, 0]
            elif self._spec.pooling == "last":
                rows_B = torch.arange(len(tokens), device=hidden_BLD.device)
                pooled_BD = hidden_BLD[rows_B, lengths_B - 1]
            else:
                mask_BL1 = padded["attention_mask"].unsqueeze(-1)
                pooled_BD = (hidden_BLD * mask_BL1).sum(1) / lengths_B.unsqueeze(-1)
            return pooled_BD.cpu().numpy()


def _batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
    """Split row numbers into batches of similar length whose padded size is within the budget.

    Rows of length 0 are left out; a row longer than the budget is a batch of its own.
    """
    batch: list[int] = []
    for row in sorted(np.flatnonzero(lengths).tolist(), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


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


def _usable_device(wanted: Device | None) -> Device:
    """The device that was asked for, or a CUDA device if there is one."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; give cpu or auto")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def _best_dtype(device: Device) -> Dtype:
    """bf16 where the device multiplies it natively: there it is about twice as fast."""
    if device == "cuda":
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "fp32"
    return "bf16" if re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags) else "fp32"
