"""A Hugging Face model directory: its configuration, and its weights one at a time."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError, require
from megatron_sbp.files import check_regular

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class HuggingFaceModel:
    """A model as ``save_pretrained`` leaves it.

    Args:
        directory: Holds ``config.json`` and safetensors.

    Raises:
        InputError: If a file is missing.
    """

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        if not (self.directory / CONFIG).is_file():
            raise InputError(
                f"{self.directory / CONFIG}: no such file; give the directory of a Hugging Face "
                "model (`hf download NAME --local-dir DIR` brings one)"
            )
        self._files: dict[str, str] = {}
        """Name of a weight -> file."""
        if (self.directory / INDEX).is_file():
            try:
                self._files = dict(json.loads((self.directory / INDEX).read_text())["weight_map"])
            except (ValueError, KeyError, TypeError) as error:
                raise self._unreadable(INDEX, error) from None
        else:
            self._files = dict.fromkeys(self._open(SINGLE).keys(), SINGLE)

    def files(self) -> list[Path]:
        """Configuration and weights, sorted."""
        return sorted(self.directory / name for name in {CONFIG, *self._files.values()})

    @property
    def names(self) -> set[str]:
        """Names of all weights."""
        return set(self._files)

    @cached_property
    def config(self) -> Any:
        """Transformers' configuration, in which what ``config.json`` leaves out is filled in.

        Raises:
            InputError: If Transformers cannot read it.
        """
        transformers = require("transformers", package="transformers")
        try:
            return transformers.AutoConfig.from_pretrained(self.directory, local_files_only=True)
        except Exception as error:  # every configuration class raises its own
            raise self._unreadable(CONFIG, error) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return tuple(self._open(self._files[name]).get_slice(name).get_shape())

    def dtype(self, name: str) -> Any:
        """The type of a weight.

        Raises:
            InputError: If it is not one that a model is trained in.
        """
        import torch

        stored = self._open(self._files[name]).get_slice(name).get_dtype()
        if stored not in _DTYPES:
            raise InputError(
                f"{self.directory / self._files[name]}: {name} is of type {stored}; give a model "
                f"in one of {', '.join(_DTYPES)}"
            )
        return getattr(torch, _DTYPES[stored])

    def read(self, name: str) -> Any:
        """The tensor of a weight."""
        return self._open(self._files[name]).get_tensor(name)

    @cached_property
    def _opened(self) -> dict[str, Any]:
        return {}

    def _open(self, file: str) -> Any:
        """The mapped file; nothing of it is in memory until it is asked for."""
        from safetensors import safe_open

        if file not in self._opened:
            try:
                check_regular(self.directory / file)
                self._opened[file] = safe_open(self.directory / file, framework="pt")
            except Exception as error:  # SafetensorError and OSError have no common base
                raise self._unreadable(file, error) from None
        return self._opened[file]

    def _unreadable(self, file: str, error: BaseException) -> InputError:
        reason = " ".join(str(error).split()) or type(error).__name__
        return InputError(
            f"{self.directory / file}: cannot be read ({reason[:200]}); save the model again with "
            "save_pretrained, as safetensors"
        )
