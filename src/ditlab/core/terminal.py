"""Consoles for lines, tables and progress."""

import re
from typing import Any

from rich.console import Console
from rich.text import Text

CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")  # not tab and line feed
WIDE = 1000  # columns of a table in a file or pipe, which need not fit a screen


class LineConsole(Console):
    """A console that never breaks a line of text; a terminal wraps it itself, so that a command can be copied whole."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print text without line breaks, and tables in the width of the terminal."""
        if soft_wrap is None:
            soft_wrap = all(isinstance(part, str | Text) for part in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)


def make_console(*, stderr: bool = False) -> Console:
    """Make a console on standard output or standard error.

    No line of text is broken. In a file or pipe, tables are as wide as their content.
    """
    console = LineConsole(stderr=stderr)
    if not console.is_terminal:
        console.width = WIDE
    return console


def say(console: Console, line: str) -> None:
    """Print a line of text on any console, without markup, colors and line breaks."""
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Replace control characters, and bytes of a path that are not UTF-8, by escapes such as \\x1b.

    A name from a data set or a model can have them. They would change the title, the colors or the text of a terminal.
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
