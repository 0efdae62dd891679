"""Which boxes a report is made of: given, found, in parts, or not fitting each other."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, fingerprint
from megatron_sbp.synthesis.store import COLUMNS
from tests.evaluation.boxes import make, source, write_run, write_synthetic


def test_explicit_boxes_and_a_run_give_the_same_report(
    content: dict[str, Any], run: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    explicit = make(
        tmp_path / "report",
        corpus=list(map(str, words_corpus.prefixes)),
        embeddings=str(run / "embeddings"),
        pairs=str(run / "pairs"),
        baseline=str(run / "first"),
        synthesizer=str(run / "tuned"),
        synthetic=[str(run / "raw" / "new")],
        filtered=[str(run / "filtered" / "new")],
        audit=str(run / "audit"),
        joint=str(run / "last"),
    )
    for part in ("headline", "losses", "similarity", "examples", "ledger", "filters", "audit"):
        assert explicit[part] == content[part], part


def write_parts(whole: Path, directory: Path, corpus: Corpus, parts: int) -> list[str]:
    """A box of synthetic documents again, as so many boxes; their prefixes."""
    documents, made = Corpus([whole / "new"], corpus.tokenizer.directory), Manifest.read(whole)
    texts = list(documents.texts(range(len(documents))))
    prefixes = []
    for part, numbers in enumerate(np.array_split(np.arange(len(texts)), parts), start=1):
        prefix = directory / f"part-{part:03}" / "new"
        some = numbers.tolist()
        write_synthetic(prefix, corpus, [texts[number] for number in some], some)
        for name in COLUMNS:
            np.save(f"{prefix}.{name}.npy", np.load(f"{whole}/new.{name}.npy")[numbers])
        removed = made.counts["removed"] if part == 1 else dict.fromkeys(made.counts["removed"], 0)
        replace(
            made,
            outputs={"new.idx": fingerprint(f"{prefix}.idx")},
            options=made.options | {"part": f"{part}/{parts}"},
            counts=made.counts | {"documents": len(some), "removed": removed},
            seconds=made.seconds / parts,
        ).write(prefix.parent)
        prefixes.append(str(prefix))
    return prefixes


def test_parts_of_an_array_job_are_reported_as_one_corpus(
    content: dict[str, Any], run: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    """Everything but the listing of boxes: commands, options, prefixes."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    for name in ("raw", "filtered"):
        shutil.rmtree(tmp_path / "run" / name)
        write_parts(run / name, tmp_path / "run" / name, words_corpus, 3)
    found = make(tmp_path / "found", run=str(tmp_path / "run"))
    given = {
        role: [
            str(path.parent / "new") for path in sorted((tmp_path / "run" / name).glob("*/new.idx"))
        ]
        for role, name in (("synthetic", "raw"), ("filtered", "filtered"))
    }
    assert make(tmp_path / "given", run=str(tmp_path / "run"), **given) == found
    setting, whole = found.pop("setting"), dict(content)
    assert {name: whole[name] for name in found} == found
    assert setting["options"]["synthesize"]["part"] == ["1/3", "2/3", "3/3"]
    documents = {row["prefix"]: row["documents"] for row in setting["data"]}
    assert sum(documents[prefix] for prefix in given["synthetic"]) == 40
    assert len(setting["commands"]) == len(whole["setting"]["commands"]) + 4


def test_a_corpus_that_another_tool_wrote_needs_no_manifest(
    run: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    """Its pairs and synthetic documents belong to it by the checksum of its index."""
    shutil.copytree(words_corpus.prefixes[0].parent, tmp_path / "corpus")
    (tmp_path / "corpus" / "manifest.json").unlink()
    prefixes = [str(tmp_path / "corpus" / prefix.name) for prefix in words_corpus.prefixes]
    content = make(tmp_path / "report", run=str(run), corpus=prefixes)
    assert [part["role"] for part in content["missing"]] == []
    assert len(content["examples"]["triples"]) == 5
    manifest = Manifest.read(tmp_path / "report")
    assert {f"{prefix}.idx" for prefix in prefixes} <= manifest.inputs.keys()


def test_the_same_boxes_give_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(tmp_path / name, run=str(run))
    for file in ("report.html", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_two_boxes_for_one_part_are_refused(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / "run" / name, "lm", [source("p", "real", 10, 10)])
    with pytest.raises(InputError, match="can be the baseline run; say which with --baseline"):
        make(tmp_path / "report", run=str(tmp_path / "run"))
    baseline = str(tmp_path / "run" / "b")
    content = make(tmp_path / "report", run=str(tmp_path / "run"), baseline=baseline)
    assert [part["role"] for part in content["missing"]].count("baseline") == 0


def test_examples_of_another_corpus_are_refused(
    run: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    """Ids of the pairs would be looked up in documents that they are not of."""
    with pytest.raises(InputError, match="was made from 2 corpus prefixes"):
        make(tmp_path / "report", run=str(run), corpus=[str(words_corpus.prefixes[0])])
    assert not (tmp_path / "report").exists()
