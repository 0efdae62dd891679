"""The SBP group of command-line arguments, beside Megatron's own."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_sbp.errors import InputError
from megatron_sbp.training.checkpoint_arguments import check_checkpoints
from megatron_sbp.training.transformer_engine import check_fp8


@dataclass(kw_only=True)
class SBPArguments:
    """What Synthetic Bootstrapped Pretraining adds to Megatron's arguments."""

    sbp_objective: Literal["lm", "synthesis"] = "lm"
    """lm: next-token prediction on documents, Megatron's GPT pretraining (baseline and joint runs).
    synthesis: log p(d2|d1) on pairs of related documents (synthesizer-tuning)."""

    sbp_pairs: list[str] = field(
        default_factory=list,
        metadata={"argparse_meta": {"type": str, "nargs": "+", "metavar": "DIR"}},
    )
    """Pair stores to train on, each of them mined over some of the data paths; needed by, and only
    by, the synthesis objective."""

    sbp_template: str = "{bos}{d1}{sep}{d2}{eod}"
    """A sample: {bos} and {eod} are the tokenizer's tokens, {sep} is --sbp-separator, {d1} and {d2}
    the documents, and anything else is text, which is tokenized. The loss is on what follows
    {d1}{sep}: d2 and what comes after it."""

    sbp_separator: str = "<|sep|>"
    """Between d1 and d2: a token of the tokenizer, or any string, which is tokenized."""

    sbp_context_documents: int = 1
    """Most documents in the place of {d1}: d1 and its best neighbors in the pair store, with the
    separator between them; d2 and documents of another split are left out. Synthesis then needs
    --context-documents of the same number."""

    sbp_direction: Literal["forward", "backward", "both", "random"] = "forward"
    """Which document of a stored pair is d1: its anchor, its neighbor, each of them once, or one of
    them by the seed's choice."""

    sbp_packing: bool = True
    """Several pairs in a row, without attention between them. Otherwise one pair a row, padded."""

    sbp_segment_multiple: int = 0
    """A pair in a packed row is padded to a multiple of so many positions; 0: of twice the
    context-parallel size. Runs with the same number read the same rows."""

    sbp_overflow: Literal["truncate", "skip"] = "truncate"
    """Pairs that are longer than a row: truncate d1 and then d2, or leave the pair out."""

    sbp_truncate_d1: Literal["head", "tail"] = "tail"
    """The end of a d1 that is too long which is cut off."""

    sbp_d1_share: float = 0.5
    """The share of a row's room that d1 keeps before d2 is cut, too, from 0 to 1."""

    sbp_min_d2: int = 1
    """Pairs of whose d2 fewer tokens would be left are skipped."""

    sbp_synthetic_data: list[str] = field(
        default_factory=list,
        metadata={"argparse_meta": {"type": str, "nargs": "+", "metavar": "PREFIX"}},
    )
    """The data paths that are synthetic. A run that would repeat their documents is refused."""

    sbp_synthetic_share: float | None = None
    """Share of the run's tokens that is read of --sbp-synthetic-data, from 0 to below 1. The
    weights of the blend are computed: --train-data-path has the real paths alone, without
    weights."""

    sbp_allow_synthetic_repeats: bool = False
    """Do not refuse a run that repeats synthetic documents."""


def add_sbp_arguments(parser: ArgumentParser) -> ArgumentParser:
    """Add the group to Megatron's parser (``extra_args_provider``)."""
    from megatron.training.argument_utils import ArgumentGroupFactory

    ArgumentGroupFactory(SBPArguments).build_group(parser, "synthetic bootstrapped pretraining")
    for action in parser._actions:
        # Megatron 0.19.2 has a help text with a bare %, on which --help would fail.
        if "%)" in (action.help or ""):
            action.help = str(action.help).replace("%)", "%%)").replace("%%%)", "%%)")
    return parser


def validate_and_complete(args: Namespace) -> None:
    """Check the SBP arguments against each other and Megatron's; set what the objective implies.

    Raises:
        InputError: Naming the flag and the cure.
    """
    from megatron_sbp.training.sources import set_weights

    synthesis = args.sbp_objective == "synthesis"
    if synthesis and not args.sbp_pairs:
        raise InputError("--sbp-objective synthesis needs --sbp-pairs DIR")
    if not synthesis and args.sbp_pairs:
        raise InputError("--sbp-pairs is given, but --sbp-objective is lm; set it to synthesis")
    if synthesis:
        _complete_synthesis(args)
    _check_evaluation(args)
    check_fp8(args)
    check_checkpoints(args)
    set_weights(args)
    args.sbp_sources = _source_names(args)


def _complete_synthesis(args: Namespace) -> None:
    if args.sft:
        raise InputError("--sft changes how losses are averaged; leave it out")
    if getattr(args, "dataloader_inter_document_masking", False):
        raise InputError("--dataloader-inter-document-masking is for documents; leave it out")
    if args.overlap_moe_expert_parallel_comm:
        raise InputError("--overlap-moe-expert-parallel-comm is not for pairs; leave it out")
    least = 2 * args.context_parallel_size if args.context_parallel_size > 1 else 1
    args.sbp_segment_multiple = args.sbp_segment_multiple or least
    if args.sbp_segment_multiple % least:
        raise InputError(
            f"--sbp-segment-multiple {args.sbp_segment_multiple} is not a multiple of {least}, "
            "twice the context-parallel size"
        )
    rows = max(args.micro_batch_size, getattr(args, "eval_micro_batch_size", None) or 1)
    if args.sbp_packing and args.pipeline_model_parallel_size > 1 and rows > 1:
        raise InputError(
            f"packed rows go through a pipeline one at a time, not {rows}: set --micro-batch-size "
            "and --eval-micro-batch-size to 1, or --no-sbp-packing"
        )
    # Without it micro-batches, and context-parallel ranks, with few d2 tokens would weigh as much
    # as those with many.
    args.calculate_per_token_loss = True
    # The attention is causal within each segment of a row, which needs no mask.
    args.create_attention_mask_in_dataloader = False


def _check_evaluation(args: Namespace) -> None:
    """Refuse what Megatron (0.16 to 0.19) fails over only when it first evaluates."""
    full, fails = getattr(args, "full_validation", False), "fails when it is first evaluated"
    if full and not args.multiple_validation_sets:
        raise InputError(f"--full-validation {fails} without --multiple-validation-sets: add that")
    if (args.virtual_pipeline_model_parallel_size or 1) == 1:
        return
    if full:
        raise InputError(
            f"--full-validation with an interleaved pipeline {fails}: leave out one of the two"
        )
    rows = getattr(args, "eval_micro_batch_size", None) or args.micro_batch_size
    batch = getattr(args, "eval_global_batch_size", None) or args.global_batch_size
    parts = batch // (rows * args.data_parallel_size)
    group = getattr(args, "microbatch_group_size_per_vp_stage", None)
    least = group or args.pipeline_model_parallel_size
    if args.eval_iters and parts < least:
        raise InputError(
            f"--eval-global-batch-size {batch} has {parts} micro-batches, and an interleaved "
            f"pipeline {fails} with fewer than {least}: give "
            f"{least * rows * args.data_parallel_size} or more"
        )


def check_local_layers(args: Namespace) -> None:
    """What this package's layers for ``--transformer-impl local`` do not do.

    Raises:
        InputError: Naming the flag and the cure.
    """
    if args.reset_attention_mask:
        raise InputError(
            "--reset-attention-mask needs --transformer-impl transformer_engine: "
            "the local attention has a causal mask only"
        )
    if args.dataloader_inter_document_masking and args.context_parallel_size > 1:
        raise InputError(
            "--dataloader-inter-document-masking with --context-parallel-size > 1 needs "
            "--transformer-impl transformer_engine"
        )


def _source_names(args: Namespace) -> list[str]:
    """A name for every data path of the training blend, for what is logged."""
    from megatron.training.utils import get_blend_and_blend_per_split

    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if blend is None and blend_per_split is not None:
        blend = blend_per_split[0]
    paths = [] if blend is None else blend[0]
    names = [Path(path).name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
