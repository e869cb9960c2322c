"""Data sets of the `datasets` library, from the hub ("hf:NAME[:SPLIT]") or from a folder of `save_to_disk`."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting, read_object, reason
from ditlab.core.units import counted
from ditlab.data.decode import Raster, open_image
from ditlab.data.identity import Stamp, content_hash
from ditlab.data.reading import Reading, classes_from
from ditlab.data.sources.base import PIXEL_SETTINGS, Column, NamedSource, Texts, column_of_texts, label_column
from ditlab.data.sources.columns import (
    CAPTIONS,
    IMAGES,
    LABELS,
    NONE,
    LabelTexts,
    caption_names,
    choose,
    choose_captions,
    named_columns,
    note_unread,
    usual_columns,
)
from ditlab.data.sources.splits import describe_split, one_part, pick_split
from ditlab.data.sources.tables import note_captions

PREFIX = "hf:"
DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of Windows


class HuggingFace(NamedSource):
    """The images of a data set, with the class labels and captions of other columns."""

    uses = PIXEL_SETTINGS | {"split", "image_column", "label_column", "caption_column"}

    def __init__(self, table: Any, title: str, settings: Preparation | None = None) -> None:
        """Wrap a `datasets.Dataset`.

        Raises:
            InputError: there is no column of images, several columns could be meant, labels are lists, or some rows
                have no label.
        """
        from datasets import Image as ImageColumn  # type: ignore[import-untyped]

        settings = settings or Preparation()
        self.title, self.reading = title, Reading()
        self.fingerprint = content_hash(str(table._fingerprint).encode())  # of all rows
        table = table.with_format(None)  # a saved data set may hold a format, which changes types or hides columns
        images = [name for name, feature in table.features.items() if isinstance(feature, ImageColumn)]
        if not images:
            raise InputError(
                f"{title} has no column of images (it has {', '.join(table.features)}); give a data set with one"
            )
        usual = usual_columns(images, IMAGES)[:1]  # the obvious name of a column of images is any usual one
        column = choose(images, "image_column", settings.image_column, usual or IMAGES, title, self.reading)
        if column is None:
            raise InputError(f"{title} is read without images; give another image_column than {NONE}")
        self.image_column = column
        # As files, so that headers can be read without decoding the images.
        self.table = table.select_columns([column]).cast_column(column, ImageColumn(decode=False))
        self.columns = {"label": self._labels(table, settings, images)}
        if captions := self._captions(table, settings):
            self.columns["caption"] = captions

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return text.startswith(PREFIX) or _is_saved(Path(text))

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Load from the hub or from a saved folder.

        Raises:
            InputError: the library is not installed, or it cannot open the data set or the split.
        """
        try:
            import datasets
        except ImportError:
            raise InputError("data sets of the hub need the datasets library; pip install 'ditlab[data]'") from None
        text = text.removeprefix(PREFIX)
        name, split = name_and_split(text)
        wanted = one_part(split, settings, text).split
        try:
            saved = _is_saved(Path(name))
            table = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=wanted or "train")
        except Exception as error:  # the library raises exceptions of many types
            raise InputError(f"cannot open the data set {text}: {reason(error)}") from error
        names = [str(name) for name in getattr(table.info, "splits", None) or {}] if not saved else []
        chosen = wanted or "train"
        if isinstance(table, datasets.DatasetDict):
            names = list(table)
            chosen = pick_split(wanted, names, name)
            table = table[chosen]
        elif saved and wanted and wanted != str(table.split):
            raise InputError(f"{name} has no splits; omit :{wanted}")
        with interpreting(f"the data set {name}", "save it again"):
            source = cls(table, name, settings)
        source.reading.split = describe_split(chosen, names) if names else ""
        source.parts = names
        return source

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def raw(self, i: int) -> Image.Image | Raster:
        return open_image(self.content(i), self.channels)

    def stamp(self, i: int) -> Stamp:
        return Stamp(str(i), 0, self.fingerprint)

    def content(self, i: int) -> bytes:
        stored = self.table[i][self.image_column]
        content: bytes = stored["bytes"] or Path(stored["path"]).read_bytes()
        return content

    def _labels(self, table: Any, settings: Preparation, images: list[str]) -> Column:
        """The class labels: a column of classes, numbers or texts."""
        from datasets import ClassLabel

        classes = [name for name, feature in table.features.items() if isinstance(feature, ClassLabel)]
        usual = usual_columns(set(table.features) - {*classes, self.image_column}, LABELS)
        candidates = usual_columns(classes, LABELS)
        candidates += [name for name in [*usual, *classes] if name not in candidates]
        if settings.label_column and settings.label_column != NONE:
            candidates = [name for name in table.features if name != self.image_column]
        column = choose(candidates, "label_column", settings.label_column, LABELS, self.title, self.reading)
        if column is None:
            if not settings.label_column:
                unread = [
                    name for name in table.features if name not in (*images, *caption_names(settings.caption_column))
                ]
                note_unread(unread, self.title, self.reading)
            return label_column([0] * len(table), [])
        feature, where = table.features[column], f"column {column} of {self.title}"
        rows = list(table[column]) if _is_plain(feature) else [[]]  # the first row of a list shows what is wrong
        missing = [i for i, row in enumerate(rows) if row in (None, "") or (isinstance(row, int) and row < 0)]
        if missing:
            raise InputError(
                f"{self.title}[{missing[0]}] has no label ({counted(len(missing), 'row')} without one); "
                "remove these rows and save the data set again"
            )
        if isinstance(feature, ClassLabel):
            labels = label_column(rows, list(feature.names))
        else:
            texts = LabelTexts(where, self.reading)
            names = [texts.text(row, f"{self.title}[{i}]") for i, row in enumerate(rows)]
            texts.finish()
            labels = column_of_texts(names, None, where)
        self.reading.conditions = classes_from(len(labels.classes), f"column {column}")
        return labels

    def _captions(self, table: Any, settings: Preparation) -> Column | None:
        """The captions: a column of texts, or of lists of texts; None if there is none."""
        texts = [name for name, feature in table.features.items() if _is_text(feature)]
        if not settings.caption_column or settings.caption_column == NONE:
            texts = usual_columns(texts, CAPTIONS)
        usual = tuple(texts[:1]) or CAPTIONS  # captions of several columns do not decide what is trained
        columns = choose_captions(texts, settings.caption_column, usual, self.title, self.reading)
        if not columns:
            return None
        count = sum(any(row) for row in zip(*(table[column] for column in columns), strict=True))
        note_captions(count, named_columns(columns), self.reading)
        return Column(ColumnTexts(table.select_columns(columns), columns))


class ColumnTexts(Texts):
    """The texts, or lists of texts, in columns of a data set, which are read when they are needed."""

    def __init__(self, table: Any, columns: list[str]) -> None:
        """Some columns of a `datasets.Dataset`."""
        self.table, self.columns = table, columns

    def __len__(self) -> int:
        return len(self.table)

    def state(self, i: int) -> str:
        return str(self.table._fingerprint) if i == 0 else ""  # of all rows

    def text(self, i: int) -> Any:
        row = self.table[i]
        if len(self.columns) == 1:
            return row[self.columns[0]]
        values = [row[column] for column in self.columns]
        return [text for value in values for text in (value if isinstance(value, list) else [value])]


def _is_plain(feature: Any) -> bool:
    """Whether the values of a column are single numbers or texts."""
    from datasets import ClassLabel, Value

    return isinstance(feature, ClassLabel | Value)


def _is_text(feature: Any) -> bool:
    """Whether a column holds texts, or lists of texts."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "dtype", "") in ("string", "large_string") and getattr(inner, "feature", None) is None


def saved_splits(path: Path) -> list[str]:
    """The parts of a data set in a folder of `save_to_disk`; empty if it has none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [str(name) for name in read_object(path / "dataset_dict.json")["splits"]]
    return []


def all_splits(name: str) -> list[str]:
    """The parts of a data set in a saved folder, or on the hub; empty if it has none.

    Raises:
        InputError: the parts of a data set on the hub cannot be listed.
    """
    if not on_hub(f"{PREFIX}{name}"):
        return saved_splits(Path(name))
    try:
        import datasets

        return [str(part) for part in datasets.get_dataset_split_names(name)]
    except Exception as error:  # the library raises exceptions of many types
        raise InputError(
            f"cannot list the parts of the data set {name} ({reason(error)}); give held-out images"
        ) from error


def name_and_split(text: str) -> tuple[str, str]:
    """The parts of NAME:SPLIT; the colon of a Windows drive, as in C:/data, belongs to the name."""
    drive = 2 if DRIVE.match(text) else 0
    name, _, split = text[drive:].partition(":")
    return text[:drive] + name, split


def on_hub(text: str) -> bool:
    """Whether a source is on the hub and not on this machine."""
    return text.startswith(PREFIX) and not _is_saved(Path(name_and_split(text.removeprefix(PREFIX))[0]))


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the library."""
    needed = [path / name for name in ("dataset_info.json", "state.json")]
    return (path / "dataset_dict.json").is_file() or all(file.is_file() for file in needed)
