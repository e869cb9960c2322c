"""Errors that are reported in one line: `InputError` for values that the user can correct, `RunError` for failures.

`InputError` carries a single line that names the value and the remedy. The command line prints that line and
exits with code 2; as a `ValueError` it can be caught by any Python caller.
"""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

V = TypeVar("V")


class InputError(ValueError):
    """A value that the user gave cannot be used; the message is one line with the value and the remedy."""


class RunError(RuntimeError):
    """A failure while running that no value of the user caused; the command line prints the line and exits with 1."""


def nearest(name: str, options: Iterable[str]) -> str:
    """`did you mean "x"?` when one of the options is close to the name, else the list of all options."""
    options = list(options)
    folded = {option.lower(): option for option in options}
    close = get_close_matches(name.lower(), folded, n=1)
    return f'did you mean "{folded[close[0]]}"?' if close else f"choose from: {', '.join(options)}"


def lookup(table: Mapping[str, V], name: str, what: str) -> V:
    """`table[name]`, or an `InputError` that names the nearest entry."""
    if name not in table:
        raise InputError(f'unknown {what} "{name}"; {nearest(name, table)}')
    return table[name]
