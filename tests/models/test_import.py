import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.corpus.preprocess import Options, preprocess
from megatron_sbp.errors import InputError
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.models.export import ExportOptions, export
from megatron_sbp.models.import_hf import ARGUMENTS, ImportOptions, import_hf
from tests.conftest import ROOT, run_command, torchrun
from tests.models import imported_models, megatron_models

TOOL = ROOT / "tools" / "import_hf.py"
VOCABULARY = imported_models.SHAPE["vocab_size"]


@pytest.fixture(scope="module")
def tokenizer(words_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 490 ids for models that know 500."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(words_corpus.texts(range(len(words_corpus))), 490, directory)
    return directory


@pytest.fixture(scope="module")
def imported(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Per case: ``hf``, ``megatron``, Megatron's logits in all layouts, ``tp2pp2`` saved by it."""
    directory = tmp_path_factory.mktemp("imported")
    for case in imported_models.CASES:
        imported_models.save_random(case, directory / case / "hf")
        tokenizers.copy(str(tokenizer), directory / case / "hf")
        import_from(directory / case / "hf", directory / case / "megatron")
    torchrun(imported_models.__file__, directory, processes=4)
    return directory


def import_from(load: Path, output: Path, multiple: int = 128) -> None:
    options = ImportOptions(
        load=str(load), output=str(output), make_vocab_size_divisible_by=multiple
    )
    import_hf(options)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    """Every weight of a Hugging Face directory."""
    return {
        name: weight
        for path in directory.glob("*.safetensors")
        for name, weight in load_file(path).items()
    }


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def stored(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every weight of a Megatron checkpoint."""
    found = MegatronCheckpoint(checkpoint)
    return {name: found.read(name) for name in found.shapes}


@pytest.mark.parametrize("case", imported_models.CASES)
def test_megatrons_logits_are_transformers(case: str, imported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(imported / case / "hf").eval()
    with torch.no_grad():
        expected = model(torch.from_numpy(megatron_models.tokens())).logits.numpy()
    assert expected.std() > 0.5  # The comparison is about something.
    for layout in imported_models.LAYOUTS:
        found = np.load(imported / case / f"{layout}.npy")
        assert found.shape[-1] == 512
        np.testing.assert_allclose(
            found[..., :VOCABULARY], expected, atol=1e-4, rtol=0, err_msg=layout
        )


@pytest.mark.parametrize("case", imported_models.CASES)
def test_export_undoes_import_bit_for_bit(case: str, imported: Path, tmp_path: Path) -> None:
    """Also after Megatron has saved the model with TP 2 x PP 2, and in several files."""
    given = weights(imported / case / "hf")
    for name in ("megatron", "tp2pp2"):
        options = ExportOptions(
            load=str(imported / case / name), output=str(tmp_path / name), max_shard_size="300KB"
        )
        export(options)
        assert (tmp_path / name / "model.safetensors.index.json").is_file()
        assert_equal(weights(tmp_path / name), given)
        import_from(tmp_path / name, tmp_path / f"{name}-again")
        assert_equal(stored(tmp_path / f"{name}-again"), stored(imported / case / name))
    first, second = (
        AutoModelForCausalLM.from_pretrained(directory).config
        for directory in (imported / case / "hf", tmp_path / "tp2pp2")
    )
    for field in ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters"):
        if hasattr(first, field):
            assert getattr(first, field) == getattr(second, field), field


def test_pretraining_starts_at_transformers_loss(tokenizer: Path, tmp_path: Path) -> None:
    """The commands of the documentation, on a corpus of which every row is the same document."""
    imported_models.save_random("qwen3-untied", tmp_path / "hf", vocab_size=490)
    tokenizers.copy(str(tokenizer), tmp_path / "hf")
    output = tmp_path / "megatron"
    process = run_command(
        *(TOOL, "--load", tmp_path / "hf", "--output", output),
        *("--make-vocab-size-divisible-by", "2"),
    )
    assert process.returncode == 0, process.stderr
    text = " ".join(f"word{number}" for number in range(30))
    (tmp_path / "documents.jsonl").write_text((json.dumps({"text": text}) + "\n") * 40)
    preprocess(
        Options(
            input=[str(tmp_path / "documents.jsonl")],
            output_prefix=str(tmp_path / "corpus" / "same"),
            tokenizer=str(output / "tokenizer"),
            workers=1,
        )
    )
    given = tokenizers.Tokenizer(tokenizer)
    row = [*given.encode(text), given.eod]
    process = run_command(
        *("-m", "megatron_sbp.pretrain", "--load", output, "--finetune"),
        *(output / ARGUMENTS).read_text().split(),
        *("--data-path", tmp_path / "corpus" / "same", "--split", "1,0,0"),
        *("--seq-length", str(len(row)), "--data-cache-path", tmp_path / "cache"),
        *"--micro-batch-size 2 --global-batch-size 2 --train-iters 3 --lr 1e-3".split(),
        *"--lr-decay-style constant --eval-iters 0 --eval-interval 9 --log-interval 1".split(),
        *"--num-workers 0".split(),
    )
    assert process.returncode == 0, process.stderr
    losses = [float(value) for value in re.findall(r"\| lm loss: (\S+)", process.stdout)]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        logits = model(torch.tensor([row])).logits[0]
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([*row[1:], row[0]]))
    assert losses[0] == pytest.approx(expected.item(), abs=1e-4)
    assert losses[2] < losses[0] - 0.1


# What is refused


@pytest.fixture(scope="module")
def small(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("small") / "hf"
    imported_models.save_random("qwen3-untied", directory, num_hidden_layers=1)
    tokenizers.copy(str(tokenizer), directory)
    return directory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (
            {"use_sliding_window": True, "sliding_window": 16, "layer_types": None},
            "use_sliding_window is True",
        ),
        ({"layer_types": ["sliding_attention"]}, r"layer_types is \['sliding_attention'\]"),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; give a model of type llama or qwen3"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config is"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
            "rope scaling is .*yarn",
        ),
        (
            {"rope_parameters": imported_models.LLAMA31 | {"factor": 32.0, "rope_theta": 5e5}},
            "'factor': 32.0",
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.5}}, "rope_theta is 0.5"),
        ({"vocab_size": 480}, "has 490 ids, but the model in .* knows 480"),
        ({"num_hidden_layers": 2, "layer_types": None}, r"has no weight model\.layers\.1\."),
        ({"num_key_value_heads": 2}, r"k_proj\.weight has shape \[96, 64\], but .* \[48, 64\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_megatron_cannot_hold_is_refused_by_name(
    changes: dict[str, Any], message: str, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(InputError, match=message):
        import_from(tmp_path / "hf", tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()


def add_bias(found: dict[str, torch.Tensor]) -> None:
    found["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(96)


def change_type(found: dict[str, torch.Tensor]) -> None:
    found["model.norm.weight"] = found["model.norm.weight"].bfloat16()


def quantize(found: dict[str, torch.Tensor]) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    found[name] = found[name].to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (add_bias, r"has the weight model\.layers\.0\.self_attn\.q_proj\.bias"),
        (change_type, r"model\.norm\.weight is torch\.bfloat16, but the embedding torch\.float32"),
        (quantize, r"up_proj\.weight is of type F8_E4M3"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    spoil: Any, message: str, small: Path, tmp_path: Path
) -> None:
    shutil.copytree(small, tmp_path / "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    spoil(found)
    save_file(found, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=message):
        import_from(tmp_path / "hf", tmp_path / "megatron")
    assert not (tmp_path / "megatron").exists()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("config.json", "config.json: no such file; give the directory of a Hugging Face model"),
        ("model.safetensors", "model.safetensors: cannot be read"),
        ("tokenizer.json", "tokenizer.json: no such file"),
    ],
)
def test_a_missing_file_is_named(file: str, message: str, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "hf")
    (tmp_path / "hf" / file).unlink()
    with pytest.raises(InputError, match=message):
        import_from(tmp_path / "hf", tmp_path / "megatron")


@pytest.mark.parametrize(("multiple", "rows"), [(1, 500), (64, 512), (384, 768)])
def test_the_vocabulary_is_padded_with_zeros(
    multiple: int, rows: int, small: Path, tmp_path: Path
) -> None:
    import_from(small, tmp_path / "megatron", multiple)
    found, given = stored(tmp_path / "megatron"), weights(small)
    for ours, theirs in {
        "embedding.word_embeddings.weight": "model.embed_tokens.weight",
        "output_layer.weight": "lm_head.weight",
    }.items():
        assert found[ours].shape[0] == rows
        assert torch.equal(found[ours][:VOCABULARY], given[theirs])
        assert not found[ours][VOCABULARY:].any()
