"""Judges behind an endpoint and in a directory, the answers kept, and the planted cases."""

import re
import shutil
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp.embedding.transformer import Machine
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.judge import (
    NON_FACTUAL,
    PAIR_IRRELEVANCE,
    Answers,
    swap_facts,
    tally,
)
from megatron_sbp.evaluation.judge_endpoint import EndpointJudge
from megatron_sbp.evaluation.judge_model import ModelJudge
from tests.evaluation.endpoint import Endpoint, serving

BUSY = (429, {"Retry-After": "0"}, '{"error": "slow down"}')


def yes_if_even(prompt: str) -> str:
    return "Yes." if int(prompt.split()[-1]) % 2 == 0 else "no"


def judge(endpoint: Endpoint, **options: Any) -> EndpointJudge:
    given: dict[str, Any] = {"key": None, "tokens": 16, "concurrency": 4, "timeout": 10}
    return EndpointJudge(endpoint.url, "tester", **given | {"wait": 0.001} | options)


def said(endpoint: Endpoint, count: int = 20, **options: Any) -> list[bool | None]:
    answers = dict(judge(endpoint, **options).ask([f"is it even? {n}" for n in range(count)]))
    return [answers[number].yes for number in range(count)]


EVEN = [number % 2 == 0 for number in range(20)]


# Behind an endpoint


def test_every_prompt_is_asked_once_and_the_answers_keep_their_places() -> None:
    with serving(yes_if_even) as endpoint:
        assert said(endpoint, key="secret") == EVEN
    assert len(endpoint.requests) == 20
    assert set(endpoint.keys) == {"Bearer secret"}
    assert {body["model"] for body in endpoint.requests} == {"tester"}
    assert {body["temperature"] for body in endpoint.requests} == {0}
    assert {body["max_tokens"] for body in endpoint.requests} == {16}


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        (429, {"Retry-After": formatdate(0, usegmt=True)}, ""),
        (429, {"Retry-After": "soon"}, ""),
        (500, {}, "oops"),
        (503, {"Retry-After": "0"}, ""),
        (200, {}, "this is not JSON"),
        (200, {}, '{"choices": []}'),
        (200, {}, '["a list"]'),
        (200, {}, '{"choices": [{"message": {"content": 7}}]}'),
        (200, {"Content-Length": "1000"}, '{"cut off'),
        None,
    ],
    ids=lambda trouble: "closed" if trouble is None else f"{trouble[0]} {trouble[2][:12]}",
)
def test_what_may_pass_is_tried_again(trouble: tuple[int, dict[str, str], str] | None) -> None:
    with serving(yes_if_even, [trouble] * 3) as endpoint:
        assert said(endpoint, timeout=1) == EVEN
    assert len(endpoint.requests) == 20


def test_an_endpoint_that_never_answers_is_an_error() -> None:
    with (
        serving(yes_if_even, [BUSY] * 100) as endpoint,
        pytest.raises(InputError, match=r"tester gives no answer after 3 attempts \(HTTP 429"),
    ):
        said(endpoint, attempts=3)


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_not_repeated(status: int) -> None:
    with (
        serving(yes_if_even, [(status, {}, "no\nentry")] * 9) as endpoint,
        pytest.raises(InputError, match=f"after 1 attempts .HTTP {status} no entry.; check"),
    ):
        said(endpoint, count=1)
    assert len(endpoint.keys) == 1


def test_nobody_there_is_an_error() -> None:
    with serving(yes_if_even) as endpoint:
        url = endpoint.url
    asked = EndpointJudge(
        url, "x", key=None, tokens=1, concurrency=1, timeout=1, attempts=2, wait=0.001
    )
    with pytest.raises(InputError, match=re.escape(url) + ".*refused"):
        list(asked.ask(["hello"]))


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("No, they are not.", False),
        ("**Yes**", True),
        ("<think>yes or no? Rather no.</think>\n\nYes", True),
        ("nobody knows", None),
        ("I would say yes", None),
        ("", None),
    ],
)
def test_answers_are_read(answer: str, yes: bool | None) -> None:
    with serving(lambda _: answer) as endpoint:
        assert said(endpoint, count=1) == [yes]


def test_the_description_names_what_answered(tmp_path: Path) -> None:
    """Also when every answer was there already."""
    with serving(yes_if_even) as endpoint:
        asked = judge(endpoint, key="secret")
        Answers(tmp_path / "answers", asked).verdicts(["even? 2"], "test")
    described = Answers(tmp_path / "answers", asked).description()
    assert described["answered_by"] == ["tester-2026-11"]
    assert "secret" not in str(described)


# Answers kept


def test_an_interrupted_run_pays_for_nothing_twice(tmp_path: Path) -> None:
    cases = {"some": [{"document": f"text {number}"} for number in range(30)]}

    def rule(prompt: str) -> str:
        return "yes" if "text 1" in prompt else "no"

    path = tmp_path / "answers.jsonl"
    with serving(rule) as endpoint:
        stops = judge(endpoint, attempts=1, concurrency=1)
        first = {"some": cases["some"][:12]}
        assert tally(NON_FACTUAL, first, Answers(path, stops))["some"].found == 3
        endpoint.troubles += [(401, {}, "out of credit")] * 50
        with pytest.raises(InputError, match="out of credit"):
            tally(NON_FACTUAL, cases, Answers(path, stops))
        endpoint.troubles.clear()
        with open(path, "a") as file:
            file.write('{"prompt": "torn')
        result = tally(NON_FACTUAL, cases, Answers(path, judge(endpoint)))["some"]
        assert len(endpoint.requests) == 30
        assert tally(NON_FACTUAL, cases, Answers(path, judge(endpoint)))["some"] == result
        assert len(endpoint.requests) == 30
    assert result.counts() == {"asked": 30, "found": 11, "unanswered": 0}


def test_defects_are_what_the_question_calls_so(tmp_path: Path) -> None:
    """Related is no defect of a pair; false is one of a document; neither is not counted."""
    said = {"a": "yes", "b": "no", "c": "maybe"}
    cases = {key: [{"document": key, "d1": key, "d2": key}] * 2 for key in said}

    def rule(prompt: str) -> str:
        return next(said[key] for key in said if f"\n{key}\n" in prompt)

    with serving(rule) as endpoint:
        answers = Answers(tmp_path / "answers", judge(endpoint))
        false = tally(NON_FACTUAL, cases, answers)
        apart = tally(PAIR_IRRELEVANCE, cases, answers)
    assert [one.defects for one in false.values()] == [[True] * 2, [False] * 2, [None] * 2]
    assert [one.defects for one in apart.values()] == [[False] * 2, [True] * 2, [None] * 2]


def test_braces_in_documents_are_text(tmp_path: Path) -> None:
    assert "{d1} {0} {" in NON_FACTUAL.prompt(document="{d1} {0} {")


# Planted falsehoods


def test_facts_change_places() -> None:
    text = "The treaty of Vienna was signed in 1815 by Russia. Paris had 3.5 more, Prussia 12."
    assert swap_facts(text) == (
        "The treaty of Russia was signed in 3.5 by Prussia. Paris had 12 more, Vienna 1815."
    )


@pytest.mark.parametrize("text", ["", "Nothing here but words.", "In 1815 and again in 1815."])
def test_a_text_without_facts_is_not_made_false(text: str) -> None:
    assert swap_facts(text) is None


# A local model


def test_a_local_model_answers_with_the_more_probable_word(tiny_judge: Path) -> None:
    """Compared with the softmax in float64 of another forward pass."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_judge)
    network = AutoModelForCausalLM.from_pretrained(tiny_judge, dtype=torch.float64).eval()
    first = {
        word: {tokenizer(form)["input_ids"][0] for form in forms}
        for word, forms in {
            "yes": ["yes", "Yes", "YES", " yes", " Yes", " YES"],
            "no": ["no", "No", "NO", " no", " No", " NO"],
        }.items()
    }
    prompts = [f"word{number} word{7 * number} is it so?" for number in range(12)]
    judge = ModelJudge(str(tiny_judge), Machine.resolve("fp32", "cpu"))
    for place, verdict in judge.ask(prompts):
        tokens = tokenizer(prompts[place] + "\nAnswer:", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            p = torch.softmax(network(tokens).logits[0, -1], -1)
        yes, no = (
            sum(float(p[token]) for token in first[word] - first[other])
            for word, other in (("yes", "no"), ("no", "yes"))
        )
        assert verdict.yes == (yes > no)
        assert verdict.said == f"yes {yes:.4f}, no {no:.4f}"
        assert verdict.probability == pytest.approx(yes + no, rel=1e-4)


def test_the_chat_template_of_the_model_is_used(tiny_judge: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat"
    shutil.copytree(tiny_judge, chat)
    template = "{{ messages[0].content }} word9{% if add_generation_prompt %} word7{% endif %}"
    (chat / "chat_template.jinja").write_text(template)
    ((_, with_template),) = ModelJudge(str(chat)).ask(["word1 word2"])
    ((_, without),) = ModelJudge(str(tiny_judge)).ask(["word1 word2"])
    assert with_template != without


def test_a_prompt_longer_than_the_context_is_refused(tiny_judge: Path) -> None:
    with pytest.raises(InputError, match=r"the model reads 1024; lower --judge-characters"):
        list(ModelJudge(str(tiny_judge)).ask(["word1 " * 1024]))


def test_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no config\.json"):
        ModelJudge(str(tmp_path / "empty"))


def test_the_checksums_of_a_local_model_pin_it(tiny_judge: Path, tmp_path: Path) -> None:
    moved = tmp_path / tiny_judge.name
    shutil.copytree(tiny_judge, moved)
    before = ModelJudge(str(tiny_judge)).settings()
    assert ModelJudge(str(moved)).settings() == before
    config = moved / "config.json"
    config.write_text(config.read_text() + "\n")
    assert ModelJudge(str(moved)).settings() != before
