"""Names of folders for classes whose names are not file names."""

from collections.abc import Sequence

from ditlab.core.spelling import nfc, path_name


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder name for each class: its name where that is possible on every system, and different for each class.

    See `ditlab.core.spelling.path_name`. Two names that are the same to a file system, which may ignore case or the
    composition of accents, get a number.
    """
    names: list[str] = []
    used: set[str] = set()
    for original in classes:
        unique = name = path_name(original)
        number = 2
        while nfc(unique).casefold() in used:
            unique, number = f"{name}_{number}", number + 1
        used.add(nfc(unique).casefold())
        names.append(unique)
    return names
