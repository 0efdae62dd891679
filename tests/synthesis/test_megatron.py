"""The megatron engine on the CPU: Megatron's own dynamic inference, against the hf engine."""

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.models import export
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.ranks import Ranks
from megatron_sbp.synthesis.engine import EngineOptions
from megatron_sbp.synthesis.model import load_engine
from megatron_sbp.synthesis.store import COLUMNS, SyntheticCorpus
from megatron_sbp.synthesis.synthesize import SynthesizeOptions, synthesize
from tests.conftest import ROOT, torchrun
from tests.synthesis import continuations as asked

pytest.importorskip("einops")
TOOL = ROOT / "tools" / "synthesize.py"


@pytest.fixture(scope="module")
def exported(
    checkpoints: Path, words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Hugging Face directories of the checkpoints, with a tokenizer of 500 ids."""
    directory = tmp_path_factory.mktemp("exported")
    texts = words_corpus.texts(range(len(words_corpus)))
    tokenizer = tokenizers.train(texts, asked.VOCABULARY, directory / "tokenizer")
    for case in asked.EOD:
        export.write_model(MegatronCheckpoint(checkpoints / case), tokenizer, directory / case)
    return directory


@pytest.fixture(scope="module")
def given(checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks of a job with two processes were given."""
    output = tmp_path_factory.mktemp("given")
    torchrun(asked.__file__, checkpoints, output)
    return output


@pytest.mark.parametrize("number", range(len(asked.RUNS)))
def test_documents_are_those_of_the_hf_engine(number: int, given: Path, exported: Path) -> None:
    """For any parallelism that saved and runs the model, and any batch; padding is never drawn."""
    run = asked.RUNS[number]
    hf = load_engine(
        EngineOptions(batch_size=16),
        exported / run.case,
        run.sampling,
        Ranks(),
        eod=asked.EOD[run.case],
        vocab_size=asked.VOCABULARY,
    )
    expected = asked.outcome(hf.generate(asked.requests()))
    assert {reason for _, reason in expected.values()} == {0, 1}
    files = [given / f"{number}-{rank}.json" for rank in (0, 1)]
    first, second = (json.loads(path.read_text()) for path in files)
    assert {**first, **second} == expected
    # The second rank has half of the documents, or none where it helps the first one.
    assert len(second) == (len(expected) // 2 if run.tensor * run.pipeline == 1 else 0)


def test_two_ranks_of_one_model_write_the_corpus_of_the_hf_engine(
    checkpoints: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    """By the command; the run ends in the middle of a batch."""
    flags: dict[str, Any] = {
        "load": str(checkpoints / "qwen3"),
        "corpus": [str(words_corpus.prefixes[0])],
        "num_tokens": 500,
        "model_generation": 0,
        "documents_per_shard": 4,
        "batch_size": 10,
    }
    outputs = [tmp_path / engine / "new" for engine in ("hf", "megatron")]
    synthesize(SynthesizeOptions(**flags, output_prefix=str(outputs[0])), Ranks())
    line = []
    for flag, value in flags.items():
        line += [f"--{flag.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    torchrun(
        *(TOOL, "--engine", "megatron", "--tensor-model-parallel-size", 2, *line),
        *("--output-prefix", outputs[1]),
    )
    for suffix in (".bin", ".idx", *(f".{name}.npy" for name in COLUMNS)):
        assert filecmp.cmp(f"{outputs[0]}{suffix}", f"{outputs[1]}{suffix}", shallow=False), suffix
    manifest = SyntheticCorpus(outputs[1]).manifests[0]
    assert manifest.options["engine"] == "megatron"
    assert not list(outputs[1].parent.glob("model*"))
