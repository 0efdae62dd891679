"""SBP in a pretraining script of one's own: stand-ins for two functions of Megatron.

    from megatron_sbp.training.hooks import parse_and_validate_args, pretrain

after the script's imports is all that a script like Megatron-LM's ``pretrain_gpt.py`` needs. They
are called as Megatron's own are. With ``--sbp-objective synthesis`` the datasets and the forward
step are those of this package, with ``lm``, the default, the script's own. docs/patches.md shows
which releases of Megatron-LM this is tried with.

A script with a loop of its own wraps its functions with ``extra_arguments``, ``Datasets`` and
``forward_step``, and calls ``validate`` when Megatron has validated.
"""

import functools
import inspect
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

from megatron.training import arguments as megatron_arguments
from megatron.training import get_args, training

from megatron_sbp.cli import errors_in_one_line
from megatron_sbp.errors import InputError
from megatron_sbp.training import objective
from megatron_sbp.training.arguments import add_sbp_arguments, validate_and_complete
from megatron_sbp.training.data import DatasetsProvider, check_data_paths
from megatron_sbp.training.sources import announce

type Provider = Callable[[ArgumentParser], ArgumentParser]


@errors_in_one_line()
def parse_and_validate_args(
    extra_args_provider: Provider | None = None, *arguments: Any, **keywords: Any
) -> Namespace:
    """Megatron's ``parse_and_validate_args`` (from 0.18 on), with the SBP arguments."""
    args = megatron_arguments.parse_and_validate_args(
        extra_arguments(extra_args_provider), *arguments, **keywords
    )
    validate(args)
    return args


@functools.wraps(training.pretrain)
@errors_in_one_line()
def pretrain(*arguments: Any, **keywords: Any) -> None:
    """Megatron's ``pretrain``, with the datasets and the forward step of the objective."""
    call = inspect.signature(training.pretrain).bind(*arguments, **keywords)
    given = call.arguments
    datasets = given["train_valid_test_dataset_provider"]
    given["train_valid_test_dataset_provider"] = Datasets(datasets)
    given["forward_step_func"] = forward_step(given["forward_step_func"])
    if "extra_args_provider" in call.signature.parameters:
        # Up to 0.17 pretrain() itself parses, and the first that it calls then is model_provider.
        given["extra_args_provider"] = extra_arguments(given.get("extra_args_provider"))
        given["model_provider"] = _after_validation(given["model_provider"])
    training.pretrain(*call.args, **call.kwargs)


def extra_arguments(own: Provider | None) -> Provider:
    """An ``extra_args_provider`` that adds the SBP arguments to those of the script."""

    def provider(parser: ArgumentParser) -> ArgumentParser:
        return add_sbp_arguments(own(parser) if own is not None else parser)

    return provider


def validate(args: Namespace) -> None:
    """Check the SBP arguments and the data, and set what the objective implies.

    The time for it is after Megatron's own validation and before the model's configuration is made.

    Raises:
        InputError: Naming the flag or file and the cure.
    """
    # --yaml-cfg takes the place of the whole command line, with the SBP arguments.
    if hasattr(args, "sbp_objective"):
        validate_and_complete(args)
    if not _synthesis(args):
        return
    if args.sbp_packing and args.transformer_impl == "local" and args.spec is None:
        raise InputError(
            "--transformer-impl local packs no rows: set --no-sbp-packing, or use "
            "--transformer-impl transformer_engine or a --spec whose attention knows segments"
        )
    check_data_paths(args)


def _synthesis(args: Namespace) -> bool:
    return getattr(args, "sbp_objective", "lm") == "synthesis"


def _after_validation(model_provider: Callable[..., Any]) -> Callable[..., Any]:
    """A ``model_provider`` that validates before it provides."""

    @functools.wraps(model_provider)
    def provider(*arguments: Any, **keywords: Any) -> Any:
        validate(get_args())
        return model_provider(*arguments, **keywords)

    return provider


class Datasets:
    """A ``train_valid_test_datasets_provider`` for both objectives, with the script's attributes.

    Args:
        own: The script's.
    """

    def __init__(self, own: Callable[..., Any]):
        functools.update_wrapper(self, own)
        self._own = own

    @property
    def is_distributed(self) -> bool:
        """Whether every rank calls it; Megatron asks after parsing."""
        return _synthesis(get_args()) or getattr(self._own, "is_distributed", False)

    def __call__(self, sizes: Sequence[int | None], *arguments: Any, **keywords: Any) -> Any:
        """Build the training, validation and test datasets."""
        args = get_args()
        if _synthesis(args):
            return DatasetsProvider(args)(sizes, *arguments, **keywords)
        if getattr(args, "sbp_synthetic_data", None):
            announce(args)
        return self._own(sizes, *arguments, **keywords)


def forward_step(own: Callable[..., Any]) -> Callable[..., Any]:
    """A ``forward_step_func`` for both objectives.

    Args:
        own: The script's.
    """

    @functools.wraps(own)
    def step(*arguments: Any, **keywords: Any) -> Any:
        chosen = objective.forward_step if _synthesis(get_args()) else own
        return chosen(*arguments, **keywords)

    return step
