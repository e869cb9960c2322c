"""Choose a recipe for a data source, a machine and a time. The numbers are in table.toml, their evidence in
docs/choosing.md.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ditlab.auto.facts import Facts
from ditlab.config.reader import Tables, parse_recipe, parse_size, with_values
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.formats import parse_toml
from ditlab.core.units import counted


@dataclass(frozen=True)
class Choice:
    """A setting that was chosen for the user, and why."""

    section: str
    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        """The option that sets it, and the reason."""
        key, value = self.key.replace("_", "-"), self.value
        if isinstance(value, bool):
            return f"--{self.section}.{'' if value else 'no-'}{key}: {self.reason}"
        return f"--{self.section}.{key} {f'{value:g}' if isinstance(value, float) else value}: {self.reason}"


@cache
def table() -> dict[str, Any]:
    """The measured numbers on which choices depend."""
    return parse_toml((Path(__file__).parent / "table.toml").read_text(encoding="utf-8"))


def base_tables(facts: Facts) -> Tables:
    """The settings that are the same for all data; without classes there is no guidance."""
    tables = {section: dict(values) for section, values in table()["recipe"].items()}
    if not facts.classes:
        tables["sample"]["guidance"] = 1.0
    return tables


def choose_data(facts: Facts, given: Tables) -> list[Choice]:
    """Choose how images are read: the held-out part, the size, and how other shapes are fitted.

    Args:
        facts: the data source.
        given: settings of the user, which are not chosen.
    """
    data, chosen = given.get("data", {}), []
    rules = table()["data"]
    if not facts.held_out and "held_out" not in data and facts.images >= rules["enough"]:
        share = min(rules["held_out"], rules["most_held_out"] / facts.images)
        count = counted(round(share * facts.images), "image")
        chosen.append(
            Choice("data", "held_out", round(share, 4), f"about {count} for the score, which training does not see")
        )
    if not facts.resizable or "size" in data:
        return chosen
    size, reason = size_of(facts)
    if size != facts.size or not facts.one_size:
        chosen.append(Choice("data", "size", "{}x{}".format(*size), reason))
    return chosen


def size_of(facts: Facts) -> tuple[tuple[int, int], str]:
    """Height and width for training, and why."""
    height, width = facts.size if facts.one_aspect else (min(facts.size),) * 2
    reason = "the images have this size" if facts.one_size else "the median size"
    if not facts.one_aspect:
        reason = "the images have different aspect ratios, so a square is cut from their middle"
    side = math.sqrt(height * width)
    if reduced := side > table()["grids"][-1]["up_to"]:
        height, width = (round(length * table()["largest"] / side) for length in (height, width))
        reason += f", reduced from {facts.size[0]}x{facts.size[1]} because larger ones need more time than most have"
    unit = 2 * grid(height, width)
    size = tuple(max(2 * unit, round(length / unit) * unit) for length in (height, width))
    if size != (height, width) and not reduced:
        reason += f" ({height}x{width}), rounded to multiples of {unit}"
    return (size[0], size[1]), reason


def grid(height: int, width: int) -> int:
    """Side of the squares of pixels that the network takes together."""
    side, rows = math.sqrt(height * width), table()["grids"]
    return int(next((row for row in rows if side <= row["up_to"]), rows[-1])["patch"])


def choose_network(facts: Facts, tables: Tables, images: list[float], minutes: float) -> list[Choice]:
    """Choose the network by the number of images on which it can be trained in the time.

    Args:
        facts: the data source.
        tables: the settings until now.
        images: training images that the time allows, for each network of the table.
        minutes: training time.
    """
    if "name" in tables.get("model", {}):
        return []
    networks = table()["networks"]
    row = max(i for i, count in enumerate(images) if i == 0 or count >= networks[i]["images"])
    reason = f"about {rounded(images[row])} training images in {minutes:.3g} minutes on this machine"
    if row + 1 < len(networks):
        larger = networks[row + 1]
        reason += f"; {larger['name']} pays from {larger['images']:,} on"
    height, width = size_of_recipe(facts, tables)
    options = network_options((height, width))[row]
    patch = options["patch"]
    positions = f"{height // (2 * patch)}x{width // (2 * patch)}"
    reasons = {"name": reason, "patch": f"the inner grid of images of {height}x{width} then has {positions} positions"}
    return [Choice("model", key, value, reasons[key]) for key, value in options.items()]


def network_options(size: tuple[int, int]) -> list[dict[str, Any]]:
    """The settings of [model] for each network of the table, for images of a height and width."""
    return [{"name": row["name"], "patch": grid(*size)} for row in table()["networks"]]


def size_of_recipe(facts: Facts, tables: Tables) -> tuple[int, int]:
    """Height and width with which a recipe reads the images."""
    size = tables.get("data", {}).get("size", "")
    return parse_size(str(size)) if size else facts.size


def rounded(count: float) -> str:
    """A predicted number with two significant digits."""
    digits = max(0, len(str(int(count))) - 2)
    return f"{round(count, -digits):,.0f}"


def with_choices(tables: Tables, choices: list[Choice]) -> Tables:
    """Tables with the chosen values."""
    return with_values(tables, *({choice.section: {choice.key: choice.value}} for choice in choices))


def recipe_from(tables: Tables, facts: Facts) -> Recipe:
    """The recipe of the chosen and given settings.

    Raises:
        InputError: they contradict each other.
    """
    try:
        return parse_recipe(with_values(tables, {"data": {"source": facts.source}}), source="chosen settings")
    except InputError as error:
        raise InputError(f"{error}; leave out one of the options that you gave") from None
