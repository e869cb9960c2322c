"""Read recipes from TOML files and from the command line, with strict checks.

cyclopts parses both, so that a misspelled key or a wrong type gives the same one-line error in a file and on the
command line. Nothing here imports torch.
"""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.config import Dict

from ditlab.config.evaluation import Evaluation, modern_evaluation
from ditlab.config.fields import renamed
from ditlab.config.meant import remedy, usage_message
from ditlab.config.mentioned import mentioned, without_defaults
from ditlab.config.options import Option, model_options, union
from ditlab.config.sampling import SETTINGS, modern
from ditlab.config.sections import NETWORK as DEFAULT
from ditlab.config.sections import Model, Recipe
from ditlab.config.values import Whole
from ditlab.core.errors import InputError, nearest, nearest_path
from ditlab.core.formats import parse_toml
from ditlab.core.printable import printable
from ditlab.core.sizes import read_text
from ditlab.core.spelling import expand, is_utf8

NETWORK = "--model.name"
Settings = TypeVar("Settings")
Tables = dict[str, dict[str, Any]]
"""Settings by section, as a recipe file holds them."""


def parse_size(text: str) -> tuple[int, int]:
    """Parse "32" or "32x48" as (height, width).

    Raises:
        InputError: another form.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise InputError(f'size "{text}"; give a side such as 32, or HEIGHTxWIDTH such as 32x48')
    return int(sides[0]), int(sides[-1])


def parse_sides(text: str) -> tuple[int, ...]:
    """Parse "32" or "32x48" as (height, width), and "16x32x48" as (frames, height, width).

    Raises:
        InputError: another form.
    """
    if text.count("x") < 2:
        return parse_size(text)
    sides = text.split("x")
    if len(sides) > 3 or not all(side.isdecimal() for side in sides):
        raise InputError(f'size "{text}"; give HEIGHTxWIDTH such as 32x48, or FRAMESxHEIGHTxWIDTH such as 16x32x48')
    return tuple(int(side) for side in sides)


def find_recipe(name: str, kind: str = "", others: str = "") -> Path:
    """Return the path of a recipe.

    Args:
        name: path of a .toml file, or the name of a recipe of the package, such as "digits".
        kind: "" for training, "evaluation" for evaluation protocols, "studies" for studies.
        others: what else may be given, for the message.

    Raises:
        InputError: no such recipe.
    """
    path = Path(expand(name))
    if path.is_file():
        return path
    shipped = shipped_recipes(kind)
    if path.suffix == "" and name in shipped:
        return shipped[name]
    remedy = f"give {others}the path of a .toml file, or {nearest(name, sorted(shipped))}"
    raise InputError(f'no recipe "{name}"; {nearest_path(name, remedy) if path.suffix else remedy}')


def is_recipe(name: str) -> bool:
    """Whether a string is the path of an existing file, or the name of a training recipe of the package."""
    path = Path(expand(name))
    return path.is_file() or (path.suffix == "" and name in shipped_recipes())


def shipped_recipes(kind: str = "") -> dict[str, Path]:
    """Recipes of the package by name; see `find_recipe` for the kinds."""
    package = Path(__file__).parents[1]
    # In the package if it is installed from a wheel, beside src/ in a checkout.
    folders = [parent / "recipes" / kind for parent in (package, package.parents[1])]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a recipe file.

    Raises:
        InputError: the file cannot be read or is not valid TOML; the message gives path and line.
    """
    try:
        return parse_toml(read_text(path))
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}") from error


def with_values(tables: Mapping[str, Mapping[str, Any]], *changes: Mapping[str, Mapping[str, Any]]) -> Tables:
    """Return tables with other values, of which later ones count; a value is replaced as a whole."""
    result = {section: dict(values) for section, values in tables.items()}
    for change in changes:
        for section, values in change.items():
            result[section] = result.get(section, {}) | dict(values)
    return result


def without_network(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables without [model], whose sizes do not apply to another network."""
    return {key: table for key, table in tables.items() if key != "model"}


def check_keys(table: dict[str, Any], source: str, kind: type) -> dict[str, Any]:
    """Return a table in the present spelling, after a check that all its keys exist.

    Args:
        table: key -> value.
        source: the file, for messages.
        kind: the class of the settings.

    Raises:
        InputError: an unknown key; the message proposes the most similar one.
    """
    if kind is Evaluation:
        table = modern_evaluation(table)
    keys = [key.name for key in dataclasses.fields(kind)]
    for key in table:
        if key not in keys:
            what = kind.__name__.lower()
            raise InputError(f'{source} has a key "{key}" that no {what} has; {nearest(key, keys)}')
    return table


def parse_recipe(tables: dict[str, Any], overrides: Sequence[str] = (), source: str = "recipe") -> Recipe:
    """Read a recipe from nested tables and dotted overrides such as "--optim.lr=3e-4".

    Raises:
        InputError: an unknown key (the message proposes the most similar one), or a value of the wrong type.
    """
    tables, notes = renamed(Recipe, check_sections(tables, source))
    tables = without_defaults(tables, to_tables(Recipe()))
    for note in notes:
        warnings.warn(f"{source}: {note}", FutureWarning, stacklevel=2)
    if any(override.partition("=")[0] == NETWORK for override in overrides):
        tables = without_network(tables)
    if (narrow := mentioned(recipe_arguments(), tables, overrides)) is not None:
        return _with_defaults(_read(narrow, {key: table for key, table in tables.items() if table}, overrides, source))
    arguments = _read(recipe_arguments(), tables, overrides, source)
    if arguments.model.others:  # options of a class from outside the package, or misspelled ones
        exact = recipe_arguments(model_options(arguments.model.name), others=False)
        arguments = _read(exact, tables, overrides, source)
    return _as_recipe(arguments)


def recipe_of(arguments: Any, recipe: str = "") -> Recipe:
    """Build the recipe from the arguments that cyclopts read from a command line.

    Args:
        arguments: an instance of `recipe_arguments()`; None is the default recipe.
        recipe: name or path of the recipe of the command line, which has the options of a network from outside the
            package.

    Raises:
        InputError: an unknown option of the network, or a value of the wrong type.
    """
    if arguments is None:
        return Recipe()
    name, others = arguments.model.name, arguments.model.others or {}
    # If `others` has options from the command line, cyclopts adds none from the file.
    table = read_toml(find_recipe(recipe)).get("model", {}) if recipe else {}
    in_file = parse_recipe({"model": table}).model.options if table.get("name") == name else {}
    known = {key: value for key, value in vars(arguments.model).items() if key != "others"}
    options = {key: value for key, value in in_file.items() if key not in known}
    if others:
        read = _read(recipe_arguments(model_options(name), others=False), {}, as_words("--model.", others), "")
        options |= {key: value for key, value in vars(read.model).items() if key != "name" and value is not None}
    return dataclasses.replace(_as_recipe(arguments), model=Model(**known | options))


def _with_defaults(arguments: Any) -> Recipe:
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(Recipe)}
    return Recipe(**{name: kinds[name](**vars(section)) for name, section in vars(arguments).items()})


def _as_recipe(arguments: Any) -> Recipe:
    sections = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Recipe)}
    options = {key: value for key, value in vars(sections["model"]).items() if key != "others"}
    return Recipe(**sections | {"model": Model(**options)})


@cache
def recipe_arguments(options: tuple[Option, ...] | None = None, others: bool = True) -> Any:
    """Make a dataclass like `Recipe` that has a field for each option of the network, for cyclopts.

    Args:
        options: options of the network; None is the options of all families of the package.
        others: accept other option names too, as lists of words in the field `others`.
    """
    fields: list[Any] = []
    for section in dataclasses.fields(Recipe):
        kind: Any = section.type
        if section.name == "model":
            name = ("name", Annotated[str, Parameter(help=NAME_HELP)], DEFAULT)
            known = model_options() if options is None else options
            kind = _section("Model", [name, *option_fields(known, others)])
        panel = Annotated[kind, Parameter(group=PANELS[section.name])]
        fields.append((section.name, panel, dataclasses.field(default_factory=kind)))
    return _section("Recipe", fields)


def _section(name: str, fields: list[tuple[str, Any, Any]]) -> type:
    # cyclopts expands a dataclass only if its module is not in the standard library.
    return dataclasses.make_dataclass(name, fields, frozen=True, namespace={"__module__": __name__})


PANELS = {  # of the help text, in the order of the sections
    section.name: Group.create_ordered(section.name.capitalize(), (section.type.__doc__ or "").partition("\n")[0])
    for section in dataclasses.fields(Recipe)
}
NAME_HELP = "Family and size, such as DiT-XL/2, or package.module:Class."


@cache
def network_arguments(options: tuple[Option, ...] | None = None, others: bool = True) -> Any:
    """Make a dataclass from which cyclopts reads the options of networks as plain flags, see `recipe_arguments`."""
    known = model_options() if options is None else options
    return _section("Options", option_fields(known, others))


def network_options(arguments: Any, name: str) -> dict[str, Any]:
    """Return the options of a network that cyclopts read from a command line.

    Args:
        arguments: an instance of `network_arguments()`; None is no option.
        name: name of the network; "" is any family of the package.

    Raises:
        InputError: an unknown option of the network, or a value of the wrong type.
    """
    if arguments is None:
        return {}
    options = {key: value for key, value in vars(arguments).items() if key != "others" and value is not None}
    if arguments.others:
        exact = network_arguments(model_options(name), others=False)
        others = vars(_read(exact, {}, as_words("--", arguments.others), ""))
        options |= {key: value for key, value in others.items() if value is not None}
    return options


def option_fields(options: Sequence[Option], others: bool) -> list[tuple[str, Any, Any]]:
    """Make the fields of a dataclass for options; every option may be left out."""
    panel = PANELS["model"]
    fields: list[tuple[str, Any, Any]] = [
        (option.name, Annotated[argument_type(option.hint) | None, Parameter(group=panel, help=option.help)], None)
        for option in options
    ]
    if others:
        words = Annotated[dict[str, list[str]] | None, Parameter(name="*", show=False)]
        fields.append(("others", words, None))
    return fields


def as_words(prefix: str, options: Mapping[str, Sequence[str]]) -> list[str]:
    """Return options as words of a command line."""
    words: list[str] = []
    for key, values in options.items():
        words += [f"{prefix}{key}={values[0]}"] if len(values) == 1 else [f"{prefix}{key}", *values]
    return words


def check_model(tables: Mapping[str, Any], source: str) -> None:
    """Check the options of the network in the tables of a recipe.

    Raises:
        InputError: an unknown option, or a value of the wrong type.
    """
    if "model" in tables:
        parse_recipe({"model": tables["model"]}, source=source)


def argument_type(hint: Any) -> Any:
    """Return the type for cyclopts: whole numbers keep all digits, and may be written like 1e6."""
    if hint is int:
        return Whole
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return union([argument_type(part) for part in parts])
    if origin is tuple:
        return tuple[tuple(part if part is Ellipsis else argument_type(part) for part in parts)]  # type: ignore[misc]
    return hint


def parse_table(kind: type[Settings], table: dict[str, Any], source: str) -> Settings:
    """Read settings of a class from a flat table.

    Raises:
        InputError: as `parse_recipe`.
    """
    return _read(kind, check_keys(table, source, kind), (), source)


def _read(kind: type[Settings], tables: dict[str, Any], overrides: Sequence[str], source: str) -> Settings:
    app = App(
        config=Dict(tables, source=source, use_commands_as_keys=False),
        version_flags=[],
        help_flags=[],
        default_parameter=Parameter(consume_multiple=True),  # a list follows its flag: --model.depths 1 2 1
    )

    @app.default
    def read(*, settings: Annotated[kind | None, Parameter(name="*")] = None) -> Settings:  # type: ignore[valid-type]
        return settings or kind()

    try:
        result: Settings = app(list(overrides), exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        line = usage_message(error)
        raise InputError(line if overrides or source in line else f"{source}: {line}") from error
    return result


def check_sections(tables: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the tables in the present spelling, after a check that every top-level key is a section of a recipe.

    Raises:
        InputError: an unknown section, or a key outside of a section.
    """
    sections = [section.name for section in dataclasses.fields(Recipe)]
    for key, value in tables.items():
        if key not in sections:
            section, _, name = str(key).partition(".")
            nested = f'give {{"{section}": {{"{name}": ...}}}}' if name and section in sections else None
            instead = nested or remedy(key) or nearest(str(key), sections)
            noun = "section" if isinstance(value, dict) else "key"
            raise InputError(f'{source} has a {noun} "{key}" that no recipe has; {instead}')
        if not isinstance(value, dict):
            raise InputError(f"{source}: {key} is {value!r}, but must be a table; write [{key}] and its keys below it")
    if "sample" in tables:
        tables = tables | {"sample": modern(tables["sample"], SETTINGS)}
    return tables


def to_tables(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return a recipe as nested tables of plain values, without keys whose value is None or empty."""
    return {
        section: {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(table).items()
            if value is not None and value != {}
        }
        for section, table in vars(recipe).items()
    }


def to_toml(tables: dict[str, dict[str, Any]]) -> str:
    """Return nested tables of scalars and lists as TOML (the standard library reads TOML but does not write it).

    Raises:
        InputError: a path is not UTF-8, which TOML cannot hold.
    """

    def value(v: Any) -> str:
        if isinstance(v, list):
            return f"[{', '.join(map(value, v))}]"
        if isinstance(v, dict):
            return f"{{{', '.join(f'{json.dumps(k)} = {value(x)}' for k, x in v.items())}}}"
        if isinstance(v, float):
            return repr(v)  # inf and nan are valid TOML too
        if isinstance(v, str) and not is_utf8(v):
            raise InputError(f"{printable(v)} is not UTF-8, so a recipe cannot hold it; rename the file or folder")
        return json.dumps(v, ensure_ascii=False).replace("\x7f", "\\u007f")  # strings, whole numbers, booleans

    sections = (
        "\n".join([f"[{name}]", *(f"{k} = {value(v)}" for k, v in table.items())]) for name, table in tables.items()
    )
    return "\n\n".join(sections) + "\n"
