"""Types of settings that need a converter of their own, for the command line, for recipes and for Python."""

import dataclasses
import operator
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from ditlab.core.errors import InputError
from ditlab.core.spelling import expand

FILE_SUFFIXES = (
    ".bin", ".bmp", ".csv", ".gif", ".jpeg", ".jpg", ".json", ".jsonl", ".npy", ".npz", ".onnx", ".pt", ".pt2", ".pth",
    ".png", ".safetensors", ".tar", ".tif", ".tiff", ".toml", ".txt", ".webp", ".zip",
)  # fmt: skip
"""Ends of the names of files, with which the name of a new folder would be misread."""


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    """Convert a text to a whole number: 1_000_000 and 1e6 are accepted, 12.5 is an error and not rounded."""
    text = tokens[0].value
    if re.fullmatch(r"[+-]?[\d_]+", text):
        return int(text)
    try:
        value = float(text)
        if value == int(value):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f'"{text}" is not a whole number')


Whole = Annotated[int, Parameter(converter=_whole)]


def _location(type_: Any, tokens: Sequence[Token]) -> str:
    return expand(tokens[0].value)


def _file(type_: Any, tokens: Sequence[Token]) -> Path:
    return Path(expand(tokens[0].value))


def check_folder_name(path: Path, remedy: str = "") -> Path:
    """Return the path of a folder to write, unless it is named like a file.

    Args:
        path: the path; a folder that exists may have any name.
        remedy: what else the user may want.

    Raises:
        InputError: the name ends like that of a file, such as samples.npz.
    """
    if path.suffix.lower() in FILE_SUFFIXES and not path.is_dir():
        raise InputError(f"{path} is named like a file, but a folder is written; give {path.with_suffix('')}{remedy}")
    return path


def _folder(type_: Any, tokens: Sequence[Token]) -> Path:
    return check_folder_name(_file(type_, tokens))


Location = Annotated[str, Parameter(converter=_location)]
"""A path, or another name of data or a model; a leading ~ is the home folder."""
File = Annotated[Path, Parameter(converter=_file)]
"""A path on the command line; a leading ~ is the home folder."""
Folder = Annotated[Path, Parameter(converter=_folder)]
"""The path of a folder to write; a name that ends like that of a file is refused."""


class Located:
    """A base of settings that were given in Python: a leading ~ of every `Location` is the home folder there too."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are dataclasses
            value = getattr(self, field.name)
            if field.type is Location and isinstance(value, str | Path):
                object.__setattr__(self, field.name, expand(str(value)))


def whole(value: Any, name: str) -> int:
    """Convert a setting to an integer, or raise an `InputError`."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # of arrays and tensors too
        pass
    raise InputError(f"{name} {value!r}; give a whole number")


def number(value: Any, name: str) -> float:
    """Convert a setting to a float, or raise an `InputError`."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} {value!r}; give a number") from None
