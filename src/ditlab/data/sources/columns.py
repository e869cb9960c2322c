"""Columns of tables: which ones hold the images, labels and captions, and what a label is called."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from ditlab.core.errors import InputError
from ditlab.core.spelling import nfc
from ditlab.data.reading import Reading

NONE = "none"  # as the name of a column: read none
FILES = ("file", "file_name", "filename", "path", "image", "image_path")
IMAGES = ("image", "img", "jpg", "png", "photo", "rgb")
LABELS = ("label", "labels", "class", "class_name", "category", "target")
SHOWN = 8  # names of columns in a note
CAPTIONS = ("caption", "captions", "text", "prompt", "description")


def choose(
    columns: Sequence[str], setting: str, wanted: str, usual: Collection[str], where: str, reading: Reading
) -> str | None:
    """Choose a column: the one that the user wants, the first of the usual names, or the only column there is.

    Args:
        columns: names of the columns that can be chosen.
        setting: name of the setting, such as "label_column".
        wanted: its value; empty to choose, "none" for no column.
        usual: usual names, with the clearest one first.
        where: what has these columns, for messages.
        reading: where the choice is noted if there were others.

    Raises:
        InputError: no such column, or several and none of them is the obvious one.
    """
    what = setting.removesuffix("_column")
    if wanted == NONE:
        if columns:
            reading.notes.append(f"{what} columns of {where} are ignored: {', '.join(columns)}")
        return None
    if wanted:
        if wanted not in columns:
            has = f"it has {', '.join(columns)}" if columns else "it has none"
            raise InputError(f'{where} has no {what} column "{wanted}" ({has}); correct or remove {setting}')
        return wanted
    if not columns:
        return None
    obvious = [name for name in columns if name.lower() == next(iter(usual))]
    if len(columns) > 1 and len(obvious) != 1:
        none = "" if what == "image" else f", or {NONE}"  # there are no data without images
        raise InputError(f"{where} has several {what} columns ({', '.join(columns)}); choose one ({setting}){none}")
    chosen = obvious[0] if obvious else columns[0]
    if others := [name for name in columns if name != chosen]:
        reading.notes.append(f'{what} column "{chosen}" of {where}; also there: {", ".join(others)}')
    return chosen


def choose_captions(
    columns: Sequence[str], wanted: str, usual: Collection[str], where: str, reading: Reading
) -> list[str]:
    """Choose the columns of captions as `choose` does; the user may name several, separated by commas.

    Raises:
        InputError: no such column, or several and none of them is the obvious one.
    """
    names = [wanted] if wanted in ("", NONE, *columns) else caption_names(wanted)
    chosen = (choose(columns, "caption_column", name, usual, where, reading) for name in names)
    return [name for name in chosen if name is not None]


def caption_names(setting: str) -> list[str]:
    """The names in the setting caption_column, which may have several with commas between them."""
    return [name.strip() for name in setting.split(",")]


def named_columns(columns: Sequence[str]) -> str:
    """How messages call columns: "column text", "columns text, title"."""
    return f"column{'s' * (len(columns) > 1)} {', '.join(columns)}"


def usual_columns(columns: Collection[str], usual: Sequence[str]) -> list[str]:
    """The columns with a usual name, the clearest one first."""
    return sorted((name for name in columns if name.lower() in usual), key=lambda name: usual.index(name.lower()))


def note_unread(columns: Collection[str], where: str, reading: Reading) -> None:
    """Note that data without labels have columns that may be labels, so that a column is not passed over unseen.

    Args:
        columns: all columns but those of files and images.
        where: what has these columns.
        reading: where it is noted.
    """
    names = [name for name in columns if name.lower() not in CAPTIONS]
    if names:
        shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
        reading.notes.append(f"no labels; columns of {where} that are not read: {shown} (label_column chooses one)")


class LabelTexts:
    """Class names from the labels of a table, which may be texts or numbers."""

    def __init__(self, where: str, reading: Reading) -> None:
        """Labels of a table.

        Args:
            where: the table, for messages.
            reading: where is noted which labels were joined.
        """
        self.where, self.reading = where, reading
        self.kinds: dict[str, str] = {}  # kind -> the first label of this kind
        self.spellings: dict[str, set[str]] = {}  # class name -> its spellings

    def text(self, value: Any, name: str) -> str:
        """The class name of a label; empty if it is missing.

        Args:
            value: the label in the table.
            name: the image, for messages.

        Raises:
            InputError: several labels, or an object.
        """
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            return ""
        if not isinstance(value, str | bool | int | float):
            what = "an object as label" if isinstance(value, dict) else "a list of labels"
            raise InputError(
                f"{name} has {what} in {self.where}; give one label for each image, or choose another column "
                f"(label_column), or {NONE}"
            )
        plain = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        plain = nfc(plain.lower() if isinstance(value, bool) else plain)
        self.kinds.setdefault(type(value).__name__, str(value).lower() if isinstance(value, bool) else repr(value))
        self.spellings.setdefault(plain, set()).add(str(value))
        return plain

    def finish(self) -> None:
        """Note which labels were joined.

        Raises:
            InputError: some labels are true or false, and others are not.
        """
        examples = ", ".join(self.kinds.values())
        if len(self.kinds) > 1 and "bool" in self.kinds:
            raise InputError(f"labels of {self.where} are of several kinds ({examples}); write them all alike")
        if len(self.kinds) > 1:
            self.reading.notes.append(
                f"labels of {self.where} are of several kinds ({examples}); equal ones are joined"
            )
        for plain, spellings in self.spellings.items():
            if len({spelling.strip() for spelling in spellings}) < len(spellings):
                joined = ", ".join(f'"{spelling}"' for spelling in sorted(spellings))
                self.reading.notes.append(f"{joined} are one class of {self.where}: spaces around a label are removed")
            whole, _, zeros = plain.partition(".")
            if zeros and not zeros.strip("0") and whole in self.spellings:
                self.reading.notes.append(f'"{whole}" and "{plain}" are two classes of {self.where}')
