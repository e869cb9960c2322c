"""The length of a run on the command line, and `ditlab train` without a recipe."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.cli.terminal import command, say, screen, show
from ditlab.core.device import process_place
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.config.sections import Recipe

MINUTES = 30.0  # of training without a recipe, unless the user gives a time
Tables = dict[str, dict[str, Any]]


def length_of(minutes: float | None, hours: float | None, images: int | None) -> dict[str, Any]:
    """The settings of [train] for the length of a run; empty if it is not given.

    Raises:
        InputError: two lengths, or none above 0.
    """
    given = vars_of(minutes=minutes, hours=hours, images=images)
    if len(given) > 1:
        raise InputError(f"{' and '.join(f'--{name}' for name in given)} are both lengths; give one of them")
    if "images" in given:
        return given
    for name, value in given.items():
        if not value > 0:
            raise InputError(f"--{name} {value:g}; give more than 0")
        return {"minutes": value * (60 if name == "hours" else 1)}
    return {}


def vars_of(**values: Any) -> dict[str, Any]:
    """The values that are given."""
    return {name: value for name, value in values.items() if value is not None}


def with_settings(recipe: "Recipe", tables: Tables) -> "Recipe":
    """A recipe with other values of some settings."""
    return replace(recipe, **{name: replace(getattr(recipe, name), **values) for name, values in tables.items()})


def given_tables(settings: Any, given: Sequence[str], others: Tables) -> Tables:
    """The settings on the command line by section.

    Args:
        settings: the arguments that cyclopts read.
        given: names of those that are on the command line, as "section.key".
        others: settings that have an option of their own.
    """
    tables: Tables = {section: dict(values) for section, values in others.items() if values}
    for name in given:
        section, key = name.split(".", 1)
        tables.setdefault(section, {})[key] = getattr(getattr(settings, section), key)
    return tables


def train_without_recipe(source: str, out: Path | None, length: dict[str, Any], tables: Tables, *, yes: bool) -> None:
    """Choose a recipe for the data, train, and score the model."""
    from ditlab.auto import Budget, train_folder

    if process_place()[1] > 1:
        raise InputError("a recipe is chosen for one process; give a recipe, such as the recipe.toml of a first run")
    out = out or Path("runs") / (Path(source).resolve().name if Path(source).exists() else source.replace(":", "-"))
    budget = Budget(**length) if length else Budget(minutes=MINUTES)
    outcome = train_folder(source, out, budget, screen, given=tables, agree=lambda text: yes or agreed(text))
    for line in outcome.lines(command()):
        show(line)


def agreed(text: str) -> bool:
    """Ask the user in the terminal; without one, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    say(f"{text}; start all the same? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
