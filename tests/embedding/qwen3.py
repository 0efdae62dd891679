"""A random model of a few weights, laid out like Qwen3-Embedding."""

import json
from pathlib import Path

EOT = "<|endoftext|>"
PACKAGE = "sentence_transformers.models"
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(texts: list[str], directory: Path, split: str) -> int:
    """Byte-level BPE that ends every text with a token; returns the size of the vocabulary."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    end = made.token_to_id(EOT)
    made.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"$A {EOT}", pair=f"$A {EOT} $B {EOT}", special_tokens=[(EOT, end)]
            ),
        ]
    )
    directory.mkdir(parents=True)
    made.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": EOT,
        "eos_token": EOT,
        "padding_side": "left",
        "model_max_length": 131072,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return made.get_vocab_size()


def write_model(texts: list[str], directory: Path) -> None:
    """The model's directory, with the files that sentence-transformers keeps."""
    import torch
    from transformers import Qwen3Config, Qwen3Model

    vocabulary = write_tokenizer(texts, directory, SPLIT)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    Qwen3Model(config).save_pretrained(directory)
    files = {
        "modules.json": [
            {"idx": number, "name": str(number), "path": path, "type": f"{PACKAGE}.{kind}"}
            for number, (path, kind) in enumerate(
                [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
            )
        ],
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": False,
            "pooling_mode_lasttoken": True,
            "include_prompt": True,
        },
        "config_sentence_transformers.json": {
            "prompts": {"query": "Instruct: Find it\nQuery:", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(content))
