"""The ``hf`` engine: a Transformers model with a key-value cache whose rows are refilled.

Every row of the cache is one document at work; its tokens stand in columns 0, 1, 2, ... whatever
the other rows hold, so nothing is padded on the left. A prompt is read on its own; then all rows
advance together, one token a step. The row of a document that ends goes to the next prompt at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from megatron_sbp.errors import InputError
from megatron_sbp.synthesis.engine import (
    END_OF_DOCUMENT,
    LENGTH,
    Continuation,
    Request,
    Sampling,
)
from megatron_sbp.synthesis.sampling import sample

# A step runs on a multiple of so many rows and columns. Matrix products then take the same kernels
# and vector loops have no remainder, so that a document's numbers do not depend on its neighbours.
_ROWS, _COLUMNS = 32, 64


@dataclass(kw_only=True, slots=True, eq=False)
class _Document:
    """A document at work."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    """What has been drawn so far."""

    @property
    def position(self) -> int:
        """Column of the newest token, which is the one that the model reads next."""
        return len(self.request.prompt) - 1 + len(self.tokens)

    @property
    def newest(self) -> int:
        """The newest token."""
        return self.tokens[-1] if self.tokens else int(self.request.prompt[-1])

    @property
    def uniform(self) -> float:
        """The number that decides the next token."""
        return float(self.request.uniforms[len(self.tokens)])


class _RowLayer(DynamicLayer):
    """Keys and values of one layer of the model, [rows, heads, columns, channels].

    Args:
        rows: Number of rows.
        device: Where to keep them.
    """

    keys: torch.Tensor
    values: torch.Tensor
    is_initialized: bool

    def __init__(self, rows: int, device: torch.device):
        super().__init__()
        self._rows = torch.arange(rows, device=device)
        self._positions = self._rows
        self._columns = 0

    def place(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Begin a row with the keys and values of a prompt, [heads, tokens, channels]."""
        heads, tokens, channels = keys.shape
        if not self.is_initialized:
            shape = (len(self._rows), heads, _COLUMNS, channels)
            self.keys, self.values = keys.new_zeros(shape), values.new_zeros(shape)
            self.is_initialized = True
        self._reserve(tokens)
        self.keys[row, :, :tokens] = keys
        self.values[row, :, :tokens] = values

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        self.keys[target] = self.keys[source]
        self.values[target] = self.values[source]

    def advance(self, positions: torch.Tensor, columns: int) -> None:
        """Say where the next tokens stand (int64 [rows]) and how many columns they look at."""
        self._positions, self._columns = positions, columns
        self._reserve(columns)

    def _reserve(self, columns: int) -> None:
        missing = columns - self.keys.shape[2]
        if missing > 0:
            missing = max(missing, self.keys.shape[2] // 2)
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, missing))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, missing))

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one token per row, [rows, heads, 1, channels]; return what is attended to."""
        rows = len(key_states)
        self.keys[self._rows[:rows], :, self._positions] = key_states[:, :, 0]
        self.values[self._rows[:rows], :, self._positions] = value_states[:, :, 0]
        return self.keys[:rows, :, : self._columns], self.values[:rows, :, : self._columns]


class HuggingFaceEngine:
    """A causal language model of Transformers with full attention in every layer.

    Args:
        directory: A Hugging Face model directory.
        eod: Token that ends a document.
        sampling: How to draw.
        batch_size: Documents at work at a time.
        dtype: What to compute in.
        device: Where to compute.

    Raises:
        InputError: If the model cannot be loaded or keeps other states than keys and values of all
            tokens.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        eod: int,
        sampling: Sampling,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self._eod, self._sampling, self._batch_size = eod, sampling, batch_size
        self._device = device
        self._model = _load(directory, dtype).to(device).eval()
        config = self._model.config
        if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
            raise InputError(
                f"{directory}: {config.model_type} does not attend to all tokens in every layer, "
                "which --engine hf needs; use a model with full attention"
            )
        self.context: int = config.max_position_embeddings
        self.vocab_size: int = config.vocab_size
        rows = -(-batch_size // _ROWS) * _ROWS
        self._layers = [_RowLayer(rows, device) for _ in range(config.num_hidden_layers)]
        self._cache = Cache(layers=list(self._layers))

    @torch.inference_mode()
    def generate(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """Continue every prompt; see ``Engine.generate``."""
        waiting = iter(requests)
        documents: list[_Document] = []  # by row
        while True:
            while len(documents) < self._batch_size and (request := next(waiting, None)):
                self._read_prompt(request, row=len(documents))
                documents.append(_Document(request=request))
            if not documents:
                return
            self._step(documents)
            for row in reversed(range(len(documents))):
                continuation = self._ended(documents[row])
                if continuation is not None:
                    self._close(documents, row)
                    yield continuation

    def _read_prompt(self, request: Request, row: int) -> None:
        """Fill a row with everything before the last token of the prompt."""
        prompt = torch.from_numpy(request.prompt[None, :-1]).to(self._device)
        cache = DynamicCache(config=self._model.config)
        self._model.base_model(input_ids=prompt, past_key_values=cache, use_cache=True)
        for ours, theirs in zip(self._layers, cache.layers, strict=True):
            ours.place(row, theirs.keys[0], theirs.values[0])

    def _step(self, documents: Sequence[_Document]) -> None:
        """Draw the next token of every document."""
        idle = [0] * (-len(documents) % _ROWS)
        positions = torch.tensor([document.position for document in documents] + idle)
        newest = torch.tensor([document.newest for document in documents] + idle)
        columns = -(-(int(positions.max()) + 1) // _COLUMNS) * _COLUMNS
        positions, newest = positions.to(self._device), newest.to(self._device)
        for layer in self._layers:
            layer.advance(positions, columns)
        visible = torch.arange(columns, device=self._device) <= positions[:, None]
        logits = self._model(
            input_ids=newest[:, None],
            position_ids=positions[:, None],
            attention_mask=visible[:, None, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[: len(documents), -1]
        uniforms = torch.tensor([d.uniform for d in documents], dtype=torch.float64)
        tokens = sample(logits, uniforms.to(self._device), self._sampling)
        for document, token in zip(documents, tokens.tolist(), strict=True):
            document.tokens.append(token)

    def _ended(self, document: _Document) -> Continuation | None:
        """The result of a document that has ended."""
        tokens, request = document.tokens, document.request
        if tokens[-1] == self._eod:
            tokens, reason = tokens[:-1], END_OF_DOCUMENT
        elif len(tokens) == len(request.uniforms):
            reason = LENGTH
        else:
            return None
        return Continuation(
            number=request.number, tokens=np.array(tokens, np.int64), finish_reason=reason
        )

    def _close(self, documents: list[_Document], row: int) -> None:
        """Take a document out; the one in the last row takes its place."""
        last = documents.pop()
        if row < len(documents):
            documents[row] = last
            for layer in self._layers:
                layer.move(len(documents), row)


def _load(directory: str | Path, dtype: torch.dtype) -> Any:
    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa", local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{directory}: cannot be loaded as a causal language model ({reason}); give a "
            "Hugging Face directory or one that Megatron saved to"
        ) from None
