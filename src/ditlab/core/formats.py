"""Read JSON and TOML, and report damaged files. A file may be cut, edited, or written by another program."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError
from ditlab.core.sizes import read_text

TOO_DEEP = "it is nested too deeply"
LONG = re.compile(r"\d{300}")


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON.

    Args:
        text: the text, or its UTF-8 bytes.
        options: further arguments of `json.loads`.

    Raises:
        ValueError: it is not JSON, not UTF-8, nested too deeply, or has a number that is too large for a float.
    """
    text = text if isinstance(text, str) else text.decode()
    if LONG.search(text):  # only then, because the function slows the parser
        options["parse_int"] = within_floats
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def within_floats(digits: str) -> int:
    """Read an integer that a float can hold, so that all later arithmetic with it works.

    Raises:
        ValueError: it is larger.
    """
    check_numbers(number := int(digits))
    return number


def check_numbers(value: Any) -> None:
    """Check that a float can hold the integers of nested tables and lists.

    Raises:
        ValueError: one of them is too large.
    """
    if isinstance(value, Mapping):
        check_numbers(list(value.values()))
    elif isinstance(value, list):
        for part in value:
            check_numbers(part)
    elif isinstance(value, int):
        try:
            float(value)
        except OverflowError:
            raise ValueError("it has a number of hundreds of digits") from None


def parse_object(text: str | bytes, **options: Any) -> dict[str, Any]:
    """Parse a JSON object; see `parse_json`.

    Raises:
        ValueError: as `parse_json`, or it is no object.
    """
    content = parse_json(text, **options)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} and not an object")
    return content


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object.
    """
    return parse_object(read_text(file))


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read a file with a JSON object in each line; other lines, such as the last one after a crash, are ignored."""
    return [content for _, content in complete_lines(file)]


def complete_lines(file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the lines of a file that hold JSON objects, each with its object."""
    for line in file.read_bytes().splitlines():
        try:
            yield line, parse_object(line)
        except ValueError:
            continue


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: it is not TOML, not UTF-8, nested too deeply, or has a number that is too large for a float.
    """
    try:
        content = tomllib.loads(text if isinstance(text, str) else text.decode())
        check_numbers(content)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    return content


def check_types(values: Mapping[str, Any], types: Mapping[str, type | tuple[type, ...]]) -> None:
    """Check the types of those values that are there.

    Raises:
        TypeError: a value has another type; the file is of another program, or was edited.
    """
    for name, allowed in types.items():
        if name in values and not isinstance(values[name], allowed):
            raise TypeError(f"{name} is a {type(values[name]).__name__}")


@contextmanager
def interpreting(what: object, remedy: str, problem: str = "is damaged") -> Iterator[None]:
    """Report errors of the enclosed block, which does nothing but interpret a file, as damage of this file.

    What a damaged file raises depends on where it is damaged, so errors of all types count.

    Args:
        what: the file, for the message.
        remedy: what to do, for the message.
        problem: what is wrong with the file, for the message.

    Raises:
        InputError: the block has failed.
    """
    try:
        yield
    except (InputError, NameError, ImportError):  # the last two are never the file's fault
        raise
    except Exception as error:
        raise InputError(f"{what} {problem} ({reason(error)}); {remedy}") from error


def reason(error: Exception) -> str:
    """The message of an error in one line, of at most 200 characters; its type if it has no message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        return f"it lacks {text}"
    return f"{text[:200]}..." if len(text) > 200 else text or type(error).__name__
