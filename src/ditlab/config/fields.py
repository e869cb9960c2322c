"""Metadata of settings: the allowed range, when a setting has no effect, whether a resumed run may change the value,
and the previous name.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.config.values import Location, Whole
from ditlab.core.errors import InputError

LARGEST = 2**63 - 1  # that a tensor can hold
Resume = Literal["free", "ask", "never"]
"""Whether a run may resume with another value: always, only if the user allows changes, or never."""


@dataclass(frozen=True)
class Unused:
    """When a setting has no effect: another setting of its section has one of these values.

    The values are built-in ones, so that settings stay usable with the parts of plug-ins.
    """

    key: str
    """The other setting."""
    values: tuple[Any, ...]
    """Its values with which this setting is not used."""
    because: str = ""
    """Why, such as "which has no mean"; completes the sentence after the value."""
    use: Any = None
    """Value of the other setting that the message proposes."""
    unless: str = ""
    """A setting that may give the other one another value; if it is set, this setting may have an effect."""


def setting(
    default: Any,
    *,
    resume: Resume | None = None,
    at_least: int | None = None,
    below: int | None = None,
    up_to: float | None = None,
    share: bool = False,
    not_negative: bool = False,
    between: tuple[float, float] | None = None,
    unused: Unused | None = None,
    was: str = "",
) -> Any:
    """Define a field of a section of settings.

    Args:
        default: the value if the setting is left out, or a callable that creates it.
        resume: whether a resumed run may change it; None is the rule of the section, or "never" if it has none.
        at_least, below: the range of a whole number.
        up_to: the value is at least 0 and at most this.
        share: the value is at least 0 and less than 1.
        not_negative: the value is finite and at least 0.
        between: the lowest and the highest value.
        unused: when the setting has no effect.
        was: the name in earlier versions, which recipes may still use.
    """
    rules: dict[str, Any] = {"resume": resume, "at_least": at_least, "below": below, "up_to": up_to, "unused": unused}
    rules |= {"share": share or None, "not_negative": not_negative or None, "between": between, "was": was or None}
    metadata = {key: value for key, value in rules.items() if value is not None}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata, hash=False if default is dict else None)
    return dataclasses.field(default=default, metadata=metadata)


def check_settings(settings: Any, prefix: str = "") -> None:
    """Check that all numbers, including those of nested sections, are in the range of their field, and that every
    setting that differs from its default has an effect.

    Raises:
        InputError: a number is outside its range, or a setting has no effect; the message is about the first one.
    """
    for field in dataclasses.fields(settings):
        value, key = getattr(settings, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            check_settings(value, f"{key}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and (allowed := outside(number, field.metadata)):
                raise InputError(f"{key} is {number}; give {allowed}")
        if (rule := unused(settings, field)) is not None:
            other = getattr(settings, rule.key)
            state = f"is {shown(other)}" if other not in ("", (), None) else "is not set"
            because, to = f", {rule.because}" * bool(rule.because), f" to {shown(rule.use)}" * (rule.use is not None)
            raise InputError(
                f"{key} is {shown(value)}, but {prefix}{rule.key} {state}{because}; "
                f"remove it or set {prefix}{rule.key}{to}"
            )


def unused(settings: Any, field: "dataclasses.Field[Any]") -> Unused | None:
    """The reason why a setting that differs from its default has no effect; None if it has one, or is the default."""
    rule: Unused | None = field.metadata.get("unused")
    if rule is None or getattr(settings, field.name) == field.default or getattr(settings, rule.key) not in rule.values:
        return None
    return None if rule.unless and getattr(settings, rule.unless) is not None else rule


def unused_keys(settings: Any) -> set[str]:
    """The settings of a recipe that have no effect, such as "diffusion.time_mean"."""
    return {
        f"{section.name}.{field.name}"
        for section in sections(type(settings))
        for field in dataclasses.fields(section.type)  # type: ignore[arg-type]
        if unused(getattr(settings, section.name), field) is not None
    }


def shown(value: Any) -> str:
    """A value as recipes write it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def outside(number: float, rules: Mapping[str, Any]) -> str:
    """Describe the allowed range if a number is outside of it; an empty text if the number is allowed."""
    if isinstance(number, int) and abs(number) > LARGEST:
        return f"a number of at most {LARGEST}"
    least, limit = rules.get("at_least"), rules.get("below")
    if (least is not None and not number >= least) or (limit is not None and not number < limit):
        return f"{least} or more" if limit is None else f"{least or 0} to {limit - 1}"
    if (most := rules.get("up_to")) is not None and not 0 <= number <= most:
        return f"a number from 0 to {most}"
    if rules.get("share") and not 0 <= number < 1:
        return "at least 0 and less than 1"
    if rules.get("not_negative") and not 0 <= number < math.inf:
        return "a number that is not negative"
    if (ends := rules.get("between")) is not None and not ends[0] <= number <= ends[1]:
        return f"a number from {ends[0]:g} to {ends[1]:g}"
    return "" if math.isfinite(number) else "a finite number"


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


def within(**rules: Any) -> Callable[[Any, float | None], None]:
    """Return a check of numbers on the command line; a number must be finite too.

    Args:
        rules: the range, as for `setting`.
    """

    def check(type_: Any, value: float | None) -> None:
        if value is not None and (allowed := outside(value, rules)):
            raise ValueError(f"is {value}; give {allowed}")  # cyclopts adds the name of the option

    return check


Positive = Annotated[Whole, Parameter(validator=within(at_least=1))]
"""A whole number of 1 or more on the command line."""
Natural = Annotated[Whole, Parameter(validator=within(at_least=0))]
"""A whole number of 0 or more on the command line."""
Share = Annotated[float, Parameter(validator=within(up_to=1))]
"""A number from 0 to 1 on the command line."""
Amount = Annotated[float, Parameter(validator=within(not_negative=True))]
"""A finite number of 0 or more on the command line."""
Finite = Annotated[float, Parameter(validator=within())]
"""A finite number on the command line."""
