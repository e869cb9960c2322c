"""Metadata of settings: the allowed range, whether a resumed run may change the value, and the previous name."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ditlab.config.values import Location
from ditlab.core.errors import InputError

Resume = Literal["free", "ask", "never"]
"""Whether a run may resume with another value: always, only if the user allows changes, or never."""


def setting(
    default: Any,
    *,
    resume: Resume | None = None,
    at_least: int | None = None,
    below: int | None = None,
    share: bool = False,
    not_negative: bool = False,
    was: str = "",
) -> Any:
    """Define a field of a section of settings.

    Args:
        default: the value if the setting is left out, or a callable that creates it.
        resume: whether a resumed run may change it; None is the rule of the section, or "never" if it has none.
        at_least, below: the range of a whole number.
        share: the value is at least 0 and less than 1.
        not_negative: the value is finite and at least 0.
        was: the name in earlier versions, which recipes may still use.
    """
    rules = {"resume": resume, "at_least": at_least, "below": below, "share": share, "not_negative": not_negative}
    metadata = {key: value for key, value in rules.items() if value is not None and value is not False} | (
        {"was": was} if was else {}
    )
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Check that all numbers, including those of nested sections, are in the range of their field.

    Raises:
        InputError: a number is outside its range; the message gives the key and the range of the first one.
    """
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{key}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and (allowed := outside(number, field.metadata)):
                raise InputError(f"{key} is {number}; give {allowed}")


def outside(number: float, rules: Mapping[str, Any]) -> str:
    """Describe the allowed range if a number is outside of it; an empty text if the number is allowed."""
    least, limit = rules.get("at_least"), rules.get("below")
    if (least is not None and not number >= least) or (limit is not None and not number < limit):
        return f"{least} or more" if limit is None else f"{least or 0} to {limit - 1}"
    if rules.get("share") and not 0 <= number < 1:
        return "at least 0 and less than 1"
    if rules.get("not_negative") and not 0 <= number < math.inf:
        return "a number that is not negative"
    return ""


def sections(kind: Any) -> "Iterator[dataclasses.Field[Any]]":
    """The sections of a recipe class whose fields are fixed: all but the network's, which depend on its class."""
    return (section for section in dataclasses.fields(kind) if dataclasses.is_dataclass(section.type))


def resume_rules(kind: Any) -> dict[str, Resume]:
    """For all sections of a recipe class: key, such as "train.images" -> whether a resumed run may change it."""
    rules: dict[str, Resume] = {}
    for section in sections(kind):
        for field in dataclasses.fields(section.type):  # type: ignore[arg-type]
            rule = field.metadata.get("resume") or section.metadata.get("resume")
            rules[f"{section.name}.{field.name}"] = rule or "never"
    return rules


def places(kind: Any) -> set[str]:
    """The settings of a recipe class that name files or folders, such as "data.source"."""
    return {
        f"{section.name}.{field.name}"
        for section in sections(kind)
        for field in dataclasses.fields(section.type)  # type: ignore[arg-type]
        if field.type is Location
    }


def renamed(kind: Any, tables: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace previous names of keys by the present ones.

    Args:
        kind: the class of the recipe.
        tables: section -> key -> value.

    Returns:
        The tables with present names, and a note for each previous name whose value differs from the default.

    Raises:
        InputError: one setting under both names.
    """
    present = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tables.items()}
    notes = []
    for section, field in old_names(kind):
        table, old = present.get(section), field.metadata["was"]
        if not isinstance(table, dict) or old not in table:
            continue
        if field.name in table:
            raise InputError(
                f"{section}.{old} and {section}.{field.name} are the same setting; give {section}.{field.name}"
            )
        value = table[field.name] = table.pop(old)
        if value != (list(field.default) if isinstance(field.default, tuple) else field.default):
            notes.append(
                f"{section}.{old} is now called {section}.{field.name}; the old name works in this release only"
            )
    return present, notes


def old_names(kind: Any) -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """Yield section and field of every setting that had another name in earlier versions."""
    for section in sections(kind):
        for field in dataclasses.fields(section.type):  # type: ignore[arg-type]
            if "was" in field.metadata:
                yield section.name, field
