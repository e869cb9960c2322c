"""Types of single settings that the command line and recipes read in the same manner."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token


def _whole(type_: Any, tokens: Sequence[Token]) -> int:
    """Whole numbers only: 12.5 is not silently cut to 12, but 1_000_000 and 1e6 are fine."""
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
