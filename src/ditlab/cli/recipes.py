"""Recipes named on the command line."""

from dataclasses import fields

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from ditlab.config.evaluation import Copying, Evaluation
from ditlab.config.reader import (
    NETWORK,
    check_keys,
    check_model,
    check_sections,
    find_recipe,
    read_toml,
    without_network,
)

COPYING = {option.name for option in fields(Copying)}


def recipe_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """cyclopts' hook: fill what the command line leaves open from the recipe that it names."""
    for argument in arguments:
        if argument.field_info.name == "recipe" and argument.tokens and commands[0] != "study":
            scores = commands[0] not in ("train", "plan")
            path = find_recipe(argument.tokens[0].value, "evaluation" if scores else "")
            tables = read_toml(path)
            tables = check_keys(tables, str(path), Evaluation) if scores else check_sections(tables, str(path))
            if commands[0] == "memorization":  # which uses a part of a protocol
                tables = {key: value for key, value in tables.items() if key in COPYING}
            if any(each.name == NETWORK and each.tokens for each in arguments):
                tables = without_network(tables)
            if not scores:
                check_model(tables, str(path))
            # Under the command's own key: a flat table would lose the sections that are called like a command.
            Dict({commands[0]: tables}, source=str(path))(app, commands, arguments)
