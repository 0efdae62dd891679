"""A checkpoint whose weights load without complaint, but into another model."""

from argparse import Namespace

from megatron_sbp.errors import InputError
from megatron_sbp.models.checkpoint import MegatronCheckpoint, is_megatron

# What shapes no weight, so that loading cannot notice it: Megatron compares none of these, and
# --use-checkpoint-args does not restore all of them.
_SILENT = {
    "qk_layernorm": "--qk-layernorm",
    "layernorm_epsilon": "--norm-epsilon",
    "rotary_base": "--rotary-base",
    "rotary_percent": "--rotary-percent",
    "use_rope_scaling": "--use-rope-scaling",
}


def check_checkpoints(args: Namespace) -> None:
    """Refuse to start from a checkpoint of a model that computes something else.

    Raises:
        InputError: Naming the checkpoint, the flag and both values.
    """
    for flag in ("load", "pretrained_checkpoint"):
        directory = getattr(args, flag, None)
        if directory is None or not is_megatron(directory):
            continue
        saved = MegatronCheckpoint(directory).args
        for name, spelled in _SILENT.items():
            given, value = getattr(args, name, None), getattr(saved, name, None)
            if value is not None and given != value:
                raise InputError(
                    f"{directory}: was trained with {name} {value}, but this run has {given}, and "
                    f"Megatron would load it all the same; set {spelled} as it was"
                )
