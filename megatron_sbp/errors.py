"""The one exception a user is meant to read, and the guard for optional packages."""

import importlib
from types import ModuleType


class InputError(Exception):
    """Something the user gave is wrong.

    The message is one line that names the place (file, line, document, rank or flag), the offending
    value and the cure. Commands print it and exit with status 2 (see ``megatron_sbp.cli.run``).
    """


def require(module: str, *, package: str, extra: str | None = None) -> ModuleType:
    """Import an optional or heavy module where it is needed.

    Args:
        module: Dotted module name.
        package: Name of the distribution on PyPI.
        extra: Extra of this package that brings it, if it is not a plain dependency.

    Raises:
        InputError: If the module cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = f"megatron_sbp[{extra}]" if extra else package
        raise InputError(
            f"cannot import {module} ({error}): install it with `pip install '{wanted}'`"
        ) from error
