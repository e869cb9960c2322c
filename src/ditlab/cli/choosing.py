"""The length of a run on the command line, and `ditlab train` without a recipe."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.cli.terminal import command, say, screen, show
from ditlab.config.fields import Amount, Positive
from ditlab.config.reader import Tables
from ditlab.config.values import Location
from ditlab.core.device import process_place
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.config.sections import Recipe


@dataclass(frozen=True)
class Length:
    """The length of a run."""

    minutes: Amount | None = None
    """Longest time in minutes; a larger number later trains on. Without a recipe it covers everything, also the score
    (default: 30)."""
    hours: Amount | None = None
    """The same in hours."""
    images: Positive | None = None
    """Number of images to train on, including repeats."""

    def settings(self) -> dict[str, Any]:
        """The length as settings of [train]; empty if none is given.

        Raises:
            InputError: two lengths, or none above 0.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            raise InputError(f"{' and '.join(f'--{name}' for name in given)} are both lengths; give one of them")
        for name, value in given.items():
            if not value > 0:
                raise InputError(f"--{name} {value:g}; give more than 0")
        if "hours" in given:
            return {"minutes": 60 * given["hours"]}
        return given


@dataclass(frozen=True)
class Start:
    """What a run starts from."""

    init_from: Location | None = None
    """Model whose weights the run starts from, in any layout. A table shows which weights do not fit."""
    classes: Positive | None = None
    """Class count of the model, if it must be larger than that of the data."""
    class_map: Location | None = None
    """TOML or JSON file that maps classes of the data to the classes of the source they start from."""

    def tables(self) -> Tables:
        """The settings of [train] and [data]."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        data = {"classes": given.pop("classes")} if "classes" in given else {}
        return {"train": given, "data": data}


def with_settings(recipe: "Recipe", *changes: Tables) -> "Recipe":
    """A recipe with other values of some settings."""
    for tables in changes:
        changed = {name: replace(getattr(recipe, name), **values) for name, values in tables.items()}
        recipe = replace(recipe, **changed)
    return recipe


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
    from ditlab.auto import train_folder
    from ditlab.auto.train import default_run

    if process_place()[1] > 1:
        raise InputError("a recipe is chosen for one process; give a recipe, such as the recipe.toml of a first run")
    out = out or default_run(source)
    outcome = train_folder(
        source, out, **length, settings=tables, agree=lambda text: yes or agreed(text), console=screen
    )
    for line in outcome.lines(command()):
        show(line)


def agreed(text: str) -> bool:
    """Ask the user in the terminal; without one, the answer is no."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    say(f"{text}; start all the same? [y/N]")
    return sys.stdin.readline().strip().lower() in ("y", "yes")
