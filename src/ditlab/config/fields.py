"""What a setting states about itself: its range, whether a resumed run may change it, and its old name."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from ditlab.core.errors import InputError

Resume = Literal["free", "ask", "never"]
"""Whether a run may resume with another value: yes, if the user allows changes, or not at all."""


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
    """A field of a section of settings.

    Args:
        default: its value if left out; a callable makes a fresh one.
        resume: who may change it when a run resumes; that of the section if None, and "never" if that has none.
        at_least, below: the range of a whole number.
        share: the value is at least 0 and less than 1.
        not_negative: the value is finite and at least 0.
        was: its name in earlier versions, which recipes may still use.
    """
    stated = {"resume": resume, "at_least": at_least, "below": below, "share": share, "not_negative": not_negative}
    metadata = {key: value for key, value in stated.items() if value is not None and value is not False} | (
        {"was": was} if was else {}
    )
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_ranges(settings: Any, prefix: str = "") -> None:
    """Refuse numbers outside the range that their field states; sections in sections are checked too.

    Raises:
        InputError: the first such value, with its key and range.
    """
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{key}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and (remedy := outside(number, field.metadata)):
                raise InputError(f"{key} is {number}; give {remedy}")


def outside(number: float, stated: Mapping[str, Any]) -> str:
    """What to give instead of a number that is outside the stated range; empty if it is inside."""
    least, limit = stated.get("at_least"), stated.get("below")
    if (least is not None and not number >= least) or (limit is not None and not number < limit):
        return f"{least} or more" if limit is None else f"{least or 0} to {limit - 1}"
    if stated.get("share") and not 0 <= number < 1:
        return "at least 0 and less than 1"
    if stated.get("not_negative") and not 0 <= number < math.inf:
        return "a number that is not negative"
    return ""


def sections(kind: Any) -> "Iterator[dataclasses.Field[Any]]":
    """The sections with fixed fields; that of the network has those of its class."""
    return (section for section in dataclasses.fields(kind) if dataclasses.is_dataclass(section.type))


def resume_rules(kind: Any) -> dict[str, Resume]:
    """Key, such as "train.images" -> who may change it when a run resumes, for all sections of a recipe."""
    rules: dict[str, Resume] = {}
    for section in sections(kind):
        for field in dataclasses.fields(section.type):  # type: ignore[arg-type]
            stated = field.metadata.get("resume") or section.metadata.get("resume")
            rules[f"{section.name}.{field.name}"] = stated or "never"
    return rules


def renamed(kind: Any, tables: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The tables with the present names of all keys, and a note for each old name that sets something.

    Args:
        kind: the recipe's class.
        tables: section -> key -> value.

    Raises:
        InputError: one setting under both names.
    """
    found = {name: dict(table) if isinstance(table, Mapping) else table for name, table in tables.items()}
    notes = []
    for section, field in old_names(kind):
        table, old = found.get(section), field.metadata["was"]
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
    return found, notes


def old_names(kind: Any) -> Iterator[tuple[str, "dataclasses.Field[Any]"]]:
    """Section and field of every setting that had another name."""
    for section in sections(kind):
        for field in dataclasses.fields(section.type):  # type: ignore[arg-type]
            if "was" in field.metadata:
                yield section.name, field
