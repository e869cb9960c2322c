"""Text that cannot change a terminal: control characters become escapes such as \\x1b.

Names from data sets, models, files and requests can have them. They would change the title, the colors or the text of a
terminal, or forge lines of a log.
"""

import re

CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)  # but not tab and line feed
LINE_CONTROLS = re.compile(f"[\t\n{CONTROLS.pattern[1:]}")


def printable(text: str) -> str:
    """Replace control characters by escapes; tabs and line feeds stay."""
    return CONTROLS.sub(_escape, text)


def one_line(text: str) -> str:
    """Replace control characters by escapes, and tabs and line feeds too."""
    return LINE_CONTROLS.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    byte = ord(match[0]) - 0xDC00  # of a name that is not UTF-8
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else match[0].encode("unicode_escape").decode()
