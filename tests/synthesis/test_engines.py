"""Which engine there is, and what is wrong with what was asked of one."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.synthesis.engine import END_OF_DOCUMENT, LENGTH, Continuation, EngineOptions
from tests.conftest import ROOT, run_command
from tests.synthesis import continuations as asked

TOOL = ROOT / "tools" / "synthesize.py"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "--batch-size 0: must be at least 1"),
        ({"tensor_model_parallel_size": 0}, "--tensor-model-parallel-size 0: must be at least 1"),
        ({"gpu_memory_share": 1.5}, "--gpu-memory-share 1.5: must be above 0 and at most 1"),
        ({"tensor_model_parallel_size": 2}, "--engine hf has the whole model on one device"),
        ({"pipeline_model_parallel_size": 2}, "--engine hf has the whole model on one device"),
        ({"fp8_format": "e4m3"}, "--engine hf does not compute in FP8; use megatron"),
        ({"fp8_format": "hybrid", "engine": "vllm"}, "--engine vllm does not compute in FP8"),
    ],
)
def test_options_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        EngineOptions(**fields)
    assert message in str(caught.value)


def test_ranks_of_one_model_are_one_worker() -> None:
    sizes = {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 3}
    megatron = EngineOptions(engine="megatron", **sizes)  # type: ignore[arg-type]
    assert [megatron.workers(ranks) for ranks in (6, 12)] == [1, 2]
    with pytest.raises(InputError, match="takes 6 ranks, and there are 8; start a multiple"):
        megatron.workers(8)
    vllm = EngineOptions(engine="vllm", **sizes)  # type: ignore[arg-type]
    assert vllm.workers(8) == 8 and vllm.devices == 6


def test_requests_have_seeds_that_follow_from_their_random_numbers() -> None:
    seeds = [request.seed for request in asked.requests()]
    assert len(set(seeds)) == len(seeds)
    assert [seed / 2**53 for seed in seeds] == [r.uniforms[0] for r in asked.requests()]


@pytest.mark.parametrize(
    ("drawn", "kept", "reason"),
    [([5, 6, 9], [5, 6], END_OF_DOCUMENT), ([9], [], END_OF_DOCUMENT), ([9, 6], [9, 6], LENGTH)],
)
def test_a_continuation_has_no_end_of_document(
    drawn: list[int], kept: list[int], reason: int
) -> None:
    request = asked.requests(1)[0]
    one = Continuation.of(request, drawn, eod=9)
    assert one.tokens.tolist() == kept and one.tokens.dtype == np.int64
    assert (one.number, one.finish_reason) == (request.number, reason)


def refused(*flags: object) -> str:
    """The one line of a command that is refused before it makes anything."""
    process = run_command(TOOL, *map(str, flags))
    assert process.returncode == 2, process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    return process.stderr


def test_an_engine_that_is_not_installed_is_named_with_the_cure(
    tiny_model: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    line = refused(
        *("--engine", "vllm", "--load", tiny_model, "--corpus", words_corpus.prefixes[0]),
        *("--num-tokens", 9, "--model-generation", 0, "--output-prefix", tmp_path / "box" / "new"),
    )
    assert "cannot import vllm" in line
    assert "pip install 'megatron_sbp[synthesis]'" in line
    assert not list(tmp_path.iterdir())


def test_megatron_needs_what_megatron_saved(
    tiny_model: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    pytest.importorskip("einops")
    line = refused(
        *("--engine", "megatron", "--load", tiny_model, "--corpus", words_corpus.prefixes[0]),
        *("--num-tokens", 9, "--model-generation", 0, "--output-prefix", tmp_path / "box" / "new"),
    )
    assert f"{tiny_model}: is a Hugging Face directory, and --engine megatron needs one" in line
    assert not list(tmp_path.iterdir())


def test_too_few_ranks_for_one_model_are_refused(
    checkpoints: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    pytest.importorskip("einops")
    line = refused(
        *("--engine", "megatron", "--tensor-model-parallel-size", 2),
        *("--load", checkpoints / "qwen3", "--corpus", words_corpus.prefixes[0]),
        *("--num-tokens", 9, "--model-generation", 0, "--output-prefix", tmp_path / "box" / "new"),
    )
    assert "a model of --engine megatron takes 2 ranks, and there are 1" in line
    assert not list(tmp_path.iterdir())
