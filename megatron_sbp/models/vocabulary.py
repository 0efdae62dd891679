"""Whether the tokenizer of a corpus is the one that a model was trained with."""

from pathlib import Path

from megatron_sbp.corpus.tokenizer import FILENAME, Tokenizer
from megatron_sbp.errors import InputError
from megatron_sbp.models import export
from megatron_sbp.models.checkpoint import MegatronCheckpoint


def check(checkpoint: MegatronCheckpoint, tokenizer: Tokenizer) -> None:
    """Refuse a checkpoint that cannot be exported, and a tokenizer that is not its own.

    Raises:
        InputError: Naming what does not fit.
    """
    named = getattr(checkpoint.args, "tokenizer_model", None)
    if named is not None:
        check_tokens(tokenizer, Path(named))
    export.check_architecture(checkpoint)
    export.check_vocabulary(checkpoint, tokenizer)


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


def _tokens(directory: Path) -> dict[str, int]:
    from tokenizers import Tokenizer as Backend

    return Backend.from_file(str(directory / FILENAME)).get_vocab(with_added_tokens=True)
