"""The settings that a recipe mentions.

For each setting that cyclopts reads, it takes time in proportion to all settings that it knows. Most recipes mention a
tenth of the settings, so they are read with those only. If a key is not exactly the name of a setting, all are used,
and the message proposes the most similar one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, get_args


def mentioned(arguments: type, tables: Mapping[str, Mapping[str, Any]], words: Sequence[str]) -> type | None:
    """The dataclass with the mentioned fields of a nested dataclass; None if a key is not one of its fields.

    Args:
        arguments: a dataclass of dataclasses, one for each section.
        tables: section -> key -> value.
        words: of a command line, such as "--optim.lr=3e-4".
    """
    known = {(section.name, key.name) for section in dataclasses.fields(arguments) for key in _fields(section)}
    names = {(section, key) for section, table in tables.items() for key in table}
    for word in words:
        if word.startswith("--"):
            section, dot, key = word[2:].partition("=")[0].partition(".")
            names.add((section, key.replace("-", "_") if dot else ""))
    return _narrowed(arguments, frozenset(names)) if names <= known else None


def without_defaults(
    tables: Mapping[str, Mapping[str, Any]], defaults: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The tables of a recipe without the values that are the defaults anyway, such as those of a saved recipe."""

    def is_default(section: str, key: str, value: Any) -> bool:
        # Compared as text, because 1, 1.0 and True are equal, and only a value of the right type needs no check.
        own = defaults[section]
        return section != "model" and key in own and repr(value) == repr(own[key])

    return {
        section: {key: value for key, value in table.items() if not is_default(section, key, value)}
        for section, table in tables.items()
    }


@lru_cache(maxsize=64)
def _narrowed(arguments: type, names: frozenset[tuple[str, str]]) -> type:
    sections: list[Any] = []
    for section in dataclasses.fields(arguments):
        keys = [(key.name, key.type, _default(key)) for key in _fields(section) if (section.name, key.name) in names]
        if keys:
            kind = dataclasses.make_dataclass("Section", keys, namespace={"__module__": __name__})
            sections.append((section.name, kind, dataclasses.field(default_factory=kind)))
    return dataclasses.make_dataclass("Settings", sections, namespace={"__module__": __name__})


def _fields(section: dataclasses.Field[Any]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(get_args(section.type)[0])  # a section is Annotated[a dataclass, its panel]


def _default(key: dataclasses.Field[Any]) -> Any:
    return dataclasses.field(default=key.default, default_factory=key.default_factory, metadata=key.metadata)
