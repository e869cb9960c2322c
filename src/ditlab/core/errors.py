"""Errors that are reported in one line: `InputError` for values that the user can correct, `RunError` for failures.

`InputError` carries a single line that names the value and the remedy. The command line prints that line and
exits with code 2; as a `ValueError` it can be caught by any Python caller.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import TypeVar

from ditlab.core.printable import one_line

V = TypeVar("V")
MOST_NAMES = 10_000  # in a folder or a list, that are compared with a name
LISTED = 100  # most names in a message


class OneLineError(Exception):
    """An error whose message is one line, whatever the names in it contain."""

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class InputError(OneLineError, ValueError):
    """A value that the user gave cannot be used; the message is one line with the value and the remedy."""


class SourceError(InputError):
    """Data can no longer be read, and no single image is the cause; a run is saved before it ends."""


class PlugInError(InputError):
    """A model needs a part from outside the package, whose module is not imported."""

    def __init__(self, message: str, module: str) -> None:
        """`module` is the name of the module to import."""
        super().__init__(message)
        self.module = module


class RunError(OneLineError, RuntimeError):
    """A failure that no input of the user caused; the command line prints the message and exits with code 1."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Return `did you mean "x"?` if one of the options is similar to the name, else a list of all options."""
    options = list(options)
    folded = {option.lower(): option for option in options}
    few = len(options) <= MOST_NAMES  # comparing a million takes a minute
    close = get_close_matches(name.lower(), folded, n=1) if few else []
    return f'did you mean "{folded[close[0]]}"?' if close else f"choose from: {listing(options)}"


def listing(names: Iterable[str]) -> str:
    """Names for a message, separated by commas: all, or the first 100 and their number."""
    names = list(names)
    more = f", ... ({len(names):,} in all)" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def nearest_path(path: str | Path, remedy: str) -> str:
    """Return `did you mean runs/demo?` if the path does not exist and an existing one is similar, else the remedy."""
    path = Path(path)
    with suppress(OSError):  # such as a name that is too long
        names = path.parts[1:] if path.anchor else path.parts
        if not path.exists() and (similar := _nearest_in(Path(path.anchor), names)) is not None:
            return f"did you mean {similar}?"
    return remedy


def nothing_at(path: str | Path, what: str, remedy: str) -> InputError:
    """The error for a path at which there is nothing of a kind, which says so if there is nothing at all.

    Args:
        path: the path.
        what: the kind, such as "model".
        remedy: what to give, if no existing path is similar.
    """
    if similar := nearest_path(path, ""):
        return InputError(f"no {what} at {path}; {similar}")
    with suppress(OSError):
        if not Path(path).exists():
            return InputError(f"no {what} at {path}, which does not exist; {remedy}")
    return InputError(f"no {what} at {path}; {remedy}")


def _nearest_in(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The path in a folder whose names are those given, or similar ones where these do not exist."""
    if not names:
        return folder
    name, others = names[0], names[1:]
    if name == ".." or (folder / name).exists():
        return _nearest_in(folder / name, others)
    try:
        entries = islice(folder.iterdir(), MOST_NAMES)
        folded = {entry.name.lower(): entry.name for entry in entries if entry.name[0] != "."}
    except OSError:  # a file, or a folder that cannot be read
        return None
    candidates = (_nearest_in(folder / folded[close], others) for close in get_close_matches(name.lower(), folded))
    return next((candidate for candidate in candidates if candidate is not None), None)


def lookup(table: Mapping[str, V], name: str, what: str) -> V:
    """Return `table[name]`.

    Args:
        table: name -> value.
        name: the name that the user gave.
        what: what the message calls an entry, such as "sampler".

    Raises:
        InputError: an unknown name; the message proposes the most similar one.
    """
    if not isinstance(name, str) or name not in table:
        raise InputError(f'unknown {what} "{name}"; {nearest(str(name), table)}')
    return table[name]
