"""Megatron GPT checkpoint -> Hugging Face directory."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_sbp.corpus import tokenizer as tokenizers
from megatron_sbp.corpus.tokenizer import Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import Manifest, Stage
from megatron_sbp.models import layout, vocabulary
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.models.huggingface import CONFIG, INDEX

_SHARD_SIZE = "5GB"


@dataclass(kw_only=True, slots=True)
class ExportOptions:
    """Options of ``tools/export_hf.py``."""

    load: str = field(metadata={"metavar": "CKPT"})
    """Directory that Megatron saved to; its newest checkpoint is taken."""
    output: str = field(metadata={"metavar": "DIR"})
    """Directory to write."""
    tokenizer: str | None = field(default=None, metadata={"metavar": "DIR"})
    """Tokenizer of the model; by default the one that the checkpoint's arguments name."""
    max_shard_size: str = _SHARD_SIZE
    """Weights that need more bytes are written as several files of at most this."""


def export(options: ExportOptions) -> Manifest:
    """Write a checkpoint as a Hugging Face directory, tokenizer included.

    Raises:
        InputError: If the checkpoint cannot be read, its architecture has no Hugging Face layout
            here, or the tokenizer is not the model's.
    """
    checkpoint = MegatronCheckpoint(options.load)
    with Stage.open(
        options.output,
        "export",
        options={"tokenizer": options.tokenizer, "max_shard_size": options.max_shard_size},
        inputs=checkpoint.fingerprints(),
    ) as stage:
        if not stage.complete:
            tokenizer = Tokenizer(options.tokenizer or tokenizer_directory(checkpoint))
            counts = write_model(
                checkpoint, tokenizer, stage.workspace, max_shard_size=options.max_shard_size
            )
            stage.finish(counts=counts)
    return stage.manifest


def tokenizer_directory(checkpoint: MegatronCheckpoint) -> Path:
    """The tokenizer that the checkpoint's arguments name.

    Raises:
        InputError: If it is not there.
    """
    named = getattr(checkpoint.args, "tokenizer_model", None)
    if named is None or not Path(named).is_dir():
        raise InputError(
            f"{checkpoint.directory}: was trained with the tokenizer {named}, which is not a "
            "directory here; give it with --tokenizer DIR"
        )
    return Path(named)


def write_model(
    checkpoint: MegatronCheckpoint,
    tokenizer: Tokenizer,
    directory: Path,
    *,
    max_shard_size: str = _SHARD_SIZE,
) -> dict[str, Any]:
    """Write configuration, weights and tokenizer into a directory.

    Rows of the embedding that only pad the vocabulary are left out. One file of weights is in
    memory at a time.

    Args:
        checkpoint: The model.
        tokenizer: Its tokenizer.
        directory: Is made if need be.
        max_shard_size: Most bytes of a file, as "500MB" or "5GB".

    Returns:
        What was written, for a manifest.

    Raises:
        InputError: As ``export``.
    """
    args = checkpoint.args
    layout.check_architecture(args, checkpoint.directory)
    vocabulary.check_size(checkpoint, tokenizer)
    rows = max(getattr(args, "vocab_size", None) or 0, tokenizer.vocab_size)
    places = list(_places(checkpoint, rows))
    config = layout.to_config(args) | {
        "vocab_size": rows,
        "torch_dtype": str(checkpoint.dtype(layout.FINAL_NORM)).removeprefix("torch."),
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eod,
        "pad_token_id": tokenizer.pad,
    }
    directory.mkdir(parents=True, exist_ok=True)
    tokenizers.copy(str(tokenizer.directory), directory)
    _write_weights(checkpoint, places, directory, max_shard_size)
    (directory / CONFIG).write_text(json.dumps(config, indent=1) + "\n")
    return {
        "layout": config["architectures"][0],
        "parameters": sum(math.prod(shape) for place in places for shape in place.targets.values()),
        "vocabulary": rows,
        "dtype": config["torch_dtype"],
        "iteration": checkpoint.directory.name,
    }


@dataclass(frozen=True)
class _Place:
    """A tensor of the checkpoint, or one layer of it, and what becomes of it."""

    stored: str
    """Its name in the checkpoint."""
    row: int | None
    """The layer, if the tensor stacks them."""
    name: str
    """Megatron's name within the model or the layer."""
    shape: tuple[int, ...]
    """Of what is kept of it."""
    targets: dict[str, tuple[int, ...]]
    """Hugging Face's names -> shapes."""


def _places(checkpoint: MegatronCheckpoint, rows: int) -> Iterator[_Place]:
    """Yield every tensor of a checkpoint, its embeddings cut to ``rows``; layers ascending."""
    args = checkpoint.args
    layers: list[tuple[int, str, int | None, str, tuple[int, ...]]] = []
    for stored, shape in checkpoint.shapes.items():
        part = stored.removeprefix(layout.LAYERS)
        number, _, rest = part.partition(".")
        if stored in layout.TOP:
            kept = (rows, *shape[1:]) if stored in (layout.EMBEDDING, layout.OUTPUT) else shape
            (target,) = layout.TOP[stored]
            yield _Place(stored, None, stored, kept, {target: kept})
        elif number.isdecimal():
            layers.append((int(number), stored, None, rest, shape))
        else:
            layers += [(layer, stored, layer, part, shape[1:]) for layer in range(shape[0])]
    for layer, stored, row, part, shape in sorted(layers, key=lambda one: one[0]):
        name = layout.UNFUSED.get(part, part)
        if name not in layout.LAYER:
            raise InputError(
                f"{checkpoint.directory}: holds {stored}, which has no place in the Llama and "
                "Qwen3 layouts, so it cannot be exported"
            )
        names = [f"model.layers.{layer}.{target}" for target in layout.LAYER[name]]
        shapes = layout.parts(name, shape, args)
        yield _Place(stored, row, name, shape, dict(zip(names, shapes, strict=True)))


def _write_weights(
    checkpoint: MegatronCheckpoint, places: list[_Place], directory: Path, max_shard_size: str
) -> None:
    """Write the weights, one file in memory at a time."""
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    planned = {
        name: torch.empty(shape, dtype=checkpoint.dtype(place.stored), device="meta")
        for place in places
        for name, shape in place.targets.items()
    }
    try:
        files = split_torch_state_dict_into_shards(planned, max_shard_size=max_shard_size)
    except ValueError as error:
        raise InputError(f"--max-shard-size {max_shard_size}: {error}; give one as 5GB") from None
    for file, names in files.filename_to_tensors.items():
        weights = {
            name: piece
            for place in places
            if not place.targets.keys().isdisjoint(names)
            for name, piece in _read(checkpoint, place).items()
            if name in names
        }
        save_file(weights, directory / file, metadata={"format": "pt"})
    if files.is_sharded:
        index = {"metadata": files.metadata, "weight_map": files.tensor_to_filename}
        (directory / INDEX).write_text(json.dumps(index, indent=1) + "\n")


def _read(checkpoint: MegatronCheckpoint, place: _Place) -> dict[str, Any]:
    """Hugging Face's weights in a tensor of a checkpoint."""
    weight = checkpoint.read(place.stored, place.row)[: place.shape[0]]
    pieces = layout.split(place.name, weight, checkpoint.args)
    return {name: piece.contiguous() for name, piece in zip(place.targets, pieces, strict=True)}
