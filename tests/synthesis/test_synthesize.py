import filecmp
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.template import Template
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.models.export import ExportOptions, export
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.options import SynthesizeOptions
from megatron_sbp.synthesis.prompts import Prompts
from megatron_sbp.synthesis.seeds import Seeds
from megatron_sbp.synthesis.store import COLUMNS, SyntheticCorpus, column_path
from megatron_sbp.synthesis.synthesize import synthesize
from tests.conftest import ROOT, run_command
from tests.synthesis.conftest import CONTEXT

TOOL = ROOT / "tools" / "synthesize.py"
SUFFIXES = [".bin", ".idx", *(f".{name}.npy" for name in COLUMNS)]


@pytest.fixture(scope="module")
def options(
    tiny_model: Path, words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> SynthesizeOptions:
    return SynthesizeOptions(
        load=str(tiny_model),
        corpus=[str(words_corpus.prefixes[0])],
        output_prefix=str(tmp_path_factory.mktemp("synthetic") / "box" / "new"),
        num_tokens=1500,
        documents_per_shard=8,
        seed=5,
    )


@pytest.fixture(scope="module")
def made(options: SynthesizeOptions) -> SyntheticCorpus:
    synthesize(options, Ranks())
    return SyntheticCorpus(options.output_prefix)


def same_files(first: str | Path, second: str | Path, but: str = "") -> bool:
    return all(
        filecmp.cmp(f"{first}{suffix}", f"{second}{suffix}", shallow=False)
        for suffix in SUFFIXES
        if suffix != but
    )


def flags(options: SynthesizeOptions, output: Path) -> list[str]:
    return [
        *("--load", options.load, "--corpus", *options.corpus, "--output-prefix", str(output)),
        *("--num-tokens", str(options.num_tokens), "--seed", str(options.seed)),
        *("--documents-per-shard", str(options.documents_per_shard)),
    ]


def test_the_run_ends_with_the_document_that_reaches_the_tokens(made: SyntheticCorpus) -> None:
    lengths = made.documents.lengths
    assert lengths[:-1].sum() < 1500 <= lengths.sum()
    counts = made.manifests[0].counts
    assert counts["documents"] == len(made)
    assert counts["tokens"] == lengths.sum()
    reasons = np.bincount(made.columns["finish_reason"], minlength=2)
    assert counts["finish_reasons"] == {"eod": reasons[0], "length": reasons[1]}
    assert (reasons > 0).all()


def test_documents_end_with_the_end_of_document_token_and_have_no_other(
    made: SyntheticCorpus,
) -> None:
    eod = made.documents.tokenizer.eod
    for number in range(len(made)):
        tokens = made.documents.tokens(number)
        assert tokens[-1] == eod and (tokens[:-1] != eod).all()


def test_a_document_that_is_cut_fills_the_context(
    made: SyntheticCorpus, words_corpus: Corpus
) -> None:
    """[bos] d1 [sep] d2 is as long as the context; d1 was cut to half of the room."""
    room = CONTEXT - 2
    cut = 0
    for number, seed in enumerate(made.columns["seed"]):
        body = words_corpus.body(int(seed))
        cut += len(body) > room // 2
        if made.columns["finish_reason"][number] == 1:
            prompt = 2 + min(len(body), room // 2)
            assert prompt + made.documents.lengths[number] - 1 == CONTEXT
    assert made.manifests[0].counts["seeds_cut"] == cut > 0


def test_everything_random_follows_from_run_seed_and_number(
    made: SyntheticCorpus, words_corpus: Corpus
) -> None:
    """By the recipe in docs/formats.md."""
    prompts = Prompts(
        Seeds(words_corpus),
        CONTEXT,
        seed=5,
        template=template(words_corpus),
        max_seed_tokens=0,
        max_new_tokens=30,
    )
    for number in range(len(made)):
        key = np.random.SeedSequence([5, number]).generate_state(1, np.uint64)[0]
        assert made.columns["sampling_seed"][number] == key
        body = len(words_corpus.body(int(made.columns["seed"][number])))
        assert made.columns["seed_tokens"][number] == min(body, (CONTEXT - 2) // 2)
        generator = np.random.Generator(np.random.Philox(key=key))
        assert made.columns["seed"][number] == generator.integers(words_corpus.counts[0])
        generator = np.random.Generator(np.random.Philox(key=key))
        generator.integers(len(words_corpus))
        request, _ = prompts.request(number)
        assert np.array_equal(request.uniforms, generator.random(30))


def test_seeds_are_uniform_over_the_named_prefixes(words_corpus: Corpus) -> None:
    corpus = Corpus(words_corpus.prefixes[:1])
    prompts = Prompts(
        Seeds(corpus),
        CONTEXT,
        seed=3,
        template=template(words_corpus),
        max_seed_tokens=4,
        max_new_tokens=4,
    )
    seeds = [prompts.request(number)[1].seed for number in range(8000)]
    counts = np.bincount(seeds, minlength=len(corpus))
    assert len(counts) == len(corpus)
    # Chi-square with n - 1 degrees of freedom: five standard deviations around its mean.
    expected = 8000 / len(corpus)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert abs(statistic - len(corpus)) < 5 * np.sqrt(2 * len(corpus))


def template(corpus: Corpus, text: str = "{bos}{d1}{sep}{d2}{eod}") -> Template:
    tokenizer = corpus.tokenizer
    ids = {"bos": tokenizer.bos, "eod": tokenizer.eod}
    return Template.parse(text, "<|sep|>", tokenizer.encode_template, **ids)


def test_a_prompt_is_the_template_up_to_d2(words_corpus: Corpus) -> None:
    tokenizer = words_corpus.tokenizer
    prompts = Prompts(
        Seeds(words_corpus),
        CONTEXT,
        seed=3,
        template=template(words_corpus, "{bos}word2{d1}{sep} word1{d2}word3{eod}"),
        max_seed_tokens=9,
        max_new_tokens=20,
    )
    before = [tokenizer.bos, *tokenizer.encode("word2")]
    between = [tokenizer.sep, *tokenizer.encode(" word1")]
    for number in range(20):
        request, provenance = prompts.request(number)
        body = words_corpus.body(provenance.seed)
        expected = [*before, *body[:9], *between]
        assert request.prompt.tolist() == expected
        assert provenance.seed_cut == (len(body) > 9)
        assert len(request.uniforms) == 20


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 3}, {"batch_size": 40, "documents_per_shard": 5}, {"num_tokens": None}],
    ids=["small batches", "small shards", "by documents"],
)
def test_documents_do_not_depend_on_how_they_are_made(
    options: SynthesizeOptions, made: SyntheticCorpus, tmp_path: Path, change: dict[str, Any]
) -> None:
    if "num_tokens" in change:
        change = change | {"num_documents": len(made)}
    output = tmp_path / "box" / "new"
    synthesize(replace(options, output_prefix=str(output), **change), Ranks())
    assert same_files(output, made.prefixes[0])


def test_two_ranks_make_the_same_corpus(
    options: SynthesizeOptions, made: SyntheticCorpus, tmp_path: Path
) -> None:
    output = tmp_path / "box" / "new"
    process = run_command(TOOL, *flags(options, output), ranks=2)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("synthetic corpus:") == 1
    assert same_files(output, made.prefixes[0])


def test_a_finished_output_is_recognised(options: SynthesizeOptions, made: SyntheticCorpus) -> None:
    again = synthesize(replace(options, batch_size=9), Ranks())
    assert again == made.manifests[0]
    with pytest.raises(InputError, match=r"temperature: 1\.0 -> 0\.5"):
        synthesize(replace(options, temperature=0.5), Ranks())


def test_a_megatron_checkpoint_is_exported_on_the_way(
    options: SynthesizeOptions, checkpoints: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    """The documents are those of the exported model, which does not stay in the output."""
    load, exported = str(checkpoints / "qwen3"), str(tmp_path / "model")
    tokenizer = str(words_corpus.tokenizer.directory)
    export(ExportOptions(load=load, output=exported, tokenizer=tokenizer))
    short = replace(options, num_tokens=None, num_documents=9)
    boxes = []
    for number, source in enumerate((load, exported)):
        boxes.append(tmp_path / f"box{number}" / "new")
        synthesize(replace(short, load=source, output_prefix=str(boxes[-1])), Ranks())
    assert same_files(boxes[0], boxes[1], but=".checkpoint.npy")
    names = {path.name for path in boxes[0].parent.iterdir()}
    assert names == {"manifest.json", "tokenizer", *(f"new{suffix}" for suffix in SUFFIXES)}


def test_the_output_stands_on_its_own(made: SyntheticCorpus) -> None:
    """The checkpoint and the seed corpus are named by content; the tokenizer lies beside."""
    manifest = Manifest.read(made.prefixes[0].parent)
    checksum = manifest.counts["checkpoint"]["sha256"]
    assert len(checksum) == 64
    first = np.frombuffer(bytes.fromhex(checksum)[:8], "<u8")
    assert (made.columns["checkpoint"] == first).all()
    assert manifest.counts["corpus"][0]["documents"] == 209
    assert isinstance(made.documents.text(0), str)


def test_seeds_are_found_in_a_larger_corpus(made: SyntheticCorpus, words_corpus: Corpus) -> None:
    turned = Corpus(words_corpus.prefixes[::-1])
    found = made.seeds_in(turned)
    assert np.array_equal(found, made.columns["seed"] + words_corpus.counts[1])
    with pytest.raises(InputError, match="add it to --corpus"):
        made.seeds_in(Corpus(words_corpus.prefixes[1:]))


def test_a_column_of_another_length_is_refused(made: SyntheticCorpus, tmp_path: Path) -> None:
    shutil.copytree(made.prefixes[0].parent, tmp_path / "box")
    prefix = tmp_path / "box" / "new"
    np.save(column_path(prefix, "seed"), np.zeros(3, np.int64))
    with pytest.raises(InputError, match=r"new.seed.npy: int64 \[3\]"):
        SyntheticCorpus(prefix)
