"""Recipes: YAML files with the arguments of every stage.

A recipe is a mapping of sections; a section is a mapping of flags without their dashes. ``base``
names another recipe that this one refines, section by section and flag by flag.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError

Recipe = dict[str, dict[str, Any]]


def load(name: str) -> Recipe:
    """Read a recipe of this package by name, or any recipe by path.

    Raises:
        InputError: If there is no such recipe or it is not a mapping of mappings.
    """
    import yaml

    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(resources.files(__name__))) / f"{name}.yaml"
    try:
        sections = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"{path}: no such recipe; known ones: {known}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not YAML ({reason}); correct it") from None
    if not isinstance(sections, dict):
        raise InputError(f"{path}: holds no sections; see the recipes of the package")
    base = sections.pop("base", None)
    recipe = load(base) if base else {}
    for section, flags in sections.items():
        if not isinstance(flags, dict):
            raise InputError(f"{path}: section {section!r} is no mapping of flags")
        recipe[section] = recipe.get(section, {}) | flags
    return recipe


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
