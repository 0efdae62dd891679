import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest
from megatron_sbp.models import checkpoint_writer, export
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.models.checkpoint_writer import StoredWeight
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
    checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    checkpoint = MegatronCheckpoint(checkpoints / "llama")
    checkpoint.shapes = checkpoint.shapes | {"decoder.layers.mlp.router.weight": (4, 8, 64)}
    with pytest.raises(InputError, match=r"holds decoder\.layers\.mlp\.router\.weight"):
        export.write_model(checkpoint, tokenizers.Tokenizer(tokenizer), tmp_path / "model")


def test_unfused_names_and_separate_layers_are_the_same_model(
    checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """The other ways in which Megatron names and stores the same weights."""
    given = tokenizers.Tokenizer(tokenizer)
    checkpoint = MegatronCheckpoint(checkpoints / "qwen3")
    export.write_model(checkpoint, given, tmp_path / "stacked")
    renamed = {}
    for name in checkpoint.shapes:
        weight = checkpoint.read(name)
        name = name.replace("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight")
        name = name.replace("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight")
        part = name.removeprefix("decoder.layers.")
        if part == name:
            renamed[name] = weight
        else:
            renamed |= {f"decoder.layers.{layer}.{part}": row for layer, row in enumerate(weight)}
    stored = [
        StoredWeight(name, None, tuple(weight.shape), weight.clone)
        for name, weight in renamed.items()
    ]
    checkpoint_writer.write(tmp_path / "unfused", checkpoint.args, stored, torch.float32)
    export.write_model(MegatronCheckpoint(tmp_path / "unfused"), given, tmp_path / "separate")
    first, second = (
        load_file(tmp_path / name / "model.safetensors") for name in ("stacked", "separate")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_no_number_is_named(
    value: float, checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    checkpoint = MegatronCheckpoint(checkpoints / "qwen3")
    weights = {name: checkpoint.read(name) for name in checkpoint.shapes}
    broken = "decoder.layers.mlp.linear_fc2.weight"
    weights[broken][1, 2, 3] = value
    stored = [
        StoredWeight(name, None, tuple(weight.shape), weight.clone)
        for name, weight in weights.items()
    ]
    checkpoint_writer.write(tmp_path / "broken", checkpoint.args, stored, torch.float32)
    with pytest.raises(InputError, match=f"{broken} of layer 1 is not all finite"):
        export.write_model(
            MegatronCheckpoint(tmp_path / "broken"),
            tokenizers.Tokenizer(tokenizer),
            tmp_path / "model",
        )


def test_large_models_become_several_files(
    checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    whole, cut = (
        ExportOptions(
            load=str(checkpoints / "qwen3"),
            output=str(tmp_path / size),
            tokenizer=str(tokenizer),
            max_shard_size=size,
        )
        for size in ("1GB", "200KB")
    )
    export.export(whole)
    export.export(cut)
    files = sorted((tmp_path / "200KB").glob("*.safetensors"))
    assert len(files) > 2
    assert all(path.stat().st_size < 210_000 for path in files)  # headers come on top
    models = [
        AutoModelForCausalLM.from_pretrained(tmp_path / size).state_dict()
        for size in ("1GB", "200KB")
    ]
    assert models[0].keys() == models[1].keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_shard_size_that_is_none_is_refused(
    checkpoints: Path, tokenizer: Path, tmp_path: Path
) -> None:
    options = ExportOptions(
        load=str(checkpoints / "qwen3"),
        output=str(tmp_path / "model"),
        tokenizer=str(tokenizer),
        max_shard_size="large",
    )
    with pytest.raises(InputError, match="--max-shard-size large"):
        export.export(options)
    assert not (tmp_path / "model").exists()


def test_transformers_tokenizer_is_the_projects(
    checkpoints: Path, tokenizer: Path, words_corpus: Corpus, tmp_path: Path
) -> None:
    given = tokenizers.Tokenizer(tokenizer)
    export.write_model(MegatronCheckpoint(checkpoints / "qwen3"), given, tmp_path / "model")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = [
        *words_corpus.texts(range(20)),
        "",
        "  two  spaces\n\n\ttab",
        "na\u00efve \u6f22 \U0001f600",
    ]
    for text in texts:
        ids = given.encode(text)
        assert loaded(text)["input_ids"] == ids
        assert loaded.decode(ids) == given.decode(ids) == text
    special = [given.bos, given.eod, given.sep, given.pad]
    assert special == [
        *(loaded.bos_token_id, loaded.eos_token_id, loaded.sep_token_id, loaded.pad_token_id)
    ]
    # The name of a special token in a text is a text here, in Transformers only where asked for.
    text = f"before{tokenizers.EOD}after{tokenizers.SEP}"
    assert loaded(text, split_special_tokens=True)["input_ids"] == given.encode(text)
    ids = given.encode_template(text)
    assert loaded(text)["input_ids"] == ids
    assert loaded.decode(ids) == given.decode(ids) == text


def test_lm_evaluation_harness_scores_an_exported_model(
    checkpoints: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "lm-evaluation-harness is not installed: pip install 'megatron_sbp[evaluation]'"
    lm_eval = pytest.importorskip("lm_eval", reason=reason)
    tasks = pytest.importorskip("lm_eval.tasks", reason=reason)
    for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    given = tokenizers.Tokenizer(tokenizer)
    export.write_model(MegatronCheckpoint(checkpoints / "qwen3"), given, tmp_path / "model")
    rows = [("word1 word2", " word3", " word40 word5"), ("word7", " word8 word9", " word1")]
    with open(tmp_path / "rows.jsonl", "w") as file:
        for context, first, second in rows:
            file.write(json.dumps({"context": context, "choices": [first, second]}) + "\n")
    task = {
        "task": "two_endings",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "context",
        "doc_to_choice": "choices",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "two_endings.yaml").write_text(yaml.safe_dump(task))
    scored = lm_eval.simple_evaluate(
        model="hf",
        model_args=f"pretrained={tmp_path / 'model'},dtype=float32",
        tasks=["two_endings"],
        task_manager=tasks.TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    for (context, *endings), sample in zip(rows, scored["samples"]["two_endings"], strict=True):
        for ending, (found, _) in zip(endings, sample["filtered_resps"], strict=True):
            start, ids = given.encode(context), given.encode(ending)
            with torch.no_grad():
                logits = model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1]
            expected = -torch.nn.functional.cross_entropy(
                logits, torch.tensor(ids), reduction="sum"
            )
            assert abs(found - expected.item()) < 1e-3


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
        (truncate_weights, "cannot read decoder.*the checkpoint is damaged"),
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
