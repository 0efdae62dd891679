"""Arguments that do not go together are refused before anything is built, with the cure."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from megatron.training.global_vars import unset_global_variables

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.training.arguments import check_local_layers
from megatron_sbp.training.lint.arguments import check_arguments, parse
from tests.training.runs import SMALL, data

PAIRS = "--sbp-objective synthesis --sbp-pairs PAIRS"
PIPELINE = "--pipeline-model-parallel-size 2 --micro-batch-size 1"
INTERLEAVED = f"{PIPELINE} --num-layers-per-virtual-pipeline-stage 1"
EXPERTS = (
    "--num-experts 2 --expert-model-parallel-size 2 --moe-token-dispatcher-type alltoall --bf16"
    " --eval-global-batch-size 2 --overlap-moe-expert-parallel-comm"
)
WHOLE = "--full-validation", "--multiple-validation-sets"


@pytest.fixture(autouse=True)
def _no_global_variables() -> Iterator[None]:
    yield
    unset_global_variables()


def validated(line: str, corpus: Corpus, pairs: Path, drop: tuple[str, ...] = ()) -> object:
    """Megatron's arguments after its validation and ours."""
    small = [flag for flag in SMALL if flag not in drop]
    given = ["--train-iters", "20", *line.replace("PAIRS", str(pairs)).split()]
    run = parse([*small, *data(corpus), *given], 0)
    list(check_arguments(run))
    return run.args


@pytest.mark.parametrize(
    ("line", "drop", "message"),
    [
        (f"{PAIRS} --sft", (), "--sft changes how losses are averaged"),
        (f"{PAIRS} --dataloader-inter-document-masking", (), "masking is for documents"),
        (f"{PAIRS} {EXPERTS}", WHOLE, "--overlap-moe-expert-parallel-comm is not for pairs"),
        (
            f"{PAIRS} --context-parallel-size 2 --sbp-segment-multiple 6",
            (),
            "--sbp-segment-multiple 6 is not a multiple of 4, twice the context-parallel size",
        ),
        (
            f"{PAIRS} --pipeline-model-parallel-size 2",
            (),
            "packed rows go through a pipeline one at a time, not 2: set --micro-batch-size",
        ),
        ("", WHOLE[1:], "--full-validation fails .* without --multiple-validation-sets: add that"),
        (INTERLEAVED, (), "--full-validation with an interleaved pipeline fails .*: leave out"),
        (
            INTERLEAVED,
            WHOLE,
            "--eval-global-batch-size 1 has 1 micro-batches, .* fewer than 2: give 2 or more",
        ),
    ],
)
def test_what_cannot_run_is_refused(
    line: str, drop: tuple[str, ...], message: str, words_corpus: Corpus, words_pairs: Path
) -> None:
    with pytest.raises(InputError, match=message):
        validated(line, words_corpus, words_pairs, drop)


@pytest.mark.parametrize(
    ("line", "drop"),
    [
        (f"{PAIRS} --pipeline-model-parallel-size 2 --no-sbp-packing", ()),
        (PIPELINE, ()),
        (f"{INTERLEAVED} --eval-global-batch-size 2", WHOLE),
        (f"{INTERLEAVED} --eval-iters 0", WHOLE),
        ("--eval-iters 0", WHOLE),
    ],
)
def test_what_can_is_let_through(
    line: str, drop: tuple[str, ...], words_corpus: Corpus, words_pairs: Path
) -> None:
    assert validated(line, words_corpus, words_pairs, drop)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--reset-attention-mask", "--reset-attention-mask needs --transformer-impl"),
        (
            "--dataloader-inter-document-masking --context-parallel-size 2",
            "--dataloader-inter-document-masking with --context-parallel-size > 1 needs",
        ),
    ],
)
def test_what_local_layers_do_not_do_is_refused(
    line: str, message: str, words_corpus: Corpus, words_pairs: Path
) -> None:
    args = validated(line, words_corpus, words_pairs)
    with pytest.raises(InputError, match=message):
        check_local_layers(args)  # type: ignore[arg-type]
