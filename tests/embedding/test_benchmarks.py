"""The benchmarks on embeddings: what they count, and that they run."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import embedding, pair_quality
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from tests.conftest import run_command


def test_quality_is_what_brute_force_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_quality, "_BLOCK", 17)
    random = np.random.default_rng(4)
    vectors = random.normal(size=(60, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [(a, b) for a in range(60) for b in range(a + 1, 60)]
    near = sorted(pairs, key=lambda pair: -vectors[pair[0]] @ vectors[pair[1]])
    links = sorted([near[0], near[3], near[45], near[90], near[-1], *near[200:215]])
    found = pair_quality.measure(vectors, np.array(links))
    expected = [sum(pair in links for pair in near[: multiple * 20]) / 20 for multiple in (1, 2, 4)]
    assert found.recovered[:3] == expected and 0 < expected[0] < expected[2] < 1
    scores = vectors @ vectors.T - 2 * np.eye(60)
    nearest = [tuple(sorted((a, int(scores[a].argmax())))) for a in range(60)]
    assert found.nearest == sum(pair in links for pair in nearest) / 60 > 0
    # Random scores find on average what chance() says.
    rounds = [
        pair_quality.measure(random.normal(size=(60, 200)) / 14, np.array(links))
        for _ in range(300)
    ]
    chance = pair_quality.chance(np.array(links), 60)
    means = np.mean([one.recovered for one in rounds], axis=0)
    assert np.allclose(means, chance.recovered, rtol=0.25)
    assert np.isclose(np.mean([one.nearest for one in rounds]), chance.nearest, rtol=0.25)


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def test_pair_quality_finds_topics(words_corpus: Corpus, tmp_path: Path) -> None:
    """Documents of one of 40 topics are linked; one document, which is empty, gets no number."""
    texts = list(words_corpus.texts(range(80)))
    rows = [{"id": f"d{number}", "text": text} for number, text in enumerate(texts)]
    rows.insert(3, {"id": "empty", "text": ""})
    topics = [set(text.split()) for text in texts]
    links = [
        {"a": f"d{b}", "b": f"d{a}"}
        for a in range(80)
        for b in range(a)
        if len(topics[a] & topics[b]) >= 6
    ]
    links += [{"a": "empty", "b": "d1"}, {"a": "d1", "b": "d1"}, dict(links[0])]
    done = run_command(
        *("-m", "benchmarks.pair_quality", "--encoder", "lexical"),
        *("--documents", write(tmp_path / "documents.jsonl.gz", rows)),
        *("--links", write(tmp_path / "links.jsonl.gz", links)),
    )
    assert done.returncode == 0, done.stderr
    counts, _, _, random, lexical = done.stdout.splitlines()[-5:]
    assert counts == f"80 documents, {len(links) - 3} linked pairs of 3,160"
    assert random.split()[0] == "random" and lexical.split()[0] == "lexical"
    assert float(lexical.split()[1].rstrip("%")) > 80 > 5 > float(random.split()[1].rstrip("%"))


def test_links_to_nothing_are_refused(tmp_path: Path) -> None:
    links = write(tmp_path / "links.jsonl.gz", [{"a": "x", "b": "y"}])
    with pytest.raises(InputError, match=r"links\.jsonl\.gz: links no two documents"):
        pair_quality.read_links(str(links), {"a": 0})


def test_documents_per_second(
    words_corpus: Corpus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sentence_transformers", reason="no sentence-transformers")
    prefixes = [str(prefix) for prefix in words_corpus.prefixes]
    flags = "--documents 40 --max-length 32 --repetitions 1 --dtype fp32 --device cpu".split()
    monkeypatch.setattr(sys, "argv", ["embedding", "--corpus", *prefixes, *flags])
    embedding.main()
    shown = capsys.readouterr().out
    rows = dict(line.split(maxsplit=1) for line in shown.splitlines()[1:4])
    assert rows.keys() == {"megatron_sbp", "sentence-transformers", "ratio"}
    assert float(shown.split()[-1]) < 1e-5  # largest cosine difference
