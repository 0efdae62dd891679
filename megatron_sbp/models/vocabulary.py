"""Whether the tokenizer of a corpus is the one that a model was trained with."""

from pathlib import Path

from megatron_sbp.corpus.tokenizer import FILENAME, Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.models import layout
from megatron_sbp.models.checkpoint import MegatronCheckpoint


def check(checkpoint: MegatronCheckpoint, tokenizer: Tokenizer) -> None:
    """Refuse a checkpoint that cannot be exported, and a tokenizer that is not its own.

    Raises:
        InputError: Naming what does not fit.
    """
    check_tokenizer(checkpoint, tokenizer)
    layout.check_architecture(checkpoint.args, checkpoint.directory)


def check_tokenizer(checkpoint: MegatronCheckpoint, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that is not the checkpoint's own.

    Raises:
        InputError: Naming both.
    """
    named = getattr(checkpoint.args, "tokenizer_model", None)
    if named is not None:
        check_tokens(tokenizer, Path(named))
    check_size(checkpoint, tokenizer)


def check_tokens(tokenizer: Tokenizer, directory: Path) -> None:
    """Refuse a tokenizer with other tokens than the one in a directory, if that is still there.

    Raises:
        InputError: Naming both.
    """
    if not (directory / FILENAME).is_file():
        return
    if _tokens(directory) != _tokens(tokenizer.directory):
        other = Tokenizer(directory)
        raise InputError(
            f"{tokenizer.directory}: is not the tokenizer that the model was trained with, "
            f"{directory} ({tokenizer.vocab_size} ids against {other.vocab_size}); "
            "give a corpus with the model's tokenizer"
        )


def check_size(checkpoint: MegatronCheckpoint, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer whose size is not the model's.

    Megatron pads a vocabulary to the rows of the embedding. An imported model may have more rows
    than that, which its maker left unused; its own tokenizer is recognised where it still lies.

    Raises:
        InputError: Naming both sizes.
    """
    args, size = checkpoint.args, tokenizer.vocab_size
    rows = checkpoint.shapes[layout.EMBEDDING][0]
    unit = args.make_vocab_size_divisible_by * args.tensor_model_parallel_size
    imported = getattr(args, "vocab_size", None) is not None
    named = getattr(args, "tokenizer_model", None)
    if size > rows or not (imported or rows - unit < size or _same(tokenizer, named)):
        raise InputError(
            f"{tokenizer.directory}: has {size} ids, but the embedding of {checkpoint.directory} "
            f"has {rows} rows (padded to a multiple of {unit}); give the tokenizer that the model "
            f"was trained with, which lay in {named}"
        )


def _same(tokenizer: Tokenizer, named: str | None) -> bool:
    """Whether a tokenizer has the tokens of the one that lies where the arguments say."""
    if named is None or not (Path(named) / FILENAME).is_file():
        return False
    return _tokens(Path(named)) == _tokens(tokenizer.directory)


def _tokens(directory: Path) -> dict[str, int]:
    from tokenizers import Tokenizer as Backend

    return Backend.from_file(str(directory / FILENAME)).get_vocab(with_added_tokens=True)
