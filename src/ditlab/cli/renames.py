"""Previous names of commands and options (version 0.1), which are accepted with a note for one release."""

import sys
from collections.abc import Sequence

COMMANDS = {"memorisation": "memorization"}
SAMPLING = {"--interval": "--guidance-interval", "--grid": "--schedule"}
PROTOCOL = SAMPLING | {"--labels": "--label-sampling"}
DEFAULTS = {"--sample.interval": "--sample.guidance-interval", "--sample.grid": "--sample.schedule"}
OPTIONS: dict[str, dict[str, str]] = {
    "sample": SAMPLING | {"--quality": "--preset", "--draw-labels": "--label-sampling"},
    "tune": SAMPLING | {"--pictures": "--images"},
    "evaluate": PROTOCOL,
    "sweep": PROTOCOL | {"--try-interval": "--try-guidance-interval"},
    "memorization": SAMPLING,
    "reference": {"--with-pictures": "--with-images"},
    "plan": DEFAULTS,
    "train": DEFAULTS,
}
"""Command -> previous name -> present name of its options."""


def renamed(tokens: Sequence[str]) -> list[str]:
    """Replace previous names in the words of a command line, with a note on standard error for each."""
    if not tokens:
        return []
    command = COMMANDS.get(tokens[0], tokens[0])
    table = OPTIONS.get(command, {})
    present = [command]
    for token in tokens[1:]:
        name, equals, value = token.partition("=")
        present.append(table.get(name, name) + equals + value)
    for old, new in zip(tokens, present, strict=True):
        if old != new:
            old, new = old.partition("=")[0], new.partition("=")[0]
            print(f"ditlab: {old} is now {new}; the previous name will be removed", file=sys.stderr)
    return present
