"""Values of `--given` that begin with a minus sign, which the parser would take for options."""

import re
from collections.abc import Sequence

GIVEN = "--given"


def with_negative_frames(tokens: Sequence[str]) -> list[str]:
    """Join the option --given to each of its values if one is a negative frame, such as -1=end.png."""
    joined: list[str] = []
    remaining = list(tokens)
    while remaining:
        joined.append(option := remaining.pop(0))
        if option == "--":
            return joined + remaining
        if option != GIVEN:
            continue
        values: list[str] = []
        while remaining and (is_negative_frame(remaining[0]) or not remaining[0].startswith("-")):
            values.append(remaining.pop(0))
        joined += values
        if any(map(is_negative_frame, values)):
            joined[-len(values) - 1 :] = [f"{GIVEN}={value}" for value in values]
    return joined


def is_negative_frame(token: str) -> bool:
    """Whether a word of a command line has the form -INDEX=FILE."""
    return re.match(r"-\d+=", token) is not None
