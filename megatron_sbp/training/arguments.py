"""The SBP group of command-line arguments, beside Megatron's own."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_sbp.errors import InputError


@dataclass(kw_only=True)
class SBPArguments:
    """What Synthetic Bootstrapped Pretraining adds to Megatron's arguments."""

    sbp_objective: Literal["lm", "synthesis"] = "lm"
    """lm: next-token prediction on documents, Megatron's GPT pretraining (baseline and joint runs).
    synthesis: log p(d2|d1) on pairs of related documents (synthesizer-tuning)."""

    sbp_pairs: str | None = field(
        default=None, metadata={"argparse_meta": {"type": str, "metavar": "DIR"}}
    )
    """Pair store to train on; needed by, and only by, the synthesis objective."""

    sbp_separator: str = "<|sep|>"
    """Between d1 and d2: a token of the tokenizer, or any string, which is tokenized."""

    sbp_synthetic_data: list[str] = field(
        default_factory=list,
        metadata={"argparse_meta": {"type": str, "nargs": "+", "metavar": "PREFIX"}},
    )
    """The data paths that are synthetic. A run that would repeat their documents is refused."""


def add_sbp_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Add the group to Megatron's parser (``extra_args_provider``)."""
    from megatron.training.argument_utils import ArgumentGroupFactory

    ArgumentGroupFactory(SBPArguments).build_group(parser, "synthetic bootstrapped pretraining")
    return parser


def validate_and_complete(args: Namespace) -> None:
    """Check the SBP arguments against each other and Megatron's; set what the objective implies.

    Raises:
        InputError: Naming the flag and the cure.
    """
    synthesis = args.sbp_objective == "synthesis"
    if synthesis and args.sbp_pairs is None:
        raise InputError("--sbp-objective synthesis needs --sbp-pairs DIR")
    if not synthesis and args.sbp_pairs is not None:
        raise InputError("--sbp-pairs is given, but --sbp-objective is lm; set it to synthesis")
    if synthesis and args.sft:
        raise InputError("--sft changes how losses are averaged; leave it out")
    if synthesis and args.context_parallel_size > 1:
        raise InputError("--sbp-objective synthesis does not run with --context-parallel-size > 1")
    if args.transformer_impl == "local" and args.reset_attention_mask:
        raise InputError(
            "--reset-attention-mask needs --transformer-impl transformer_engine: "
            "the local attention has a causal mask only"
        )
    if synthesis:
        # Without it micro-batches with few d2 tokens would weigh as much as those with many.
        args.calculate_per_token_loss = True
        # One pair a row, padded at its end: the causal mask of the attention itself is enough.
        args.create_attention_mask_in_dataloader = False


def separator_ids(tokenizer: Any, separator: str) -> tuple[int, ...]:
    """Token ids of the separator, which may be a special token or any string."""
    return tuple(tokenizer.tokenize(separator))
