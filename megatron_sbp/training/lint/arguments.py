"""Checks of a run's arguments: layout, Megatron's own rules, SBP's, lengths, tokenizer."""

import math
import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from megatron.training import arguments as megatron_arguments
from megatron.training import global_vars

from megatron_sbp.errors import InputError
from megatron_sbp.training.arguments import add_sbp_arguments, validate_and_complete
from megatron_sbp.training.data import special_token
from megatron_sbp.training.lint.check import Check, Finding
from megatron_sbp.training.sources import training_rows
from megatron_sbp.training.transformer_engine import check_shapes

# Of the chip that the run would find. From Blackwell (10) on, Megatron asks for no variables of the
# environment, which here is not that of the run.
_ARCHITECTURE = 10


@dataclass
class Run:
    """The run that is checked."""

    args: Namespace
    """Its arguments."""
    accepted: bool = False
    """Whether the arguments were validated, which completes them."""
    paths: list[str] = field(default_factory=list)
    """Its data paths, each once."""
    readable: list[str] = field(default_factory=list)
    """Those of them that can be read."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer, None if it could not be loaded."""
        return global_vars._GLOBAL_TOKENIZER

    @property
    def complete(self) -> bool:
        """Whether its datasets can be spoken of: nothing that they are made from is missing."""
        read = bool(self.paths) and self.paths == self.readable
        return self.accepted and read and self.tokenizer is not None


def parse(arguments: Sequence[str], world_size: int) -> Run:
    """Parse a run's arguments as one of its processes would.

    Args:
        arguments: Megatron's and the SBP arguments.
        world_size: Processes of the run; 0: WORLD_SIZE, or the fewest that the layout takes.

    Raises:
        SystemExit: If Megatron's parser refuses them; it has printed why.
    """
    given, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        args = megatron_arguments.parse_args(add_sbp_arguments)
    finally:
        sys.argv = given
    args.rank = 0
    if world_size:
        args.world_size = world_size
    elif "WORLD_SIZE" not in os.environ:
        args.world_size = _fewest_processes(args)
    return Run(args)


def _fewest_processes(args: Namespace) -> int:
    tensor, pipeline = args.tensor_model_parallel_size, args.pipeline_model_parallel_size
    experts = (args.expert_tensor_parallel_size or tensor) * args.expert_model_parallel_size
    return math.lcm(tensor * pipeline * args.context_parallel_size, experts * pipeline)


def checks(run: Run) -> Iterator[tuple[str, Check]]:
    """Name and function of every check, in their order; the first one completes the arguments."""
    yield "arguments", partial(check_arguments, run)
    if run.accepted:
        yield "sequence length", partial(check_lengths, run.args)
    yield "tokenizer", partial(check_tokenizer, run.args)


def check_arguments(run: Run) -> Iterator[Finding]:
    """Have Megatron and SBP validate the arguments, and say which layout they name."""
    args = run.args
    with _any_device():
        megatron_arguments.validate_args(args)
    # Whether FP8 is to be had is a question to the machine of the run.
    fp8, args.fp8 = args.fp8, None
    validate_and_complete(args)
    args.fp8 = fp8
    _check_batch(args)
    run.accepted = True
    sizes = {
        "TP": args.tensor_model_parallel_size,
        "PP": args.pipeline_model_parallel_size,
        "CP": args.context_parallel_size,
        "DP": args.data_parallel_size,
    }
    layout = " x ".join(f"{name} {size}" for name, size in sizes.items())
    yield Finding(
        "ok",
        "arguments",
        f"accepted for {layout} = {args.world_size:,} processes, objective {args.sbp_objective}, "
        f"{training_rows(args):,} rows of {args.seq_length:,} tokens, "
        f"{args.global_batch_size:,} a step",
    )
    if args.use_checkpoint_args:
        text = "--use-checkpoint-args: what the checkpoint says is not read here"
        yield Finding("warning", "arguments", text)


def _check_batch(args: Namespace) -> None:
    """What Megatron finds out when it divides a batch over the processes."""
    together = args.micro_batch_size * args.data_parallel_size
    if args.global_batch_size % together and not args.decrease_batch_size_if_needed:
        raise InputError(
            f"--global-batch-size {args.global_batch_size} is no multiple of {together}, the rows "
            f"that {args.data_parallel_size} data-parallel ranks take at a time"
        )


@contextmanager
def _any_device() -> Iterator[None]:
    """Let Megatron's validation ask which device there is, where there is none."""
    capability = torch.cuda.get_device_capability
    version = megatron_arguments.get_device_arch_version
    torch.cuda.get_device_capability = lambda device=None: (_ARCHITECTURE, 0)
    megatron_arguments.get_device_arch_version = lambda: _ARCHITECTURE
    try:
        yield
    finally:
        torch.cuda.get_device_capability = capability
        megatron_arguments.get_device_arch_version = version


def check_lengths(args: Namespace) -> Iterator[Finding]:
    """Whether a row can be divided as the layout and FP8 ask for."""
    length, context = args.seq_length, args.context_parallel_size
    shares = args.tensor_model_parallel_size if args.sequence_parallel else 1
    needs = {}
    if context > 1:
        needs[2 * context] = f"2 x --context-parallel-size {context}"
    if shares > 1:
        needs[context * shares] = f"--context-parallel-size {context} x {shares} tensor ranks"
    for multiple, why in needs.items():
        if length % multiple:
            raise InputError(f"--seq-length {length} is no multiple of {multiple} ({why})")
    if args.fp8:
        check_shapes(args)
    yield Finding("ok", "sequence length", f"{length:,} tokens a row can be divided over the ranks")


def check_tokenizer(args: Namespace) -> Iterator[Finding]:
    """Load the tokenizer as the run does, and say what its special tokens are."""
    global_vars.set_args(args)
    tokenizer = global_vars.rebuild_tokenizer(args)
    found = {name: special_token(tokenizer, name) for name in ("bos", "eod", "pad")}
    named = ", ".join(
        f"{name} {number} {spelled(tokenizer, [number])}"
        for name, number in found.items()
        if number is not None
    )
    yield Finding(
        "ok",
        "tokenizer",
        f"{args.tokenizer_model or args.tokenizer_type}: {tokenizer.vocab_size:,} ids, padded to "
        f"{args.padded_vocab_size:,} for the model; {named}",
    )
    if found["eod"] is None:
        raise InputError("the tokenizer has no end-of-document token; give one that has")
    if args.sbp_objective == "synthesis":
        yield from _check_pair_tokens(args, tokenizer, found)


def _check_pair_tokens(
    args: Namespace, tokenizer: Any, found: dict[str, int | None]
) -> Iterator[Finding]:
    for name in ("bos", "pad"):
        if found[name] is None:
            text = f"the tokenizer has no {name}; its eod {found['eod']} stands for it"
            yield Finding("warning", "tokenizer", text)
    separator = list(tokenizer.tokenize(args.sbp_separator))
    shown = f"--sbp-separator {args.sbp_separator!r}"
    if not separator:
        raise InputError(f"{shown} has no tokens; give a token or some text")
    if len(separator) > 1:
        pieces = ", ".join(f"{token} {spelled(tokenizer, [token])}" for token in separator)
        text = (
            f"{shown} is no token of the tokenizer, which splits it in {len(separator)}: {pieces}"
        )
        yield Finding("warning", "tokenizer", text)
    else:
        yield Finding("ok", "tokenizer", f"{shown} is token {separator[0]}")


def spelled(tokenizer: Any, tokens: Sequence[int]) -> str:
    """Text of token ids, special ones written out, in quotes."""
    return repr(tokenizer.detokenize(list(tokens), skip_special_tokens=False))
