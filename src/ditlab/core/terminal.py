"""Consoles for lines, tables and progress."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from ditlab.core.printable import one_line, printable

WIDE = 1000  # columns of a table in a file or pipe, which need not fit a screen


class LineConsole(Console):
    """A console that never breaks a line of text; a terminal wraps it itself, so that a command can be copied whole.

    Text is printed as it is: brackets are no markup, and control characters become escapes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False} | options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Render anything, with escapes in place of control characters in its text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a text; the escapes count in the width of a table."""
        return super().render_str(printable(text), **options)

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


def cell(text: str, **options: Any) -> Text:
    """A text in one line of a table; brackets in it are no markup. The options are those of `Text`."""
    return Text(one_line(text), **options)


def say(console: Console, line: str) -> None:
    """Print a line of text on any console, without markup, colors and line breaks."""
    console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
