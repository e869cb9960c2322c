"""Recipes: frozen dataclasses, read from TOML and overridden on the command line, strictly.

cyclopts does the reading in both directions, so a misspelt key or a wrong type gets the same one line whether it
stands in a file or behind `--`. Nothing here imports torch. Times are t in 0..1 (0 is data); progress, warm-up
and intervals are counted in images.
"""

import dataclasses
import json
import re
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from cyclopts import App, CycloptsError, Parameter
from cyclopts.config import Dict

from ditlab.config.fields import renamed
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError, nearest

NETWORK = "--model.name"
Settings = TypeVar("Settings")


def parse_size(text: str) -> tuple[int, int]:
    """ "32" or "32x48" -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f'size "{text}"; give a side such as 32, or HEIGHTxWIDTH such as 32x48')
    return int(sides[0]), int(sides[-1])


def find_recipe(name: str, kind: str = "") -> Path:
    """The path of a recipe: a file, or the name of one that comes with the package ("digits").

    Args:
        name: path or name.
        kind: "" for training, "evaluation" for scores, "studies" for studies.
    """
    given = Path(name)
    if given.is_file():
        return given
    shipped = shipped_recipes(kind)
    if given.suffix == "" and name in shipped:
        return shipped[name]
    raise InputError(f'no recipe "{name}"; give the path of a .toml file, or {nearest(name, sorted(shipped))}')


def shipped_recipes(kind: str = "") -> dict[str, Path]:
    """Name -> path of each recipe of a kind that comes with the package."""
    package = Path(__file__).parents[1]
    # Inside an installed wheel, or beside src/ in a checkout.
    homes = [home / "recipes" / kind for home in (package, package.parents[1])]
    return {path.stem: path for home in homes for path in sorted(home.glob("*.toml"))}


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a recipe file; `InputError` with path and line when it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}") from error


def without_network(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for somebody who names another network, and so says all of it: sizes of the one would mean nothing."""
    return {key: table for key, table in tables.items() if key != "model"}


def check_keys(table: dict[str, Any], source: str, kind: type) -> dict[str, Any]:
    """The table, once every key is one of this kind of settings."""
    keys = [key.name for key in dataclasses.fields(kind)]
    for key in table:
        if key not in keys:
            what = kind.__name__.lower()
            raise InputError(f'{source} has a key "{key}" that no {what} has; {nearest(key, keys)}')
    return table


def parse_recipe(tables: dict[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """A recipe from nested tables and dotted overrides such as "--optim.lr=3e-4".

    Raises:
        InputError: an unknown key (the line names the nearest) or a wrong type (the line names it).
    """
    tables, notes = renamed(Recipe, check_sections(tables, source))
    for note in notes:
        warnings.warn(f"{source}: {note}", FutureWarning, stacklevel=2)
    if any(each.partition("=")[0] == NETWORK for each in overrides):
        tables = without_network(tables)
    return _read(Recipe, tables, overrides, source)


def parse_table(kind: type[Settings], table: dict[str, Any], source: str) -> Settings:
    """Settings of this kind from a flat table.

    Raises:
        InputError: as `parse_recipe`.
    """
    return _read(kind, check_keys(table, source, kind), (), source)


def _read(kind: type[Settings], tables: dict[str, Any], overrides: Sequence[str], source: str) -> Settings:
    app = App(config=Dict(tables, source=source, use_commands_as_keys=False), version_flags=[], help_flags=[])

    @app.default
    def read(*, settings: Annotated[kind | None, Parameter(name="*")] = None) -> Settings:  # type: ignore[valid-type]
        return settings or kind()

    try:
        found: Settings = app(list(overrides), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        told = one_line(error)
        raise InputError(told if overrides or source in told else f"{source}: {told}") from error
    return found


def one_line(error: CycloptsError) -> str:
    """cyclopts' message on a single line, with the keys of a file written as they are overridden."""
    text = re.sub(r'"?\[(\w+)\]\[(\w+)\]"?', r"\1.\2", " ".join(str(error).split()))
    text = re.sub(r'"?\[(\w+)\]"?', r"\1", text)  # of a flat table
    name = error.argument.name if error.argument else ""
    return text if not name or name.lstrip("-") in text else f"{name}: {text}"


def check_sections(tables: dict[str, Any], source: str) -> dict[str, Any]:
    """The tables, once every top-level key is a section of a recipe."""
    sections = [section.name for section in dataclasses.fields(Recipe)]
    for key, value in tables.items():
        if key not in sections:
            raise InputError(f'{source} has a section "{key}" that no recipe has; {nearest(key, sections)}')
        if not isinstance(value, dict):
            raise InputError(f"{source}: {key} is {value!r}, but must be a table; write [{key}] and its keys below it")
    return tables


def to_tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Nested tables of plain values, without the keys that are None."""
    return {
        section: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in table.items()
            if value is not None and value != {}
        }
        for section, table in dataclasses.asdict(recipe).items()
    }


def to_toml(tables: dict[str, dict[str, Any]]) -> str:
    """TOML text of nested tables of scalars and lists (the standard library reads TOML but does not write it)."""

    def value(v: Any) -> str:
        if isinstance(v, list):
            return f"[{', '.join(map(value, v))}]"
        if isinstance(v, dict):
            return f"{{{', '.join(f'{json.dumps(k)} = {value(x)}' for k, x in v.items())}}}"
        if isinstance(v, float):
            return repr(v)  # TOML has inf and nan too
        return json.dumps(v, ensure_ascii=False).replace("\x7f", "\\u007f")  # strings, whole numbers, booleans

    sections = (
        "\n".join([f"[{name}]", *(f"{k} = {value(v)}" for k, v in table.items())]) for name, table in tables.items()
    )
    return "\n\n".join(sections) + "\n"
