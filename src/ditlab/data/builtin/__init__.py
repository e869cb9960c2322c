"""Data sets that are included in ditlab. A new one is one file and a line in `DATASETS`."""

import re
from collections.abc import Callable

from ditlab.core.registry import Registry, is_reference, load_entry_points
from ditlab.data.base import Dataset
from ditlab.data.builtin.colored_shapes import open_colored_shapes
from ditlab.data.builtin.digits import open_digits
from ditlab.data.builtin.digits_on_canvas import open_digits_on_canvas
from ditlab.data.builtin.emoji import open_emoji
from ditlab.data.builtin.emoji_captions import open_emoji_captions
from ditlab.data.builtin.glyphs import open_glyphs
from ditlab.data.builtin.moving_digits import open_moving_digits
from ditlab.data.builtin.waves import open_waves

DATASETS: Registry[Callable[[str], Dataset]] = Registry(
    "data set",
    {
        "digits": open_digits,
        "digits-on-canvas": open_digits_on_canvas,
        "glyphs-SIZE": open_glyphs,
        "emoji-SIZE": open_emoji,
        "emoji-captions-SIZE": open_emoji_captions,
        "emoji-captions-all-SIZE": open_emoji_captions,
        "colored-shapes-SIZE": open_colored_shapes,
        "moving-digits-SIZE": open_moving_digits,
        "waves-SIZE": open_waves,
    },
)
"""Name -> function that opens the data set and receives the whole name. Upper-case parts of a name stand for values,
and further parts may follow it ("digits-held-out")."""


def find_builtin(text: str) -> Callable[[str], Dataset] | None:
    """The function that opens the data set that a string names; None if no data set has such a name.

    Raises:
        InputError: the string is "package.module:Name" and cannot be imported.
    """
    if is_reference(text):
        return DATASETS.find(text)
    load_entry_points()
    stems = {re.sub("(-[A-Z]+)+$", "", name): name for name in DATASETS}
    matching = [stem for stem in stems if text == stem or text.startswith(f"{stem}-")]
    return DATASETS[stems[max(matching, key=len)]] if matching else None
