"""Token ids to vectors: a transformer of the Hugging Face library, batches, pooling, windows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from megatron_sbp.embedding.encoders import EncoderSpec
from megatron_sbp.errors import InputError

type Pooling = Literal["mean", "cls", "last"]
type Dtype = Literal["bf16", "fp32"]
type Device = Literal["cpu", "cuda"]
type LongDocuments = Literal["head", "mean"]

# Padded tokens of one batch. On a CPU larger ones fall out of cache: 8 x 256 was the fastest.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 131072}
LIBRARIES_BYTES = 700 << 20
"""Resident size of a process with torch and transformers."""


@dataclass(kw_only=True, frozen=True)
class Machine:
    """Where and how a transformer runs."""

    dtype: Dtype
    """Type of weights and products; pooling is in float32."""
    device: Device
    """Kind of device."""
    batch_tokens: int
    """Padded tokens of one batch; vectors depend on it by rounding only."""

    @classmethod
    def resolve(
        cls, dtype: Dtype | None = None, device: Device | None = None, batch_tokens: int = 0
    ) -> Self:
        """Fill in what is not given: a CUDA device if there is one, bf16 where it is native.

        Raises:
            InputError: If there is no CUDA device, though one was asked for.
        """
        device = _usable_device(device)
        return cls(
            dtype=dtype or _best_dtype(device),
            device=device,
            batch_tokens=batch_tokens or _BATCH_TOKENS[device],
        )


@dataclass(kw_only=True, frozen=True)
class TransformerSpec(EncoderSpec):
    """What encoders that are transformers have in common."""

    name: str
    """What the user called it."""
    pooling: Pooling
    """Mean over tokens, first token, or last token."""
    max_length: int
    """Tokens of a window, special tokens included."""
    long_documents: LongDocuments
    """What of a document longer than a window is read: its head, or several windows."""
    max_windows: int
    """Windows read of a document; 1 if only its head is."""
    dimensions: int
    """Leading dimensions that are kept; 0: all."""
    machine: Machine
    """Where and how it runs."""

    @property
    def parallel(self) -> bool:
        """On a CPU one process per core beats the threads of one process."""
        return self.machine.device == "cpu"

    def settings(self) -> dict[str, Any]:
        """What all of them put into the manifest."""
        return {
            "pooling": self.pooling,
            "max_length": self.max_length,
            "long_documents": self.long_documents,
            "max_windows": self.max_windows,
            "dimensions": self.dimensions,
            "dtype": self.machine.dtype,
        }


def check_length(name: str, wanted: int, limit: int) -> None:
    """Refuse a ``--max-length`` that the model has no positions for."""
    if wanted > limit:
        raise InputError(
            f"--max-length {wanted}: {name} reads at most {limit} tokens; give at most that"
        )


def check_dimensions(name: str, wanted: int, hidden: int) -> None:
    """Refuse more ``--dimensions`` than the model has."""
    if wanted > hidden:
        raise InputError(
            f"--dimensions {wanted}: {name} has {hidden}; give at most that, or 0 for all"
        )


class Transformer:
    """A loaded model without its language-modelling head.

    Args:
        directory: Hugging Face directory.
        spec: Settings.
        pad: Token id that fills up a batch.
        first: Position of the first token that mean pooling counts.
        layer: Hidden layer whose states are pooled, from 1; 0: the last, after the final norm.
        threads: Threads on a CPU, None for torch's own choice.
        gpu: Number of this process among those that share the machine's CUDA devices.

    Raises:
        InputError: If the model cannot be loaded.
    """

    def __init__(
        self,
        directory: Path,
        spec: TransformerSpec,
        *,
        pad: int,
        first: int = 0,
        layer: int = 0,
        threads: int | None = None,
        gpu: int = 0,
    ):
        import torch

        self._spec, self._pad, self._first = spec, pad, first
        device: str = spec.machine.device
        if device == "cuda":
            _usable_device("cuda")
            device = f"cuda:{gpu % torch.cuda.device_count()}"
        elif threads is not None:
            torch.set_num_threads(threads)
        model = _load_model(directory, spec)
        model.config.use_cache = False
        if 0 < layer < model.config.num_hidden_layers:
            model.layers, model.norm = model.layers[:layer], torch.nn.Identity()
        self._model = model.to(device).eval()
        self.hidden_size: int = model.config.hidden_size
        """Length of a hidden state."""

    def vectors(self, documents: Sequence[Sequence[list[int]]]) -> np.ndarray:
        """Pooled hidden states, averaged over each document's windows by their tokens.

        Args:
            documents: Token ids of every window of every document; windows of similar length are
                batched whatever document they are of.

        Returns:
            float32 [documents, d]; zero for a document without a window.
        """
        owners = [row for row, windows in enumerate(documents) for _ in windows]
        windows = [window for windows in documents for window in windows]
        counts = np.array([len(window) - self._first for window in windows], dtype=np.float32)
        pooled = np.zeros((len(windows), self.hidden_size), dtype=np.float32)
        for rows in batches([len(ids) for ids in windows], self._spec.machine.batch_tokens):
            pooled[rows] = self._forward([windows[row] for row in rows])
        if all(len(windows) == 1 for windows in documents):
            return pooled
        vectors = np.zeros((len(documents), self.hidden_size), dtype=np.float32)
        np.add.at(vectors, owners, pooled * counts[:, None])
        totals = np.bincount(owners, weights=counts, minlength=len(documents))
        return vectors / np.maximum(totals, 1).astype(np.float32)[:, None]

    def _forward(self, tokens: list[list[int]]) -> np.ndarray:
        """Pooled hidden states of one batch of token ids, float32 [rows, d]."""
        import torch

        lengths = [len(ids) for ids in tokens]
        ids = np.full((len(tokens), max(lengths)), self._pad)
        for row, of_row in zip(ids, tokens, strict=True):
            row[: len(of_row)] = of_row
        device = self._model.device
        with torch.inference_mode():
            lengths_B = torch.tensor(lengths, device=device)
            positions_L = torch.arange(ids.shape[1], device=device)
            mask_BL = positions_L < lengths_B[:, None]
            hidden_BLD = self._model(
                input_ids=torch.from_numpy(ids).to(device), attention_mask=mask_BL.long()
            ).last_hidden_state.float()
            if self._spec.pooling == "cls":
                pooled_BD = hidden_BLD[:, 0]
            elif self._spec.pooling == "last":
                rows_B = torch.arange(len(tokens), device=device)
                pooled_BD = hidden_BLD[rows_B, lengths_B - 1]
            else:
                counted_BL = mask_BL & (positions_L >= self._first)
                sums_BD = (hidden_BLD * counted_BL[..., None]).sum(1)
                pooled_BD = sums_BD / (lengths_B - self._first)[:, None]
            return pooled_BD.cpu().numpy()


def batches(lengths: list[int], budget: int) -> Iterator[list[int]]:
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


def _load_model(directory: Path, spec: TransformerSpec) -> Any:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.AutoModel.from_pretrained(
            directory,
            local_files_only=True,
            dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[spec.machine.dtype],
        )
    except Exception as error:  # every model class raises its own
        raise cannot_load(spec.name, error) from None


def cannot_load(name: str, error: Exception) -> InputError:
    """The error for an encoder whose files do not load."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return InputError(
        f"--encoder {name}: cannot be loaded ({reason}); give the directory of a Hugging Face "
        "model, a name on the Hub that this machine can reach, `minilm`, `lexical`, or "
        "`megatron:DIR`"
    )


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
