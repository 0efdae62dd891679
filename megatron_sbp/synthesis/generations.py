"""How many rounds of synthesis lie behind a document: 0 for a real one.

A synthetic document is of generation 1 + the largest of what it was made from: the documents in its
prompt, and those that its model was trained on.
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megatron_sbp.corpus.documents import Corpus
from megatron_sbp.errors import InputError
from megatron_sbp.manifest import FILENAME, Manifest
from megatron_sbp.models.checkpoint import MegatronCheckpoint, is_megatron
from megatron_sbp.npy import open_npy
from megatron_sbp.synthesis.store import COLUMNS, column_path

LARGEST = int(np.iinfo(COLUMNS["generation"]).max)
_CURE = "run this where it was trained, or say with --model-generation what it was trained on"


class Generations:
    """The generation of every document of a corpus.

    Args:
        corpus: Prefixes without the column are real.
    """

    def __init__(self, corpus: Corpus):
        self._corpus = corpus
        self._columns = [_open(prefix) for prefix in corpus.prefixes]

    def of(self, document: int) -> int:
        """The generation of a document."""
        prefix, row = self._corpus.locate(document)
        column = self._columns[prefix]
        return 0 if column is None else int(column[row])


def _open(prefix: Path) -> np.ndarray | None:
    """The column of a prefix, memory-mapped; None for a real corpus."""
    path = column_path(prefix, "generation")
    if not path.exists():
        if column_path(prefix, "seed").exists():
            raise InputError(f"{prefix}: is synthetic, but {path} is missing; synthesize it again")
        return None
    try:
        column = open_npy(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); synthesize again") from None
    return column


def of_model(load: str | Path) -> int:
    """The largest generation of the documents that a model was trained on, by its arguments.

    Followed are the run that saved it, the run whose checkpoint that one began with, and so on. A
    Hugging Face model that ``export_hf.py`` did not write counts as trained on real documents.

    Args:
        load: As for ``model.find``.

    Raises:
        InputError: If a checkpoint or a synthetic corpus that was named is not there any more.
    """
    largest, seen = 0, set[Path]()
    waiting = list(checkpoints(Path(load)))
    while waiting:
        directory = waiting.pop()
        if directory.resolve() in seen:
            continue
        seen.add(directory.resolve())
        args = MegatronCheckpoint(directory).args
        for prefix in getattr(args, "sbp_synthetic_data", None) or []:
            column = _open(Path(prefix))
            if column is None:
                raise InputError(
                    f"{directory}: was trained on {prefix}, of which "
                    f"{column_path(prefix, 'generation')} is missing; {_CURE}"
                )
            largest = max(largest, int(column.max()))
        waiting += _began_with(directory, args)
    return largest


def checkpoints(load: Path) -> Iterator[Path]:
    """The Megatron checkpoint that a model is, or was exported from."""
    if is_megatron(load):
        yield load
    elif (load / FILENAME).is_file() and (manifest := Manifest.read(load)).stage == "export":
        directory = Path(next(iter(manifest.inputs))).parent
        if not is_megatron(directory):
            raise InputError(f"{load}: was exported from {directory}, which is missing; {_CURE}")
        yield directory


def _began_with(directory: Path, args: Namespace) -> Iterator[Path]:
    """The checkpoints of other runs that a run began with."""
    names = ("load", "save", "pretrained_checkpoint")
    load, save, pretrained = (getattr(args, name, None) for name in names)
    for other in (None if load == save else load, pretrained):
        if other is None:
            continue
        if not is_megatron(other):
            raise InputError(f"{directory}: began with {other}, which is missing; {_CURE}")
        yield Path(other)
