"""A checkpoint that has the weights of every layer, but not the state of every layer.

Layers of Transformer Engine have a state beside their weights: what FP8 remembers of past steps,
empty otherwise. Which layers have one depends on its release, and checkpoints of local layers, such
as those of a run on a CPU, lack some. Megatron would end the run over them; here those layers begin
with a fresh one. A weight that is missing ends it, too, but by its name.
"""

from argparse import Namespace
from typing import Any

from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.validation import StrictHandling

from megatron_sbp.errors import InputError
from megatron_sbp.models.checkpoint import STATE, MegatronCheckpoint, is_megatron


def leave_out_missing(args: Namespace, model: list[Any]) -> list[Any]:
    """A ``pre_wrap_hook``: have the first loading leave out states that the checkpoint lacks.

    That loading raises an ``InputError`` if the checkpoint lacks a weight. Whoever has given
    ``--dist-ckpt-strictness`` has said what is to be done, and gets that.

    Args:
        args: Megatron's arguments.
        model: The chunks of it on this pipeline stage, which are returned.
    """
    if args.dist_ckpt_strictness != StrictHandling.ASSUME_OK_UNEXPECTED.value:
        return model
    given = [directory for directory in (args.load, args.pretrained_checkpoint) if directory]
    # What Megatron loads: its own checkpoint if there is one, or else what it starts from.
    directory = next(filter(is_megatron, given), None)
    if directory is not None:
        checkpoint = MegatronCheckpoint(directory)
        for chunk in model:
            _leave_out(chunk, checkpoint)
    return model


def _leave_out(chunk: Any, checkpoint: MegatronCheckpoint) -> None:
    """Do so in one chunk of a model."""

    def first(*args: Any, **kwargs: Any) -> dict[str, Any]:
        """What to load; Megatron asks for it before it asks for what to save."""
        del chunk.sharded_state_dict  # back to the method
        parts = chunk.sharded_state_dict(*args, **kwargs)
        _check_weights(parts, checkpoint)
        states = checkpoint.states
        return {
            name: part
            for name, part in parts.items()
            if not name.endswith(STATE) or part.key in states
        }

    def known(_: Any, incompatible: Any) -> None:
        """Without this torch would call the absent ones missing."""
        hook.remove()
        missing = incompatible.missing_keys
        missing[:] = [name for name in missing if not name.endswith(STATE)]

    chunk.sharded_state_dict = first
    hook = chunk.register_load_state_dict_post_hook(known)


def _check_weights(parts: dict[str, Any], checkpoint: MegatronCheckpoint) -> None:
    """Megatron's own error has no name of a weight, or the names of all of them."""
    wanted = {part.key for part in parts.values() if isinstance(part, ShardedTensor)}
    missing = sorted(wanted - checkpoint.shapes.keys())
    if missing:
        more = " and others" if len(missing) > 1 else ""
        raise InputError(
            f"{checkpoint.directory}: has no {missing[0]}{more}, which the model of this run has; "
            "set the arguments of the model as they were when it was saved"
        )
