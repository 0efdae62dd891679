"""Hugging Face directory -> Megatron GPT checkpoint; the inverse of ``export``."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.models import layout
from megatron_sbp.models.checkpoint_writer import StoredWeight, write
from megatron_sbp.models.huggingface import HuggingFaceModel

TOKENIZER, ARGUMENTS = "tokenizer", "arguments.txt"
# What old checkpoints hold besides weights: a table that follows from the configuration.
_TABLES = "rotary_emb.inv_freq"


@dataclass(kw_only=True, slots=True)
class ImportOptions:
    """Options of ``tools/import_hf.py``."""

    load: str = field(metadata={"metavar": "DIR"})
    """Hugging Face directory of a Llama or Qwen3 model: config.json and safetensors."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write, for Megatron's --load or --pretrained-checkpoint."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the model; by default the one in --load."""
    make_vocab_size_divisible_by: int = 128
    """The embedding gets rows of zeros up to a multiple of this; tensor parallelism must divide
    it. 1: no such rows."""

    def __post_init__(self) -> None:
        if self.make_vocab_size_divisible_by < 1:
            raise InputError(
                f"--make-vocab-size-divisible-by {self.make_vocab_size_divisible_by}: give 1 or "
                "more"
            )


def import_hf(options: ImportOptions) -> Manifest:
    """Write a Hugging Face model as a checkpoint that Megatron's ``pretrain()`` starts from.

    Raises:
        InputError: If the model cannot be read, Megatron's GPT cannot compute what it computes, or
            the tokenizer is not the model's.
    """
    model = HuggingFaceModel(options.load)
    tokenizer = Tokenizer(options.tokenizer or options.load)
    with Stage.open(
        options.output,
        "import",
        options={
            "tokenizer": tokenizer.sha256,
            "make_vocab_size_divisible_by": options.make_vocab_size_divisible_by,
        },
        inputs=model.files(),
    ) as stage:
        if not stage.complete:
            args = arguments(model, tokenizer, options.make_vocab_size_divisible_by)
            args.tokenizer_model = str(stage.directory / TOKENIZER)
            stage.finish(counts=write_checkpoint(model, tokenizer, args, stage.workspace))
    return stage.manifest


def arguments(model: HuggingFaceModel, tokenizer: Tokenizer, multiple: int) -> Namespace:
    """The arguments of a run that would have trained a model.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        multiple: What the rows of the embedding are padded to a multiple of.

    Raises:
        InputError: If Megatron's GPT cannot compute what the model computes, or the tokenizer has
            more ids than the model.
    """
    args = layout.to_arguments(model.config, model.directory / "config.json")
    args.vocab_size = model.config.vocab_size
    if tokenizer.vocab_size > args.vocab_size:
        raise InputError(
            f"{tokenizer.directory}: has {tokenizer.vocab_size} ids, but the model in "
            f"{model.directory} knows {args.vocab_size}; give its own tokenizer with --tokenizer"
        )
    args.make_vocab_size_divisible_by = multiple
    args.padded_vocab_size = -(-args.vocab_size // multiple) * multiple
    args.tensor_model_parallel_size = args.pipeline_model_parallel_size = 1
    args.tokenizer_type = "HuggingFaceTokenizer"
    args.ckpt_format = "torch_dist"
    return args


def write_checkpoint(
    model: HuggingFaceModel, tokenizer: Tokenizer, args: Namespace, directory: Path
) -> dict[str, Any]:
    """Write checkpoint, tokenizer and the flags of the architecture into a directory.

    Returns:
        What was written, for a manifest.

    Raises:
        InputError: If a weight is missing, has no place, or has another shape or type than the rest
            of the model says.
    """
    _check_names(model, args)
    weights = list(_weights(model, args))
    dtype = model.dtype(layout.TOP[layout.EMBEDDING][0])
    write(directory, args, weights, dtype)
    tokenizers.copy(str(tokenizer.directory), directory / TOKENIZER)
    flags = [
        *layout.flags(args),
        f"--make-vocab-size-divisible-by {args.make_vocab_size_divisible_by}",
        f"--padded-vocab-size {args.padded_vocab_size}",
        f"--tokenizer-type {args.tokenizer_type}",
        f"--tokenizer-model {args.tokenizer_model}",
        f"--ckpt-format {args.ckpt_format}",
    ]
    (directory / ARGUMENTS).write_text("\n".join(flags) + "\n")
    rows = args.padded_vocab_size - args.vocab_size
    return {
        "model_type": model.config.model_type,
        "vocabulary": args.vocab_size,
        "padding_rows": rows,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _check_names(model: HuggingFaceModel, args: Namespace) -> None:
    """Refuse a model that lacks a weight or has one without a place."""
    wanted = {name for _, _, names in _places(args) for name in names}
    if missing := sorted(wanted - model.names):
        raise InputError(
            f"{model.directory}: has no weight {missing[0]}, nor {len(missing) - 1} others that "
            "its configuration asks for; save the model again with save_pretrained"
        )
    (output,) = layout.TOP[layout.OUTPUT]  # Beside tied embeddings Transformers does not read it.
    for name in sorted(model.names - wanted - {output}):
        if not name.endswith(_TABLES):
            raise InputError(
                f"{model.directory}: has the weight {name}, which has no place in Megatron's "
                "GPT without biases; give a model without it"
            )


def _places(args: Namespace) -> Iterator[tuple[str, int | None, list[str]]]:
    """Yield Megatron's name, layer and Hugging Face's names of every weight."""
    shapes = layout.shapes(args, args.vocab_size)
    for name in layout.TOP:
        if name in shapes:
            yield name, None, list(layout.TOP[name])
    for layer in range(args.num_layers):
        for name, names in layout.LAYER.items():
            if name in shapes:
                yield name, layer, [f"model.layers.{layer}.{one}" for one in names]


def _weights(model: HuggingFaceModel, args: Namespace) -> Iterator[StoredWeight]:
    """Yield every weight to be written, its parts checked."""
    shapes = layout.shapes(args, args.vocab_size)
    dtype = model.dtype(layout.TOP[layout.EMBEDDING][0])
    for name, layer, names in _places(args):
        _check_parts(model, names, layout.parts(name, shapes[name], args), dtype)
        shape, padding = shapes[name], 0
        if name in (layout.EMBEDDING, layout.OUTPUT):
            padding = args.padded_vocab_size - args.vocab_size
            shape = (args.padded_vocab_size, *shape[1:])
        stored = name if layer is None else layout.LAYERS + name
        yield StoredWeight(stored, layer, shape, partial(_read, model, name, names, args, padding))


def _check_parts(
    model: HuggingFaceModel, names: list[str], shapes: list[tuple[int, ...]], dtype: Any
) -> None:
    for name, shape in zip(names, shapes, strict=True):
        if model.shape(name) != shape:
            raise InputError(
                f"{model.directory}: {name} has shape {list(model.shape(name))}, but its "
                f"configuration says {list(shape)}; save the model again with save_pretrained"
            )
        if model.dtype(name) != dtype:
            raise InputError(
                f"{model.directory}: {name} is {model.dtype(name)}, but the embedding {dtype}; "
                "save the model in one type"
            )


def _read(
    model: HuggingFaceModel, name: str, names: list[str], args: Namespace, padding: int
) -> Any:
    """One of Megatron's weights, put together; ``padding`` rows of zeros after it."""
    import torch

    weight = layout.join(name, [model.read(one) for one in names], args)
    return torch.cat([weight, weight.new_zeros(padding, weight.shape[1])]) if padding else weight
