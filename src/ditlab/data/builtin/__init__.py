"""Data sets that come with ditlab. A new one is one file and one line in `DATASETS`."""

import re
from collections.abc import Callable

from ditlab.core.registry import Registry, is_reference, load_entry_points
from ditlab.data.base import Dataset
from ditlab.data.builtin.digits import open_digits
from ditlab.data.builtin.glyphs import open_glyphs

DATASETS: Registry[Callable[[str], Dataset]] = Registry("data set", {"digits": open_digits, "glyphs-SIZE": open_glyphs})
"""Name -> function that opens the data set. Upper-case parts of a name stand for values, and every name may be followed
by more parts ("digits-held-out"); the function gets the whole name. The data set declares its `features` and
`held_out_name`."""


def find_builtin(text: str) -> Callable[[str], Dataset] | None:
    """The function that opens the data set that a text names; None if no built-in data set has such a name.

    Raises:
        InputError: "package.module:Name" that cannot be imported.
    """
    if is_reference(text):
        return DATASETS.find(text)
    load_entry_points()
    stems = {re.sub("(-[A-Z]+)+$", "", name): name for name in DATASETS}
    fitting = [stem for stem in stems if text == stem or text.startswith(f"{stem}-")]
    return DATASETS[stems[max(fitting, key=len)]] if fitting else None
