"""Names of folders for classes whose names are not file names."""

import re
from collections.abc import Sequence

from ditlab.core.spelling import nfc

LONGEST = 200  # bytes; file systems allow 255
UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder name for each class: its name where that is possible, on every system, and different for each class.

    Other signs become "_"; names that would be hidden, or are reserved, begin with "_"; two names that are the
    same to a file system, which may ignore case or the composition of accents, get a number.
    """
    names: list[str] = []
    used: set[str] = set()
    for original in classes:
        name = UNSAFE.sub("_", original.encode("utf-8", "replace").decode()).rstrip(" .").lstrip(" ")
        if not name or name[0] == "." or RESERVED.fullmatch(name):
            name = f"_{name.lstrip('.')}"
        name = name.encode()[:LONGEST].decode(errors="ignore")
        number, unique = 2, name
        while nfc(unique).casefold() in used:
            unique, number = f"{name}_{number}", number + 1
        used.add(nfc(unique).casefold())
        names.append(unique)
    return names
