"""The judged measures of an audit, with an endpoint that knows what is true and what belongs."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.audit import AuditOptions, audit
from megatron_sbp.evaluation.judge import NON_FACTUAL
from tests.conftest import write_pairs
from tests.evaluation.endpoint import serving
from tests.synthesis.planted import write_real, write_synthetic

TOWNS = 40


def fact(town: int, year: int) -> str:
    """True for years below 10; two documents belong together if they are about one town."""
    return (
        f"The town of Town{town} had {1000 + 7 * town} houses in {1900 + year}, "
        f"{50 + town} mills and a mayor, Mayor{town}."
    )


def answer(prompt: str) -> str:
    """What is true is known; of the rest some is said to be neither."""
    if "<document>" in prompt:
        document = re.search(r"<document>\n(.*)\n</document>", prompt, re.DOTALL)
        assert document is not None
        true = {fact(town, year) for town in range(TOWNS) for year in range(10)}
        return "no" if document[1] in true else "yes"
    first, second = re.findall(r"Town(\d+) had", prompt)
    return "Yes" if first == second else "I cannot say." if first == "0" else "No"


@pytest.fixture(scope="module")
def options(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> AuditOptions:
    """A quarter of the synthetic documents is false, three of eight are about another town."""
    directory = tmp_path_factory.mktemp("facts")
    documents = [fact(town, year) for town in range(TOWNS) for year in (1, 2)]
    real = write_real(directory / "real" / "real", documents, words_corpus.tokenizer.directory)
    seeds = list(range(2 * TOWNS))
    texts = [fact((seed // 2 + (seed % 8 < 3)) % TOWNS, 3 if seed % 4 else 11) for seed in seeds]
    write_synthetic(directory / "new" / "new", real, texts, seeds)
    pairs = [(town, town + 1, 0.9) for town in range(0, 2 * TOWNS, 2)]
    write_pairs(directory / "pairs", real, pairs)
    return AuditOptions(
        synthetic=[str(directory / "new" / "new")],
        corpus=[str(directory / "real" / "real")],
        pairs=str(directory / "pairs"),
        output="",
        encoder="none",
        judge_model="oracle",
        judge_key="AUDIT_TEST_KEY",
    )


def test_the_judged_measures_and_the_agreement_on_planted_cases(
    options: AuditOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIT_TEST_KEY", "secret")
    with serving(answer) as endpoint:
        given = replace(options, judge_url=endpoint.url, output=str(tmp_path / "audit"))
        rows = {row.name: row for row in audit(given)[1]}
        asked = len(endpoint.requests)
        audit(given)
        assert len(endpoint.requests) == asked
    assert set(endpoint.keys) == {"Bearer secret"}
    assert (rows["non-factual"].synthetic, rows["non-factual"].real) == (0.25, 0)
    # Pairs whose seed is about town 0, and are not about it, are not counted.
    assert rows["pair irrelevance"].synthetic == pytest.approx(28 / 78)
    assert rows["pair irrelevance"].real == 0
    assert rows["non-factual"].note == (
        "oracle, 80 answers, sensitivity 1.00 of 80, specificity 1.00 of 80"
    )
    content = json.loads((tmp_path / "audit" / "audit.json").read_text())
    judge = content["judge"]
    assert (judge["model"], judge["answered_by"]) == ("oracle", ["oracle-2026-11"])
    assert judge["questions"][0] == {
        "name": "non-factual",
        "version": NON_FACTUAL.version,
        "text": NON_FACTUAL.text,
    }
    false, apart = judge["agreement"]
    assert (false["planted"]["asked"], false["planted"]["found"]) == (80, 80)
    assert (apart["intact"]["asked"], apart["intact"]["found"]) == (40, 0)
    assert apart["planted"]["asked"] + apart["planted"]["unanswered"] == 40
    assert apart["sensitivity"] == 1
    worst = {group["measure"]: group["documents"] for group in content["worst"]}
    assert all(" in 1911, " in pair["synthetic"]["text"] for pair in worst["non-factual"])
    assert len(worst["pair irrelevance"]) == 3
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert "oracle-2026-11" in page and "secret" not in page
    assert not re.search("secret", (tmp_path / "audit" / "manifest.json").read_text())


def test_an_interrupted_audit_pays_for_nothing_twice(options: AuditOptions, tmp_path: Path) -> None:
    given: dict[str, Any] = {"output": str(tmp_path / "audit"), "judge_concurrency": 4}
    with serving(answer) as endpoint:
        given["judge_url"] = endpoint.url
        audit(replace(options, **given | {"output": str(tmp_path / "whole")}))
        questions = len(endpoint.requests)
        endpoint.requests.clear()

        def quota(prompt: str) -> str:
            if len(endpoint.requests) == 100:
                endpoint.troubles += [(402, {}, "payment required")] * 100
            return answer(prompt)

        endpoint.rule = quota
        with pytest.raises(InputError, match=r"HTTP 402 payment required.*run the same command"):
            audit(replace(options, **given))
        assert not (tmp_path / "audit").exists()
        endpoint.troubles.clear()
        endpoint.rule = answer
        audit(replace(options, **given))
        assert len(endpoint.requests) == questions
    assert (tmp_path / "audit" / "audit.json").read_bytes() == (
        tmp_path / "whole" / "audit.json"
    ).read_bytes()


def test_another_model_does_not_continue_the_answers_of_the_first(
    options: AuditOptions, tmp_path: Path
) -> None:
    with serving(answer, [(403, {}, "no")] * 100) as endpoint:
        given = replace(options, judge_url=endpoint.url, output=str(tmp_path / "audit"))
        with pytest.raises(InputError, match="HTTP 403"):
            audit(given)
        endpoint.troubles.clear()
        with pytest.raises(InputError, match="was made differently"):
            audit(replace(given, judge_model="another"))


def test_a_local_model_judges(options: AuditOptions, tiny_judge: Path, tmp_path: Path) -> None:
    """With random weights it knows nothing: only what is asked and told is looked at."""
    given = replace(options, judge_model=str(tiny_judge), judged=5, output=str(tmp_path / "audit"))
    rows = {row.name: row for row in audit(given)[1]}
    judge = json.loads((tmp_path / "audit" / "audit.json").read_text())["judge"]
    assert judge["by"] == "next-token probabilities"
    assert 0 < judge["yes_or_no_probability"] < 1
    assert set(judge["sha256"]) >= {"config.json", "tokenizer.json", "model.safetensors"}
    assert len((tmp_path / "audit" / "answers.jsonl").read_text().splitlines()) == 30
    for row in (rows["non-factual"], rows["pair irrelevance"]):
        assert row.synthetic is not None and row.real is not None
        assert row.synthetic * 5 == pytest.approx(round(row.synthetic * 5))
