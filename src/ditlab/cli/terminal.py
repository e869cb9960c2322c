"""Code that all commands share: the application, output to the terminal, and checks of folders."""

import json
import os
import sys
from itertools import chain, count
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, Parameter

from ditlab.cli.recipes import recipe_config
from ditlab.core.errors import InputError
from ditlab.core.io import is_vacant
from ditlab.core.printable import one_line, printable
from ditlab.core.terminal import make_console
from ditlab.core.terminal import say as print_line
from ditlab.core.version import __version__

app = App(
    name="ditlab",
    help=(
        "Diffusion transformers: train on your images, sample, evaluate. "
        "Every command accepts --import FILE_OR_MODULE, which imports a plug-in first, and --debug, which prints the "
        "traceback of an error."
    ),
    version=__version__,
    config=recipe_config,
    default_parameter=Parameter(
        consume_multiple=1
    ),  # a list of at least one value follows its flag: --model.depths 1 2 1
)
screen = make_console(stderr=True)

Json = Annotated[bool, Parameter(negative="")]


def say(line: str) -> None:
    """Print a line on standard error, without markup and without wrapping."""
    print_line(screen, line)


def show(text: str) -> None:
    """Print text on standard output, with escapes in place of control characters."""
    print(printable(text))


def say_note(config: dict[str, Any]) -> None:
    """Print the note of an external checkpoint about what was left out or converted."""
    if note := config.get("note"):
        say(str(note))


def free_folder(folder: Path) -> Path:
    """Return the folder if it is empty or new, otherwise the first such one with a number: samples-2, samples-3, ..."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return next(path for path in chain([folder], numbered) if is_vacant(path))


def claim_folder(folder: Path, overwrite: bool) -> None:
    """Check that a folder can be written to, and is empty or may be overwritten.

    Raises:
        InputError: it is not.
    """
    if not is_vacant(folder) and not overwrite:
        raise InputError(
            f"{folder} is not empty; give another folder, such as {free_folder(folder)}, or add --overwrite"
        )
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(existing, os.W_OK):
        raise InputError(f"{existing} cannot be written to; give another folder")


def print_json(values: dict[str, Any]) -> None:
    """Print a JSON object on standard output."""
    print(json.dumps(values, default=str))


def command() -> str:
    """Return how this program was called, for proposed commands."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m ditlab"
    local = path if not path.is_absolute() or not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())
    return str(local) if local.parent != Path() and not local.is_absolute() else path.name


def fail(message: str, code: int) -> NoReturn:
    """Print one line on standard error, and exit."""
    print(f"ditlab: {one_line(message)}", file=sys.stderr)
    sys.exit(code)
