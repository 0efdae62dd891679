"""tools/evaluate.py against the exported model, the definition of windows, and Megatron itself."""

import json
import math
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.indexed import IndexedWriter
from megatron_sbp.errors import InputError
from megatron_sbp.evaluation.evaluate import EvaluateOptions, evaluate
from megatron_sbp.evaluation.perplexity_windows import Windows
from megatron_sbp.manifest import Manifest
from megatron_sbp.models import export
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.ranks import Ranks
from tests.conftest import ROOT, run_command, torchrun
from tests.evaluation import scored
from tests.training import runs

TOOL = ROOT / "tools" / "evaluate.py"
CONTEXT = 64  # of the checkpoints


def write(prefix: Path, documents: Sequence[Sequence[int]], tokenizer: Path) -> Path:
    """Write a corpus with its tokenizer beside it."""
    tokenizers.copy(str(tokenizer), prefix.parent / "tokenizer")
    with IndexedWriter(prefix, np.uint16) as writer:
        for document in documents:
            writer.append(document)
    return prefix


@pytest.fixture(scope="module")
def mixed(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of random tokens: empty, of one token, longer than the context, without an end.

    The tokenizer has 500 ids, which the models pad to 512.
    """
    directory = tmp_path_factory.mktemp("mixed")
    texts = words_corpus.texts(range(len(words_corpus)))
    tokenizer = tokenizers.train(texts, 500, directory / "trained")
    source = np.random.default_rng(4)
    lengths = [0, 1, CONTEXT - 1, CONTEXT, CONTEXT + 1, 3 * CONTEXT, *source.integers(2, 90, 20), 1]
    documents = [
        [*source.integers(3, 500, max(0, length - 1)), tokenizer.eod][:length] for length in lengths
    ]
    documents[7][-1] = 17
    return write(directory / "mixed", documents, tokenizer.directory)


@pytest.fixture(scope="module")
def rows(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of 128 tokens.

    Beside them the same ones with the end-of-document token at the beginning: in a row of
    Megatron's that holds one of these, what is given and what is predicted is that of ours.
    """
    eod, source = words_corpus.tokenizer.eod, np.random.default_rng(5)
    bodies = [source.integers(3, 512, 127).tolist() for _ in range(6)]
    prefix, tokenizer = tmp_path_factory.mktemp("rows") / "rows", words_corpus.tokenizer.directory
    write(prefix.with_name("turned"), [[eod, *body] for body in bodies], tokenizer)
    return write(prefix, [[*body, eod] for body in bodies], tokenizer)


@pytest.fixture(scope="module")
def trained(words_corpus: Corpus, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps that ends with Megatron's evaluation on the turned rows."""
    run = tmp_path_factory.mktemp("trained") / "run"
    flags = [*runs.data(words_corpus), "--valid-data-path", str(rows.with_name("turned"))]
    flags += ["--lr", "1e-2", "--train-iters", "4", "--save", str(run)]
    done = runs.pretrain(*flags, "--data-cache-path", str(run.parent / "cache"))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return run


@pytest.fixture(scope="module")
def boxes(
    checkpoints: Path,
    trained: Path,
    mixed: Path,
    rows: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Evaluations by two processes, in other parallelism than the checkpoints were saved with."""
    output = tmp_path_factory.mktemp("evaluations")
    jobs = [
        f"pipeline:{checkpoints / 'qwen3'}:1:2:{mixed}",
        f"data:{checkpoints / 'qwen3'}:1:1:{mixed}",
        f"tensor:{checkpoints / 'llama'}:2:1:{mixed}",
        f"rows:{trained}:1:1:{rows}",
    ]
    torchrun(scored.__file__, output, *jobs)
    return output


@pytest.fixture(scope="module")
def alone(checkpoints: Path, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation by one process, through the command, with another stride and batch."""
    output = tmp_path_factory.mktemp("alone") / "box"
    flags = ["--stride", "10", "--batch-tokens", "1000", "--token-losses"]
    load = ["--load", str(checkpoints / "qwen3")]
    done = run_command(TOOL, *load, "--corpus", mixed, *flags, "--output", output)
    assert done.returncode == 0, done.stderr
    return output


def expected(
    checkpoint: Path, prefix: Path, stride: int, alone: bool = False
) -> Iterator[np.ndarray]:
    """Losses of the tokens of every document, by the exported model and the text of the docs."""
    corpus = Corpus([prefix])
    directory = prefix.parent / f"hf-{checkpoint.name}"
    if not directory.exists():
        export.write_model(MegatronCheckpoint(checkpoint), corpus.tokenizer, directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for document in range(len(corpus)):
        read = [corpus.tokenizer.eod, *corpus.tokens(document).tolist()][int(alone) :]
        # The window of a token is the first that reaches it, of those that begin every stride.
        places = range(len(read) - 1)
        firsts = [next(n for n in count(0, stride) if place < n + CONTEXT) for place in places]
        logp = {}
        for first in {*firsts}:
            with torch.no_grad():
                window = torch.tensor([read[first : first + CONTEXT]])
                logp[first] = model(window).logits[0].double().log_softmax(-1)
        yield np.array(
            [
                -float(logp[first][place - first, read[place + 1]])
                for first, place in zip(firsts, places, strict=True)
            ]
        )


def check(box: Path, name: str, losses: list[np.ndarray]) -> None:
    """Compare a box with the losses of every token of every document that is predicted."""
    np.testing.assert_array_equal(np.load(box / f"{name}.tokens.npy"), [*map(len, losses)])
    of_tokens = np.load(box / f"{name}.token_losses.npy")
    of_tokens = of_tokens[~np.isnan(of_tokens)]
    assert of_tokens.dtype == np.float32 and of_tokens.std() > 0.5
    np.testing.assert_allclose(of_tokens, np.concatenate(losses), atol=1e-4, rtol=0)
    of_documents = np.load(box / f"{name}.loss.npy")
    assert of_documents.dtype == np.float64
    np.testing.assert_allclose(of_documents, [part.sum() for part in losses], atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("box", ["pipeline", "data"])
def test_two_processes_give_the_losses_of_the_exported_model(
    box: str, boxes: Path, checkpoints: Path, mixed: Path
) -> None:
    """Token by token, with half of the context as stride, whatever the parallelism."""
    check(boxes / box, "documents", [*expected(checkpoints / "qwen3", mixed, CONTEXT // 2)])


def test_documents_are_read_as_the_model_was_trained(
    boxes: Path, checkpoints: Path, mixed: Path
) -> None:
    """The llama was, its arguments say, trained on documents by themselves: none has a token before
    its first one, which is not predicted."""
    losses = [*expected(checkpoints / "llama", mixed, CONTEXT // 2, alone=True)]
    check(boxes / "tensor", "documents", losses)
    of_tokens = np.load(boxes / "tensor" / "documents.token_losses.npy")
    lengths = Corpus([mixed]).lengths_of(np.arange(len(losses)))
    firsts = (np.cumsum(lengths) - lengths)[lengths > 0]
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(of_tokens)), firsts)
    counts = Manifest.read(boxes / "tensor").counts
    assert counts["documents_alone"] and not Manifest.read(boxes / "data").counts["documents_alone"]
    assert counts["sources"]["documents"]["tokens"] == sum(map(len, losses))


def test_one_process_gives_the_losses_of_the_exported_model(
    alone: Path, checkpoints: Path, mixed: Path
) -> None:
    losses = [*expected(checkpoints / "qwen3", mixed, 10)]
    check(alone, "mixed", losses)
    source = Manifest.read(alone).counts["sources"]["mixed"]
    total, tokens = sum(part.sum() for part in losses), sum(map(len, losses))
    assert source["documents"] == len(losses) and source["tokens"] == tokens
    assert source["loss"] == pytest.approx(total / tokens, abs=1e-5)
    assert source["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert source["bits_per_byte"] == pytest.approx(
        total / math.log(2) / size_in_bytes(mixed), rel=1e-4
    )


def size_in_bytes(prefix: Path) -> int:
    """Characters of all tokens as a byte-level tokenizer writes them: one for each byte."""
    corpus = Corpus([prefix])
    written = json.loads((prefix.parent / "tokenizer" / "tokenizer.json").read_text())
    characters = {number: len(token) for token, number in written["model"]["vocab"].items()}
    bodies = map(corpus.body, range(len(corpus)))
    return sum(characters[token] for body in bodies for token in body.tolist())


def test_the_loss_is_the_one_of_megatrons_evaluation(boxes: Path, trained: Path) -> None:
    """Megatron shuffles the documents; the last one lacks the token that would follow it."""
    (order,) = (trained.parent / "cache").glob("*-GPTDataset-valid-document_index.npy")
    losses = np.load(boxes / "rows" / "documents.loss.npy")[np.load(order)[:-1]]
    (told,) = runs.series(trained, "lm loss validation-heldout").values()
    assert losses.mean() / 128 == pytest.approx(told, abs=1e-5)


def test_windows_score_every_token_once() -> None:
    source = np.random.default_rng(6)
    for _ in range(50):
        context = int(source.integers(1, 20))
        stride = int(source.integers(1, context + 1))
        lengths = source.integers(0, 70, 15)
        given = int(source.integers(0, 2))
        windows = Windows.cut(lengths, context, stride, given)
        begins = np.cumsum(lengths) - lengths
        firsts = begins[lengths > 0] if given else []
        batches = [*windows.batches(int(source.integers(1, 60)))]
        places = np.concatenate([windows.places(batch, begins) for batch in batches])
        wanted = np.setdiff1d(np.arange(lengths.sum()), firsts)
        np.testing.assert_array_equal(np.sort(places), wanted)
        assert windows.length.max(initial=0) <= context


def test_a_complete_box_is_kept_and_another_one_refused(
    alone: Path, checkpoints: Path, mixed: Path
) -> None:
    options = {"load": str(checkpoints / "qwen3"), "output": str(alone), "corpus": [str(mixed)]}
    same = EvaluateOptions(**options, stride=10, token_losses=True)  # type: ignore[arg-type]
    assert evaluate(same, Ranks()) == Manifest.read(alone)
    with pytest.raises(InputError, match="stride: 10 -> 20"):
        other = EvaluateOptions(**options, stride=20, token_losses=True)  # type: ignore[arg-type]
        evaluate(other, Ranks())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, "give --corpus or --tasks"),
        ({"corpus": ["a/x", "b/x"]}, "--names: x names two sources"),
        ({"corpus": ["a/x"], "names": ["y", "z"]}, "--names: gives 2 for 1"),
        ({"corpus": ["a/x"], "names": ["../y"]}, "--names '../y'"),
        ({"corpus": ["a/x"], "stride": 0}, "--stride 0"),
        ({"corpus": ["a/x"], "stride": 65}, "--stride 65: the context"),
        ({"corpus": ["a/x"], "pipeline_model_parallel_size": 2}, "takes 2 ranks"),
        ({"tasks": ["sciq"], "shots": ["webqs=1"]}, "--shots webqs=1"),
        ({"tasks": ["sciq"], "task_path": "absent"}, "--task-path absent"),
    ],
)
def test_what_is_given_wrong_is_named(
    flags: dict[str, object], said: str, checkpoints: Path, mixed: Path, tmp_path: Path
) -> None:
    if flags.get("corpus") == ["a/x"] and "names" not in flags:
        flags = flags | {"corpus": [str(mixed)]}
    box = str(tmp_path / "box")
    with pytest.raises(InputError, match=said):
        options = EvaluateOptions(load=str(checkpoints / "qwen3"), output=box, **flags)  # type: ignore[arg-type]
        evaluate(options, Ranks())


def test_a_token_that_the_tokenizer_lacks_is_named(
    checkpoints: Path, mixed: Path, tmp_path: Path
) -> None:
    prefix = write(tmp_path / "x", [[3, 0], [4, 505, 0]], mixed.parent / "tokenizer")
    load, box = str(checkpoints / "qwen3"), str(tmp_path / "box")
    with pytest.raises(InputError, match="document 1 has token 505"):
        evaluate(EvaluateOptions(load=load, output=box, corpus=[str(prefix)]), Ranks())
