import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.models import export
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.models.export import ExportOptions
from tests.conftest import ROOT, run_command
from tests.models import megatron_models

TOOL = ROOT / "tools" / "export_hf.py"


@pytest.fixture(scope="module")
def tokenizer(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 500 ids, which Megatron pads to 512."""
    directory = tmp_path_factory.mktemp("tokenizer")
    trained = tokenizers.train(words_corpus.texts(range(len(words_corpus))), 500, directory)
    assert trained.vocab_size == 500
    return directory


@pytest.mark.parametrize("case", megatron_models.CASES)
def test_logits_are_megatrons(
    case: str, checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    export.export(
        ExportOptions(
            load=str(checkpoints / case), output=str(tmp_path / "model"), tokenizer=str(tokenizer)
        )
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    assert model.config.model_type == case
    with torch.no_grad():
        logits = model(torch.from_numpy(megatron_models.tokens())).logits.numpy()
    expected = np.load(checkpoints / f"{case}.npy")
    assert logits.shape[-1] == 500 and expected.shape[-1] == 512
    assert expected.std() > 0.5  # The comparison is about something.
    np.testing.assert_allclose(logits, expected[..., :500], atol=1e-4, rtol=0)


def test_the_command_writes_the_tokenizer_too(
    checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    load, output = str(checkpoints / "qwen3"), str(tmp_path / "model")
    process = run_command(TOOL, "--load", load, "--output", output, "--tokenizer", tokenizer)
    assert process.returncode == 0 and process.stderr == ""
    assert "Qwen3ForCausalLM" in process.stdout
    loaded = AutoTokenizer.from_pretrained(output)
    ids = loaded("word1 word22", add_special_tokens=False)["input_ids"]
    assert ids == tokenizers.Tokenizer(tokenizer).encode("word1 word22")
    config = json.loads((Path(output) / "config.json").read_text())
    assert config["eos_token_id"] == loaded.eos_token_id
    options = ExportOptions(load=load, output=output, tokenizer=str(tokenizer))
    assert export.export(options) == Manifest.read(output)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("position_embedding_type", "learned_absolute"),
        ("num_experts", 8),
        ("swiglu", False),
        ("normalization", "LayerNorm"),
        ("add_bias_linear", True),
        ("rotary_percent", 0.5),
        ("multi_latent_attention", True),
    ],
)
def test_other_architectures_are_refused_by_name(
    name: str, value: Any, checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    checkpoint = MegatronCheckpoint(checkpoints / "llama")
    checkpoint.args = Namespace(**vars(checkpoint.args) | {name: value})
    with pytest.raises(InputError, match=f"was trained with {name} {value!r}"):
        export.write_model(checkpoint, tokenizers.Tokenizer(tokenizer), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_weight_without_a_place_is_refused_by_name(
    checkpoints: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = MegatronCheckpoint(checkpoints / "llama")
    weights = checkpoint.read() | {"decoder.layers.mlp.router.weight": torch.zeros(4, 8, 64)}
    monkeypatch.setattr(checkpoint, "read", lambda: weights)
    with pytest.raises(InputError, match=r"holds decoder\.layers\.mlp\.router\.weight"):
        export.write_model(checkpoint, tokenizers.Tokenizer(tokenizer), tmp_path / "model")


def test_unfused_names_and_separate_layers_are_the_same_model(
    checkpoints: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other ways in which Megatron names and stores the same weights."""
    given = tokenizers.Tokenizer(tokenizer)
    checkpoint = MegatronCheckpoint(checkpoints / "qwen3")
    export.write_model(checkpoint, given, tmp_path / "stacked")
    renamed = {}
    for name, weight in checkpoint.read().items():
        name = name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
        name = name.replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")
        part = name.removeprefix("decoder.layers.")
        if part == name:
            renamed[name] = weight
        else:
            renamed |= {f"decoder.layers.{layer}.{part}": row for layer, row in enumerate(weight)}
    monkeypatch.setattr(checkpoint, "read", lambda: renamed)
    export.write_model(checkpoint, given, tmp_path / "separate")
    first, second = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("stacked", "separate")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def spoil_latest(directory: Path) -> None:
    (directory / "latest_checkpointed_iteration.txt").write_text("12")


def remove_latest(directory: Path) -> None:
    (directory / "latest_checkpointed_iteration.txt").unlink()


def truncate_metadata(directory: Path) -> None:
    path = directory / "iter_0000007" / ".metadata"
    path.write_bytes(path.read_bytes()[:-50])


def truncate_weights(directory: Path) -> None:
    path = max((directory / "iter_0000007").glob("*.distcp"), key=lambda one: one.stat().st_size)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def remove_metadata(directory: Path) -> None:
    (directory / "iter_0000007" / ".metadata").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_latest, "iter_0000012: no such directory"),
        (remove_latest, "give the directory that Megatron saved to"),
        (truncate_metadata, "cannot read .metadata"),
        (truncate_weights, "cannot read the "),
        (remove_metadata, "not a torch_dist checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_one_line(
    spoil: Any, message: str, checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    shutil.copytree(checkpoints / "qwen3", tmp_path / "run")
    spoil(tmp_path / "run")
    output = tmp_path / "model"
    options = ExportOptions(
        load=str(tmp_path / "run"), output=str(output), tokenizer=str(tokenizer)
    )
    with pytest.raises(InputError, match=message):
        export.export(options)
    assert not output.exists()


def test_another_tokenizer_is_refused(
    checkpoints: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    directory = tmp_path / "tokenizer"
    tokenizers.train(words_corpus.texts(range(100)), 300, directory)
    with pytest.raises(InputError, match=r"has 300 ids, but the embedding of .* has 512 rows"):
        export.write_model(
            MegatronCheckpoint(checkpoints / "qwen3"),
            tokenizers.Tokenizer(directory),
            tmp_path / "model",
        )


def test_a_tokenizer_that_is_gone_is_asked_for(checkpoints: Path, tmp_path: Path) -> None:
    options = ExportOptions(load=str(checkpoints / "qwen3"), output=str(tmp_path / "model"))
    with pytest.raises(InputError, match="give it with --tokenizer"):
        export.export(options)
