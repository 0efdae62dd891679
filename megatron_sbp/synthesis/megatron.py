"""The ``megatron`` engine: Megatron's dynamic inference, in direct mode, on its own checkpoint.

A document has its own random numbers here too: Megatron's sampling is replaced by the one of the hf
engine, which is told them. What is left is rounding. Rows of a batch go through the same kernels,
and which ones these are depends on how many documents are at work and how long they are; so the
same run with the same ranks and batch size gives the same documents wherever the kernels are
deterministic, and any other run gives most of them. On a CPU in fp32 the tests find the documents
of the hf engine, whatever the parallelism and the batch.

The ranks of one model, with tensor or pipeline parallelism, work on the same documents in step. The
first of them takes the requests, tells the others, and is the only one that gives results.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from typing import Any

import torch
from megatron.core.inference.apis import MegatronLLM, SamplingParams
from megatron.core.inference.config import InferenceConfig
from megatron.core.inference.sampling.base import Sampling as MegatronSampling

from megatron_sbp.errors import InputError
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis import megatron_model
from megatron_sbp.synthesis.engine import Continuation, EngineOptions, Request, Sampling
from megatron_sbp.synthesis.sampling import check_finite, sample

_BLOCK = 256  # tokens of a block of keys and values; FlashAttention 2 needs a multiple of it
_ROUND = 64  # Megatron rounds requests and tokens of a step up to multiples of this


class MegatronEngine:
    """A checkpoint of any tensor and pipeline parallelism, loaded into that of the options.

    Args:
        checkpoint: The model.
        sampling: How to draw.
        options: Batch size, type, parallelism, memory.
        ranks: All ranks of the run; those of one model follow each other.
        device: Of this rank.
        eod: Token that ends a document.
        vocab_size: Number of ids of the tokenizer; others, which pad the vocabulary, are not drawn.

    Raises:
        InputError: If the model cannot be built so, or no document fits into the memory.
    """

    def __init__(
        self,
        checkpoint: MegatronCheckpoint,
        sampling: Sampling,
        options: EngineOptions,
        ranks: Ranks,
        device: torch.device,
        *,
        eod: int,
        vocab_size: int,
    ):
        self._eod, self._batch_size = eod, options.batch_size
        self._group = megatron_model.start(options, ranks, device)
        self._first = ranks.rank % options.ranks_per_worker == 0
        self._work: dict[int, Request] = {}
        self._ids = count()
        self.context: int = checkpoint.args.max_position_embeddings
        self.vocab_size: int = vocab_size
        model = megatron_model.build(checkpoint, options, device)
        llm = MegatronLLM(
            model=model,
            tokenizer=_NoText(),
            inference_config=self._memory(model.config, options, device),
            use_coordinator=False,
        )
        llm.controller._sampling = _OwnNumbers(self._work, sampling, self.vocab_size)
        self._engine = llm.engine

    def _memory(self, config: Any, options: EngineOptions, device: torch.device) -> InferenceConfig:
        """Room for a batch of documents that fill the context, or what the memory has."""
        heads = config.num_query_groups // options.tensor_model_parallel_size
        layers = config.num_layers // options.pipeline_model_parallel_size
        itemsize = config.params_dtype.itemsize
        block = 2 * layers * _BLOCK * heads * config.kv_channels * itemsize
        per_document = -(-self.context // _BLOCK) * block
        size = options.batch_size * per_document + block  # one block is Megatron's own
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            size = min(size, free - int((1 - options.gpu_memory_share) * total))
            if size < per_document + block:
                raise InputError(
                    f"--gpu-memory-share {options.gpu_memory_share}: leaves {max(size, 0)} bytes "
                    f"beside the weights, and one document of {self.context} tokens takes "
                    f"{per_document}; raise it or the parallel sizes"
                )
        unit = _ROUND * options.tensor_model_parallel_size
        requests = -(-options.batch_size // unit) * unit
        return InferenceConfig(
            block_size_tokens=_BLOCK,
            buffer_size_gb=size / 2**30,
            max_requests=requests,
            max_tokens=max(16384, self.context, requests),
            max_sequence_length=self.context,
        )

    @torch.inference_mode()
    def generate(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """Continue every prompt; see ``Engine.generate``."""
        waiting = iter(requests)
        try:
            while (new := self._agree(waiting)) is not None:
                for request in new:
                    self._begin(request)
                if not self._work:
                    return
                for record in self._engine.step_modern()["finished_request_records"]:
                    continuation = self._end(record.merge())
                    if self._first:
                        yield continuation
        except GeneratorExit:  # The run has enough; only the first rank is ever asked for more.
            self._share(None)
            raise
        finally:
            self._work.clear()
            self._engine.reset()

    def _agree(self, waiting: Iterator[Request]) -> list[Request] | None:
        """What the ranks of this model begin before the next step; None: they stop."""
        if not self._first:
            return self._share(None)
        try:
            new = list(islice(waiting, self._batch_size - len(self._work)))
        except BaseException:
            self._share(None)
            raise
        return self._share(new)

    def _share(self, new: list[Request] | None) -> list[Request] | None:
        """The first rank's value on all ranks of this model."""
        if self._group.size() == 1:
            return new
        values = [new]
        torch.distributed.broadcast_object_list(values, group=self._group, group_src=0)
        return values[0]

    def _begin(self, request: Request) -> None:
        number = next(self._ids)
        self._work[number] = request
        parameters = SamplingParams(
            num_tokens_to_generate=len(request.uniforms), termination_id=self._eod
        )
        self._engine.add_request(number, request.prompt.tolist(), parameters)

    def _end(self, finished: Any) -> Continuation:
        request = self._work.pop(finished.request_id)
        if finished.failed():
            raise InputError(
                f"document {request.number}: Megatron refused its prompt of {len(request.prompt)} "
                f"tokens ({finished.events[-1].payload!r}); lower --max-seed-tokens"
            )
        return Continuation.of(request, finished.generated_tokens, self._eod)


class _OwnNumbers(MegatronSampling):
    """Draws the tokens of every document with its own random numbers.

    Args:
        work: Megatron's number of a request -> the request.
        sampling: How to draw.
        vocab_size: Ids from this one on only pad the vocabulary.
    """

    def __init__(self, work: Mapping[int, Request], sampling: Sampling, vocab_size: int):
        self._work, self._sampling, self._vocab_size = work, sampling, vocab_size

    def sample_kernel(
        self,
        logits: torch.Tensor,
        n: int,
        context: Any,
        *,
        gather_indices: torch.Tensor | None = None,
        output: torch.Tensor | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """Draw the next token of the ``n`` requests at work; see Megatron's ``Sampling``."""
        active = slice(context.paused_request_count, context.total_request_count)
        requests = [self._work[number] for number in context.request_ids[active].tolist()]
        uniforms = [
            request.uniforms[length - len(request.prompt)]
            for request, length in zip(
                requests, context.get_active_sequence_lengths().tolist(), strict=True
            )
        ]
        rows = logits[:n] if gather_indices is None else logits[gather_indices[:n]]
        rows = rows[:, : self._vocab_size]
        check_finite(rows, [request.number for request in requests])
        decisive = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
        tokens = sample(rows, decisive, self._sampling)
        return tokens if output is None else output.copy_(tokens)

    def log_probs_kernel(self, logits: torch.Tensor, context: Any, **_: Any) -> torch.Tensor:
        """Not asked for."""
        raise NotImplementedError


class _NoText:
    """A tokenizer that saves Megatron the work of turning tokens into text nobody reads."""

    eod = None

    def detokenize(self, tokens: list[int]) -> str:
        """No text."""
        return ""
