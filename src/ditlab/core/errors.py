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


class PlugInError(InputError):
    """A model needs a part from outside the package, whose module is not imported."""

    def __init__(self, message: str, module: str) -> None:
        """`module` is the name of the module to import."""
        super().__init__(message)
        self.module = module


class RunError(RuntimeError):
    """A failure that no input of the user caused; the command line prints the message and exits with code 1."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return `did you mean "x"?` if one of the options is similar to the name, else a list of all options."""
    options = list(options)
    folded = {option.lower(): option for option in options}
    close = get_close_matches(name.lower(), folded, n=1)
    return f'did you mean "{folded[close[0]]}"?' if close else f"choose from: {', '.join(options)}"


def lookup(table: Mapping[str, V], name: str, what: str) -> V:
    """Return `table[name]`.

    Args:
        table: name -> value.
        name: the name that the user gave.
        what: what the message calls an entry, such as "sampler".

    Raises:
        InputError: an unknown name; the message proposes the most similar one.
    """
    if name not in table:
        raise InputError(f'unknown {what} "{name}"; {nearest(name, table)}')
    return table[name]
