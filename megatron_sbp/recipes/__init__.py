"""Recipes: YAML files with the arguments of every stage.

A recipe is a mapping of sections; a section is a mapping of flags without their dashes. ``base``
names another recipe that this one refines, section by section and flag by flag, or a list of them,
of which a later one refines the earlier. What the sections mean is in ``megatron_sbp.recipes.run``.
"""

from collections.abc import Mapping
from importlib import resources
from itertools import accumulate
from pathlib import Path
from typing import Any

from megatron_sbp.errors import InputError
from megatron_sbp.files import check_regular

_MOST_ALIASES = 16  # Each can at most double a recipe, nested ones again and again.
_MOST_BRACKETS = 20
_DEPTH = 3  # Mappings inside a section: layouts, kind of device, number of devices.

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
    return _load(name, {})


def _load(name: str, loaded: dict[Path, Recipe | None]) -> Recipe:
    """Read a recipe unless it has been; ``loaded`` has None for those that are being read."""
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = _directory() / f"{name}.yaml"
    if path in loaded:
        if (known := loaded[path]) is None:
            raise InputError(f"{path}: is, by its bases, a base of itself; leave one out")
        return known
    loaded[path] = None
    sections = _sections(path)
    bases = sections.pop("base", None) or []
    if not isinstance(bases, list):
        bases = [bases]
    for base in bases:
        if not isinstance(base, str):
            raise InputError(f"{path}: base {base!r:.40} is no name of a recipe")
    recipe: Recipe = {}
    for refinement in [*(_load(base, loaded) for base in bases), sections]:
        for section, flags in refinement.items():
            recipe[section] = recipe.get(section, {}) | flags
    loaded[path] = recipe
    return recipe


def _sections(path: Path) -> dict[str, Any]:
    """The checked sections of one file, and its ``base``."""
    import yaml

    try:
        check_regular(path)
        text = path.read_text()
        _check_structure(path, text)
        sections = yaml.safe_load(text)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such recipe; known ones: {', '.join(names())}") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; check the path") from None
    except Exception as error:  # PyYAML makes numbers and dates with whatever errors those have
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not YAML ({reason[:200]}); correct it") from None
    if not isinstance(sections, dict):
        raise InputError(f"{path}: holds no sections; see the recipes of the package")
    for section, flags in sections.items():
        if section != "base":
            if not isinstance(flags, dict):
                raise InputError(f"{path}: section {section!r:.40} is no mapping of flags")
            _check_values(f"{path}: {section}", flags, _DEPTH)
    return sections


def _check_structure(path: Path, text: str) -> None:
    """Refuse what would take minutes to read, or grow without bounds, before it is read."""
    import yaml

    # PyYAML's time grows with the cube of the brackets that are open.
    depths = accumulate((character in "[{") - (character in "]}") for character in text)
    if max(depths, default=0) > _MOST_BRACKETS:
        raise InputError(f"{path}: more than {_MOST_BRACKETS} brackets are open; write it flat")
    depth = aliases = 0
    for event in yaml.parse(text):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        aliases += isinstance(event, yaml.AliasEvent)
        if depth > _DEPTH + 3:  # the recipe, a section, a list of values
            raise InputError(f"{path}: its values are nested {depth} deep; write them flat")
        if aliases > _MOST_ALIASES:
            raise InputError(
                f"{path}: has more than {_MOST_ALIASES} aliases (*name); share flags with `base`"
            )


def _check_values(place: str, flags: Mapping[Any, Any], depth: int) -> None:
    """Refuse what is neither a value, nor a list of values, nor a mapping of such."""
    for name, value in flags.items():
        if not isinstance(name, str | int):
            raise InputError(f"{place}: {name!r:.40} is no name of a flag")
        if isinstance(value, dict) and depth:
            _check_values(f"{place}.{name}", value, depth - 1)
            continue
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str | int | float | None):
                raise InputError(
                    f"{place}.{name}: {item!r:.40} is no text, number or true or false; put it in "
                    "quotes"
                )


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
