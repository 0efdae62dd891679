"""The ``vllm`` engine: vLLM on a Hugging Face directory, which may be an exported checkpoint.

A document has a seed of its own, which follows from its random numbers, so its random choices do
not depend on what else is at work. Rounding does: the kernels and the order of their sums are
chosen by the batch, and vLLM promises nothing there. Most documents come out the same for another
batch size or number of ranks, some do not. They are others than those of the hf and megatron
engines, which draw by inverting the distribution; with temperature 0 they are the same but for
rounding.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError, require
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.engine import Continuation, EngineOptions, Request, Sampling

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
_ENVIRONMENT = {
    # One process schedules and computes, in an order that follows from the requests alone.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class VllmEngine:
    """A model in vLLM, with continuous batching.

    Args:
        directory: Hugging Face directory.
        sampling: How to draw.
        options: Batch size, type, parallelism, memory.
        ranks: All ranks of the run, each of which has a model of its own.
        eod: Token that ends a document.

    Raises:
        InputError: If vLLM is not installed, not built for the device, or cannot load the model.
    """

    def __init__(
        self,
        directory: Path,
        sampling: Sampling,
        options: EngineOptions,
        ranks: Ranks,
        *,
        eod: int,
    ):
        _take_devices(options, ranks)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        vllm = require("vllm", package="vllm", extra="synthesis")
        self._vllm, self._eod, self._sampling = vllm, eod, sampling
        self._batch_size = options.batch_size
        self._engine = _load(vllm, directory, options)
        config = self._engine.model_config
        self.context: int = config.max_model_len
        self.vocab_size: int = config.get_vocab_size()

    def generate(self, requests: Iterable[Request]) -> Iterator[Continuation]:
        """Continue every prompt; see ``Engine.generate``."""
        waiting = iter(requests)
        work: dict[str, Request] = {}
        try:
            while True:
                while len(work) < self._batch_size and (request := next(waiting, None)):
                    work[str(request.number)] = request
                    self._begin(request)
                if not work:
                    return
                for output in self._engine.step():
                    if output.finished:
                        tokens = list(output.outputs[0].token_ids)
                        yield Continuation.of(work.pop(output.request_id), tokens, self._eod)
        finally:
            self._engine.abort_request(list(work))

    def _begin(self, request: Request) -> None:
        parameters = self._vllm.SamplingParams(
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            top_k=self._sampling.top_k,
            seed=request.seed,
            max_tokens=len(request.uniforms),
            stop_token_ids=[self._eod],
            ignore_eos=True,
            detokenize=False,
        )
        prompt = {"type": "token", "prompt_token_ids": request.prompt.tolist()}
        self._engine.add_request(str(request.number), prompt, parameters)


def _take_devices(options: EngineOptions, ranks: Ranks) -> None:
    """Show this process its own CUDA devices only; vLLM begins with the first one it sees.

    Raises:
        InputError: If the machine has too few.
    """
    # Or asking torch would settle which devices this process sees.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    if options.device == "cpu" or not torch.cuda.is_available():
        if options.device == "cuda":
            raise InputError("--device cuda: there is no CUDA device here; use --device cpu")
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    first = ranks.local_rank * options.devices
    own = devices[first : first + options.devices]
    if len(own) < options.devices:
        raise InputError(
            f"{ranks.local_size} ranks on this machine take {options.devices} devices each, and it "
            f"has {len(devices)}; start fewer ranks or lower the parallel sizes"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(own)


def _load(vllm: Any, directory: Path, options: EngineOptions) -> Any:
    try:
        llm = vllm.LLM(
            str(directory),
            skip_tokenizer_init=True,
            generation_config="vllm",  # What the directory says of sampling does not count.
            dtype=_DTYPES[options.dtype],
            tensor_parallel_size=options.tensor_model_parallel_size,
            pipeline_parallel_size=options.pipeline_model_parallel_size,
            gpu_memory_utilization=options.gpu_memory_share,
            max_num_seqs=options.batch_size,
            enable_prefix_caching=False,
        )
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{directory}: vLLM cannot load it ({reason}); see --gpu-memory-share, --dtype and the "
            "parallel sizes, or use --engine hf"
        ) from None
    return llm.llm_engine
