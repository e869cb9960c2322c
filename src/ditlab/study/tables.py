"""The tables of a study recipe: parts and their combinations, and evaluations."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ditlab.config.evaluation import Evaluation
from ditlab.config.reader import Tables, parse_table, without_network
from ditlab.core.errors import InputError

OWN_KEYS = ("at", "parts")
"""Keys of an evaluation that are not settings of `ditlab evaluate`."""


def changed(base: Tables, changes: Tables) -> Tables:
    """The base with these changes. If they name a network, they replace all of [model]."""
    return merged(without_network(base) if "name" in changes.get("model", {}) else base, changes)


def merged(*tables: Mapping[str, Any]) -> dict[str, Any]:
    """Nested tables merged into one; a later value replaces an earlier one."""
    result: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def expand_parts(parts: Tables, cross: Tables, source: str) -> dict[str, Tables]:
    """Name -> changes: each of [parts] with each combination of the values under [cross].

    Raises:
        InputError: no parts, or a key under [cross] without a list of values.
    """
    for name, table in parts.items():
        if not isinstance(table, dict):
            raise InputError(f'{source}: part "{name}" is {table!r}, but must be a table such as {{model.depth = 4}}')
    for section, table in cross.items():
        if not isinstance(table, dict):
            raise InputError(f"{source}: cross.{section} is {table!r}, but must be a table such as {{patch = [2, 4]}}")
    axes = [(section, key, values) for section, table in cross.items() for key, values in table.items()]
    for section, key, values in axes:
        if not isinstance(values, list) or not values:
            raise InputError(f"{source}: cross.{section}.{key} is {values!r}; give a list of values")
    if not parts and not axes:
        raise InputError(f"{source} has no parts, so there is nothing to train; name some under [parts], or [cross]")
    expanded = {}
    for name, table in parts.items() if parts else [("", {})]:
        for values in itertools.product(*(values for *_, values in axes)):
            words = [name] if name else []
            words += [f"{key} {value}" for (_, key, _), value in zip(axes, values, strict=True)]
            changes = [{section: {key: value}} for (section, key, _), value in zip(axes, values, strict=True)]
            expanded[", ".join(words)] = merged(table, *changes)
    return expanded


def read_evaluations(table: dict[str, Any], source: str) -> dict[str, Evaluation]:
    """Name -> evaluation: the keys of [evaluation], with the changes under [evaluations]."""
    common = table.get("evaluation", {})
    for key in OWN_KEYS:
        if key in common:
            raise InputError(f"{source}: {key} is under [evaluation]; set it for single ones under [evaluations]")
    own = table.get("evaluations", {"": {}})
    if not own:
        raise InputError(f"{source}: evaluations is empty; name some, or omit the table")
    for name, changes in own.items():
        if not isinstance(changes, dict):
            raise InputError(
                f'{source}: evaluation "{name}" is {changes!r}, but must be a table such as {{steps = 20}}'
            )
    settings = {name: common | {key: value for key, value in own[name].items() if key not in OWN_KEYS} for name in own}
    return {
        name: replace(parse_table(Evaluation, settings[name], f'{source}, evaluation "{name}"'), expect=None)
        for name in own
    }


def read_shares(table: dict[str, Any], source: str) -> dict[str, float]:
    """Name of an evaluation -> its key `at`, the share of the training after which it scores a run.

    Raises:
        InputError: a share is not above 0 and up to 1, or not a multiple of the smallest one.
    """
    shares = {name: changes.get("at", 1.0) for name, changes in table.get("evaluations", {"": {}}).items()}
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(
                f'{source}, evaluation "{name}": at is {share!r}; give a share of the training above 0, up to 1'
            )
    smallest = min(shares.values())
    for name, share in shares.items():
        if abs(share / smallest - round(share / smallest)) > 1e-6:
            raise InputError(
                f'{source}, evaluation "{name}": at is {share}, but the checkpoints are saved at multiples of the '
                f"smallest share, {smallest}; give a multiple of it"
            )
    return shares


def read_part_patterns(table: dict[str, Any], source: str) -> dict[str, tuple[str, ...]]:
    """Name of an evaluation -> its key `parts`, the patterns of the parts that it scores.

    Raises:
        InputError: it is no list of patterns.
    """
    patterns = {name: changes.get("parts", ["*"]) for name, changes in table.get("evaluations", {"": {}}).items()}
    for name, values in patterns.items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise InputError(
                f'{source}, evaluation "{name}": parts is {values!r}; '
                'give a list of names or patterns, such as ["small*"]'
            )
    return {name: tuple(values) for name, values in patterns.items()}
