"""What a synthesizer was tuned with, beside what is asked of it."""

from pathlib import Path

from megatron_sbp.errors import InputError
from megatron_sbp.models.checkpoint import MegatronCheckpoint
from megatron_sbp.synthesis.generations import checkpoints
from megatron_sbp.synthesis.options import SynthesizeOptions

_PROMPT = ("template", "separator", "context_documents")


def check_prompt(options: SynthesizeOptions) -> None:
    """Refuse a prompt of another form than that of the pairs that the model was tuned on.

    A checkpoint that was not tuned on pairs, and a model of which there is no Megatron checkpoint,
    may have any.

    Raises:
        InputError: Naming the option and both values.
    """
    for directory in checkpoints(Path(options.load)):
        args = MegatronCheckpoint(directory).args
        if getattr(args, "sbp_objective", None) != "synthesis":
            continue
        for name in _PROMPT:
            given, tuned = getattr(options, name), getattr(args, f"sbp_{name}", None)
            if tuned is not None and tuned != given:
                flag = name.replace("_", "-")
                raise InputError(
                    f"--{flag} {given!r}: {options.load} was tuned with --sbp-{flag} {tuned!r}; "
                    f"give that"
                )
