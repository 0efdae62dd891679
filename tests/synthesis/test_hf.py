from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_sbp.errors import InputError
from megatron_sbp.synthesis import hf
from megatron_sbp.synthesis.engine import END_OF_DOCUMENT, LENGTH, Continuation, Request, Sampling
from megatron_sbp.synthesis.hf import HuggingFaceEngine
from megatron_sbp.synthesis.shelves import Shelves, Sizes
from tests.synthesis.conftest import CONTEXT

NUCLEUS = Sampling(temperature=1.0, top_p=0.9, top_k=0)


def make(model: Path, eod: int, batch_size: int, sampling: Sampling = NUCLEUS) -> HuggingFaceEngine:
    return HuggingFaceEngine(
        model,
        eod=eod,
        sampling=sampling,
        batch_size=batch_size,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def requests(count: int, vocabulary: int) -> list[Request]:
    """Prompts of 2 to 79 tokens, up to 48 new tokens each, from seed 11."""
    random = np.random.default_rng(11)
    return [
        Request(
            number=number,
            prompt=random.integers(3, vocabulary, random.integers(2, 80)),
            uniforms=random.random(random.integers(1, 49)),
        )
        for number in range(count)
    ]


def outcome(continuations: Iterator[Continuation]) -> dict[int, tuple[list[int], int]]:
    return {one.number: (one.tokens.tolist(), one.finish_reason) for one in continuations}


@pytest.fixture(scope="module")
def eod(words_corpus) -> int:  # type: ignore[no-untyped-def]
    return words_corpus.tokenizer.eod


def naive(model: Path, eod: int, asked: Request) -> tuple[list[int], int]:
    """No cache, no batch: the whole text again for every token, and numpy in float64."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64).eval()
    text = asked.prompt.tolist()
    for uniform in asked.uniforms:
        with torch.no_grad():
            logits = network(torch.tensor([text])).logits[0, -1]
        probabilities = torch.softmax(logits, -1).numpy()
        order = np.argsort(-probabilities)
        ranked = probabilities[order]
        size = int(np.searchsorted(np.cumsum(ranked), NUCLEUS.top_p)) + 1
        cumulative = np.cumsum(ranked[:size])
        place = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        text.append(int(order[place]))
        if text[-1] == eod:
            return text[len(asked.prompt) : -1], END_OF_DOCUMENT
    return text[len(asked.prompt) :], LENGTH


def test_documents_are_those_of_a_naive_sampler(tiny_model: Path, eod: int) -> None:
    asked = requests(24, 512)
    # Fewer rows than documents, so that rows are refilled.
    made = outcome(make(tiny_model, eod, batch_size=7).generate(asked))
    assert made == {one.number: naive(tiny_model, eod, one) for one in asked}
    reasons = [reason for _, reason in made.values()]
    assert END_OF_DOCUMENT in reasons and LENGTH in reasons


def test_greedy_documents_are_those_of_transformers_generate(tiny_model: Path, eod: int) -> None:
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=0)
    network = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for one in requests(6, 512):
        made = outcome(make(tiny_model, eod, 4, greedy).generate([one]))[one.number][0]
        expected = network.generate(
            torch.from_numpy(one.prompt[None]),
            attention_mask=torch.ones(1, len(one.prompt), dtype=torch.int64),
            max_new_tokens=len(one.uniforms),
            do_sample=False,
            eos_token_id=eod,
            pad_token_id=eod,
        )[0, len(one.prompt) :].tolist()
        assert made == [token for token in expected if token != eod]


def test_a_model_that_gives_no_numbers_is_refused(
    tiny_model: Path, eod: int, tmp_path: Path
) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        network.model.norm.weight[3] = float("nan")
    network.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"document \d: the model gives logits of nan"):
        list(make(tmp_path, eod, batch_size=4).generate(requests(4, 512)))


def test_logits_do_not_depend_on_the_batch(
    tiny_model: Path, eod: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/synthesis.md, "Same bits": equal logits, bit for bit, for every batch size."""
    asked = requests(50, 512)

    def run(batch_size: int) -> tuple[dict[int, tuple[list[int], int]], set[bytes]]:
        seen: set[bytes] = set()

        def spy(logits: torch.Tensor, uniforms: torch.Tensor, how: Sampling) -> torch.Tensor:
            seen.update(row.numpy().tobytes() for row in logits)
            return original(logits, uniforms, how)

        monkeypatch.setattr(hf, "sample", spy)
        return outcome(make(tiny_model, eod, batch_size).generate(asked)), seen

    original = hf.sample
    reference = run(64)
    for batch_size in (1, 5, 33):
        documents, logits = run(batch_size)
        assert documents == reference[0]
        if products_do_not_depend_on_rows():
            assert logits == reference[1]


def test_documents_do_not_depend_on_what_is_fast_on_the_device(
    tiny_model: Path, eod: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's ways on a CPU: prompts read together, a wait before refilling, other shelves."""
    sizes = Sizes(least=32, steps=1, rows=3, slots=100)
    monkeypatch.setattr(hf, "_CPU", replace(hf._GPU, sizes=sizes, prompt_tokens=200, refill=4))
    asked = requests(24, 512)
    made = outcome(make(tiny_model, eod, batch_size=9).generate(asked))
    assert made == {one.number: naive(tiny_model, eod, one) for one in asked}


def test_a_document_may_end_at_once_and_with_it_all_others(tiny_model: Path) -> None:
    """One new token each, so that every row is refilled after every step."""
    asked = requests(40, 512)
    for one in asked:
        one.uniforms = one.uniforms[:1]
    ended = outcome(make(tiny_model, -1, batch_size=8).generate(asked))
    expected = {one.number: naive(tiny_model, -1, one) for one in asked}
    assert ended == expected
    # The same tokens when each of them ends its document.
    for number in (0, 1, 2):
        token = expected[number][0][0]
        alone = outcome(make(tiny_model, token, batch_size=8).generate([asked[number]]))
        assert alone == {number: ([], END_OF_DOCUMENT)}


def test_memory_follows_the_documents_at_work(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound in the docstring of ``Shelves``, after every document of a run."""
    made: list[Shelves] = []

    class Kept(Shelves):
        def __init__(self, *given: Any):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(hf, "Shelves", Kept)
    engine = make(tiny_model, -1, batch_size=40)
    random = np.random.default_rng(12)
    long = [
        Request(number=number, prompt=np.arange(3, 100), uniforms=random.random(25))
        for number in range(40)
    ]
    short = [
        Request(number=number, prompt=np.arange(3, 9), uniforms=random.random(4))
        for number in range(40, 200)
    ]
    for _ in engine.generate(long + short):
        (shelves,) = made
        for shelf in shelves:
            rows = sum(block.keys.shape[1] for block in shelf.blocks)
            assert rows < len(shelf.documents) + 2 * shelf.blocks[0].keys.shape[1]
            for document in shelf.documents:
                # A document that has just grown out of its room moves before the next step.
                assert document.position <= shelf.columns <= max(64, 1.25 * document.position + 64)


def products_do_not_depend_on_rows() -> bool:
    """Whether this machine's matrix products round a row the same among 32, 64 and 96 rows."""
    generator = torch.Generator().manual_seed(4)
    rows, weight = (torch.randn(size, 48, generator=generator) for size in (96, 512))
    whole = torch.nn.functional.linear(rows, weight)
    return all(
        torch.equal(torch.nn.functional.linear(rows[:count], weight), whole[:count])
        for count in (32, 64)
    )


def test_requests_are_taken_only_as_rows_become_free(tiny_model: Path, eod: int) -> None:
    """So that the stage can stop asking when it has enough."""
    taken = 0

    def one_by_one() -> Iterator[Request]:
        nonlocal taken
        for one in requests(30, 512):
            taken += 1
            yield one

    ended = 0
    for _ in make(tiny_model, eod, batch_size=4).generate(one_by_one()):
        ended += 1
        assert taken <= ended + 4
    assert taken == ended == 30


def test_a_document_may_fill_the_context(tiny_model: Path) -> None:
    prompt = np.arange(3, CONTEXT - 17)
    one = Request(number=0, prompt=prompt, uniforms=np.full(CONTEXT - len(prompt), 0.5))
    tokens, reason = outcome(make(tiny_model, -1, 1).generate([one]))[0]
    assert len(prompt) + len(tokens) == CONTEXT and reason == LENGTH


def test_a_model_without_full_attention_is_refused(tmp_path: Path) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, sliding_window=8,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="mistral does not attend to all tokens"):
        make(tmp_path, 0, 1)
