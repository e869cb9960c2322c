"""What all commands share: the application, the screen, and how they speak."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, Parameter
from rich.console import Console

from ditlab.cli.recipes import recipe_config
from ditlab.config.reader import parse_size
from ditlab.core.errors import InputError
from ditlab.core.io import is_vacant
from ditlab.core.version import __version__

app = App(
    name="ditlab",
    help=(
        "Diffusion transformers: train on your images, sample, evaluate. "
        "Every command takes --import FILE_OR_MODULE, a plug-in to import first."
    ),
    version=__version__,
    config=recipe_config,
    default_parameter=Parameter(consume_multiple=True),  # a list is given as it is written: --model.depths 1 2 1
)
screen = Console(stderr=True)

Json = Annotated[bool, Parameter(negative="")]


def say(line: str) -> None:
    """Print a line on standard error as it is, without markup and without wrapping."""
    screen.print(line, highlight=False, markup=False, soft_wrap=True)


def say_note(config: dict[str, Any]) -> None:
    """Print what was left out or converted when an external checkpoint was read."""
    if note := config.get("note"):
        say(str(note))


def external(heads: int | None, size: str | None, classes: int | None) -> dict[str, Any]:
    """Settings of an external checkpoint that its tensors do not show."""
    given = {"heads": heads, "size": None if size is None else parse_size(size), "classes": classes}
    return {key: value for key, value in given.items() if value is not None}


def claim_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is not empty, unless it may be overwritten."""
    if not is_vacant(folder) and not overwrite:
        raise InputError(f"{folder} is not empty; give another --out, or add --overwrite")
    home = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(home, os.W_OK):
        raise InputError(f"{home} cannot be written to; give another --out")


def print_json(values: dict[str, Any]) -> None:
    """One object on standard output."""
    print(json.dumps(values, default=str))


def command() -> str:
    """How this program was called, for commands to try next."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m ditlab"
    local = path if not path.is_absolute() or not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())
    return str(local) if local.parent != Path() and not local.is_absolute() else path.name


def fail(message: str, code: int) -> NoReturn:
    """One line on standard error, and out."""
    print(f"ditlab: {message}", file=sys.stderr)
    sys.exit(code)
