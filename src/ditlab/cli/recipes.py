"""Read the recipe that a command line names, and explain mistakes."""

import sys
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cyclopts import App, ArgumentCollection, CycloptsError, UnknownOptionError
from cyclopts.config import Dict

from ditlab.config.evaluation import RENAMED, Copying, Evaluation
from ditlab.config.fields import old_names, renamed
from ditlab.config.meant import remedy, usage_message
from ditlab.config.reader import (
    NETWORK,
    check_keys,
    check_model,
    check_sections,
    find_recipe,
    is_recipe,
    read_toml,
    without_network,
)
from ditlab.config.sampling import SETTINGS
from ditlab.config.sections import Recipe
from ditlab.core.printable import printable

OF_TRAINING = ("config", "plan", "train")  # commands that take the recipe of a training run
COPYING = {option.name for option in fields(Copying)}


def recipe_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Set the options that are not on the command line from the recipe that it names (a hook of cyclopts)."""
    for argument in arguments:
        if argument.field_info.name == "recipe" and argument.tokens and commands[0] != "study":
            is_protocol = commands[0] not in OF_TRAINING
            name = argument.tokens[0].value
            if commands[0] == "train" and is_data(name):
                Dict({commands[0]: {"given": given_settings(arguments)}}, source=name)(app, commands, arguments)
                return
            others = "a folder of images, " if commands[0] == "train" else ""
            path = find_recipe(name, "evaluation" if is_protocol else "", others)
            tables = read_toml(path)
            if is_protocol:
                print_notes(sampling_notes(str(path), tables, RENAMED))
                tables = check_keys(tables, str(path), Evaluation)
            else:
                defaults = sampling_notes(f"{path}: sample", tables.get("sample", {}), SETTINGS)
                tables, notes = renamed(Recipe, check_sections(tables, str(path)))
                print_notes([*(f"{path}: {note}" for note in notes), *defaults, *rename_notes(arguments)])
            if commands[0] == "memorization":  # it uses only a part of a protocol
                tables = {key: value for key, value in tables.items() if key in COPYING}
            if any(option.name == NETWORK and option.tokens for option in arguments):
                tables = without_network(tables)
            if not is_protocol:
                check_model(tables, str(path))
            # With the command as key, because cyclopts ignores sections of a flat table that are named like a command.
            Dict({commands[0]: tables}, source=str(path))(app, commands, arguments)


def is_data(name: str) -> bool:
    """Whether a string names a data source, and no recipe."""
    if is_recipe(name):
        return False
    from ditlab.data import find_spec

    return find_spec(name) is not None


def given_settings(arguments: ArgumentCollection) -> list[str]:
    """The settings of a recipe on the command line, as "section.key"."""
    sections = tuple(f"--{section.name}." for section in fields(Recipe))
    names = [argument.name for argument in arguments if argument.tokens]
    return [name.removeprefix("--").replace("-", "_") for name in names if name.startswith(sections)]


def rename_notes(arguments: ArgumentCollection) -> list[str]:
    """Return a note for each option on the command line that has a new name."""
    old = {
        f"--{section}.{field.metadata['was']}".replace("_", "-"): f"--{section}.{field.name}".replace("_", "-")
        for section, field in old_names(Recipe)
    }
    keys = [(token.keyword or "").replace("_", "-") for argument in arguments for token in argument.tokens]
    return [f"{key} is now called {old[key]}; the old name works in this release only" for key in keys if key in old]


def sampling_notes(where: str, table: Mapping[str, Any], old_names: Mapping[str, str]) -> list[str]:
    """A note for each key of a table in a recipe that has a new name."""
    return [
        f"{where}: {old} is now called {new}; the old name works in this release only"
        for old, new in old_names.items()
        if old in table
    ]


def print_notes(notes: list[str]) -> None:
    """Print notes on standard error, without repeats."""
    for note in dict.fromkeys(notes):
        print(f"ditlab: {printable(note)}", file=sys.stderr)


def usage_error(error: CycloptsError) -> str:
    """Describe a mistake on the command line in one line; for options of other training programs, name ditlab's."""
    if isinstance(error, UnknownOptionError) and error.command_chain and error.command_chain[0] in OF_TRAINING:
        option = (error.token.keyword or "").replace("_", "-")
        if option.startswith("--") and (instead := remedy(option, "--")) is not None:
            return f"unknown option {option}; {instead}"
    return usage_message(error)
