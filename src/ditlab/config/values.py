"""Types of settings that need a converter of their own, for the command line and for recipes."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token


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
