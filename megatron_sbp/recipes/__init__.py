"""Recipes: YAML files with the arguments of every stage.

A recipe is a mapping of sections; a section is a mapping of flags without their dashes. ``base``
names another recipe that this one refines, section by section and flag by flag, or a list of them,
of which a later one refines the earlier. What the sections mean is in ``megatron_sbp.recipes.run``.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError

type Flags = dict[str, Any]
type Recipe = dict[str, Flags]


def names() -> list[str]:
    """Names of the recipes of this package."""
    return sorted(path.stem for path in _directory().glob("*.yaml"))


def load(name: str) -> Recipe:
    """Read a recipe of this package by name, or any recipe by path.

    Raises:
        InputError: If there is no such recipe or it is not a mapping of mappings.
    """
    import yaml

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _directory() / f"{name}.yaml"
    try:
        sections = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; known ones: {', '.join(names())}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not YAML ({reason}); correct it") from None
    if not isinstance(sections, dict):
        raise InputError(f"{path}: holds no sections; see the recipes of the package")
    bases = sections.pop("base", None) or []
    recipe: Recipe = {}
    for refinement in [*map(load, bases if isinstance(bases, list) else [bases]), sections]:
        for section, flags in refinement.items():
            if not isinstance(flags, dict):
                raise InputError(f"{path}: section {section!r} is no mapping of flags")
            recipe[section] = recipe.get(section, {}) | flags
    return recipe


def _directory() -> Path:
    return Path(str(resources.files(__name__)))


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """A section as a command line: ``true`` gives the bare flag, ``false`` and ``null`` nothing."""
    line: list[str] = []
    for flag, value in flags.items():
        if value is None or value is False:
            continue
        line.append(f"--{flag}")
        if value is not True:
            line += [str(item) for item in (value if isinstance(value, list) else [value])]
    return line
