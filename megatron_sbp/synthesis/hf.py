"""The ``hf`` engine: a Transformers model, documents that end and begin apart.

All documents at work advance together, one token a step; what ends makes room for the next prompt
at once. The model has no cache of Transformers: ``shelves`` keeps keys and values, each document
from its first column on, so nothing is padded on the left.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer

from megatron_sbp.errors import InputError
from megatron_sbp.synthesis.engine import (
    END_OF_DOCUMENT,
    LENGTH,
    Continuation,
    Request,
    Sampling,
)
from megatron_sbp.synthesis.sampling import check_finite, sample
from megatron_sbp.synthesis.shelves import (
    ATTENTION,
    Caller,
    Document,
    Prompts,
    Shapes,
    Shelves,
    Sizes,
    Step,
)

# A step runs on a multiple of so many rows, and a document has room for a multiple of so many
# columns. Matrix products then take the same kernels and vector loops have no remainder, so that a
# document's numbers do not depend on its neighbours.
_ROWS, _COLUMNS = 32, 64


@dataclass(kw_only=True, slots=True, frozen=True)
class _Habits:
    """What is fast on a kind of device."""

    sizes: Sizes
    prompt_tokens: int
    """Most tokens of prompts that are read together, padding included; a longer one is alone."""
    refill: int
    """Prompts are read when the batch lacks its size divided by this, or one."""


# Alone, a prompt's numbers depend on no other's, and a CPU is busy with it. A GPU waits for the
# launch of every kernel, so it gets fewer and larger ones.
_CPU = _Habits(
    sizes=Sizes(least=_COLUMNS, steps=4, rows=16, slots=8192), prompt_tokens=0, refill=1 << 30
)
_GPU = _Habits(
    sizes=Sizes(least=4 * _COLUMNS, steps=2, rows=32, slots=32768), prompt_tokens=16384, refill=16
)


class HuggingFaceEngine:
    """A causal language model of Transformers with full attention in every layer.

    Memory beside the model's: keys and values of the documents at work (see ``shelves.Shelves``).

    Args:
        directory: A Hugging Face model directory.
        eod: Token that ends a document.
        sampling: How to draw.
        batch_size: Documents at work at a time.
        dtype: What to compute in.
        device: Where to compute.

    Raises:
        InputError: If the model cannot be loaded, keeps other states than keys and values of all
            tokens, or does its attention itself.
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
        self._device, self._dtype = device, dtype
        self._habits = _CPU if device.type == "cpu" else _GPU
        self._model = _load(directory, dtype).to(device).eval()
        config = self._model.config
        if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=config).layers):
            raise InputError(
                f"{directory}: {config.model_type} does not attend to all tokens in every layer, "
                "which --engine hf needs; use a model with full attention"
            )
        self.context: int = config.max_position_embeddings
        self.vocab_size: int = config.vocab_size
        self._layers: int = config.num_hidden_layers
        self._like = self._shape(directory)

    @torch.inference_mode()
    def _shape(self, directory: str | Path) -> tuple[torch.Tensor, torch.Tensor]:
        """What the model keeps of a token in every layer."""
        shapes = Shapes()
        self._call(torch.zeros(1, 1, dtype=torch.int64), None, shapes)
        if set(shapes.seen) != set(range(self._layers)):
            raise InputError(
                f"{directory}: {self._model.config.model_type} leaves the attention of "
                f"{len(shapes.seen)} of {self._layers} layers to others, and --engine hf needs "
                "all; use another model"
            )
        return shapes.seen[0]

    def _call(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        caller: Caller,
        *,
        logits: bool = False,
    ) -> Any:
        """Call the model with tokens int64 [rows, tokens]."""
        network = self._model if logits else self._model.base_model
        return network(
            input_ids=tokens.to(self._device),
            position_ids=positions,
            use_cache=False,
            caller=caller,
        )

    @torch.inference_mode()
    def generate(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """Continue every prompt; see ``Engine.generate``."""
        waiting = iter(requests)
        key, value = self._like
        shelves = Shelves(self._layers, key, value, self._habits.sizes)
        while True:
            lacking = self._batch_size - len(shelves)
            if lacking >= min(self._batch_size // self._habits.refill + 1, self._batch_size):
                self._read(shelves, list(islice(waiting, lacking)))
            if not len(shelves):
                return
            self._step(shelves)
            for shelf in list(shelves):
                for index in reversed(range(len(shelf.documents))):
                    continuation = self._ended(shelf.documents[index])
                    if continuation is not None:
                        shelf.remove(index)
                        yield continuation

    def _read(self, shelves: Shelves, requests: Sequence[Request]) -> None:
        """Read everything but the last token of the prompts."""
        documents = sorted(
            (Document(request=request) for request in requests),
            key=lambda document: document.position,
        )
        while documents:
            longest = documents[-1].position
            together = max(self._habits.prompt_tokens // longest, 1)
            batch = documents[-together:]
            del documents[-together:]
            prompts = torch.zeros(len(batch), longest, dtype=torch.int64)
            for row, document in enumerate(batch):
                prompt = torch.from_numpy(document.request.prompt[:-1])
                prompts[row, : len(prompt)] = prompt
            places = [(*shelves.add(document), document.position) for document in batch]
            self._call(prompts, None, Prompts(places))

    def _step(self, shelves: Shelves) -> None:
        """Draw the next token of every document."""
        shelves.make_room()
        documents = [document for shelf in shelves for document in shelf.documents]
        idle = [0] * (-len(documents) % _ROWS)
        positions = torch.tensor([document.position for document in documents] + idle)
        newest = torch.tensor([document.newest for document in documents] + idle)
        positions = positions.to(self._device)
        logits = self._call(
            newest[:, None],
            positions[:, None],
            Step(shelves, positions, self._dtype),
            logits=True,
        ).logits[: len(documents), -1]
        check_finite(logits, [document.request.number for document in documents])
        uniforms = torch.tensor([d.uniform for d in documents], dtype=torch.float64)
        tokens = sample(logits, uniforms.to(self._device), self._sampling)
        for document, token in zip(documents, tokens.tolist(), strict=True):
            document.tokens.append(token)

    def _ended(self, document: Document) -> Continuation | None:
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


def _load(directory: str | Path, dtype: torch.dtype) -> Any:
    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{directory}: cannot be loaded as a causal language model ({reason}); give a "
            "Hugging Face directory or one that Megatron saved to"
        ) from None
