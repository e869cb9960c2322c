"""Tables of labels and captions: CSV (with commas, semicolons or tabs), or one JSON object per line."""

import csv
import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.formats import parse_json
from ditlab.core.sizes import check_regular
from ditlab.core.spelling import all_nfc, nfc
from ditlab.core.units import counted
from ditlab.data.reading import Reading
from ditlab.data.sources.base import Column
from ditlab.data.sources.columns import (
    CAPTIONS,
    FILES,
    LABELS,
    NONE,
    LabelTexts,
    choose,
    choose_captions,
    named_columns,
    usual_columns,
)

T = TypeVar("T")
DELIMITERS = ",;\t"
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.tsv")
"""Tables that are read with the folder that holds them."""


@dataclass
class TableFile:
    """A table in a file; its rows are parsed one after another."""

    path: Path
    text: str
    columns: list[str]
    delimiter: str
    """The sign between the columns; empty for JSON lines."""

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a table and the names of its columns; those of JSON lines are the keys of the first object.

        Raises:
            InputError: the file cannot be read.
        """
        check_regular(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # spreadsheet programs write a byte order mark
        except FileNotFoundError:
            raise InputError(f"no labels {path}; {nearest_path(path, 'give an existing file')}") from None
        except OSError as error:
            raise InputError(f"cannot read labels {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"labels {path} are not UTF-8; save the table as CSV UTF-8") from error
        if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
            table = cls(path, text, [], "")
            table.columns = list(next(table.rows(), {}))
            return table
        table, header = cls(path, text, [], ""), text.partition("\n")[0]
        columns = {sign: next(table.parsed(csv.reader([header], delimiter=sign)), []) for sign in DELIMITERS}
        table.delimiter = max(columns, key=lambda sign: len(columns[sign]))
        table.columns = [name.strip() for name in columns[table.delimiter]]
        return table

    def parsed(self, reader: Iterator[T]) -> Iterator[T]:
        """Yield the rows of a reader of CSV.

        Raises:
            InputError: a row cannot be parsed.
        """
        try:
            yield from reader
        except csv.Error as error:
            raise InputError(f"labels {self.path} are not CSV ({error}); correct the table") from error

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows, each as column -> value.

        Raises:
            InputError: a line is no JSON object.
        """
        if self.delimiter:
            reader = csv.DictReader(io.StringIO(self.text), self.columns, delimiter=self.delimiter)
            next(reader, None)  # the header
            for row in self.parsed(reader):
                if any(row.pop(None, [])):  # such as a label with a comma and without quotes, which would be cut
                    raise InputError(
                        f"{self.path} has a row with more values than columns, which begins with "
                        f"{next(iter(row.values()))}; put values with separators in quotes"
                    )
                yield row
            return
        for number, line in enumerate(self.text.split("\n"), 1):  # `splitlines` would split within texts too
            if line.strip():
                try:
                    row = parse_json(line)
                except ValueError as error:
                    raise self.lacks(f"JSON in line {number} ({error})") from error
                if not isinstance(row, dict):
                    raise self.lacks(f"an object in line {number}")
                yield row

    def file_column(self) -> str:
        """The column with the file names.

        Raises:
            InputError: there is none.
        """
        if not (names := usual_columns(self.columns, FILES)):
            raise self.lacks("a column of file names")
        return names[0]

    def lacks(self, what: str) -> InputError:
        """The error that something is missing in this table."""
        return InputError(
            f"labels {self.path} lack {what}; give a CSV file with the columns file and label, "
            "or one JSON object with these keys per line"
        )


def metadata_of(root: Path, reading: Reading) -> TableFile | None:
    """The table of metadata in a folder; None if there is none, or if it does not describe files.

    Raises:
        InputError: it cannot be read.
    """
    chosen = None
    for name in METADATA:
        if (root / name).is_file():
            if chosen is not None:
                reading.leave_out(name, "further table of metadata")
                continue
            table = TableFile.open(root / name)
            if usual_columns(table.columns, FILES):
                chosen = table
            else:
                reading.leave_out(name, "table without a column of file names")
    return chosen


def read_column(table: TableFile, column: str) -> Iterator[tuple[str, Any]]:
    """The pairs (file name, value) of a table; "./a.png" is the file "a.png". Names are composed (NFC)."""
    files = table.file_column()
    for row in table.rows():
        if row.get(files) in (None, ""):
            raise table.lacks(f"a file name in the row {str(row)[:60]}")
        yield nfc(posixpath.normpath(str(row[files]).strip())), row.get(column)


def read_labels(table: TableFile, column: str, reading: Reading) -> dict[str, str]:
    """Read the labels of a table: file name -> class name.

    Raises:
        InputError: the table lacks a label, has a list as label, or two labels for a file.
    """
    texts, label_of = LabelTexts(table.path.name, reading), dict[str, str]()
    for name, value in read_column(table, column):
        label = texts.text(value, name)
        if not label:
            raise table.lacks(f"a label for {name}")
        if label_of.setdefault(name, label) != label:
            raise InputError(
                f"{name} has the labels {label_of[name]} and {label} in {table.path}; remove one of the rows"
            )
    texts.finish()
    return label_of


def label_choice(table: TableFile, settings: Preparation, reading: Reading) -> str | None:
    """The column of labels in a table; None if there is none, or if labels are ignored."""
    files = table.file_column()
    candidates = [name for name in table.columns if name != files]
    if not settings.label_column or settings.label_column == NONE:
        candidates = usual_columns(candidates, LABELS)
    return choose(candidates, "label_column", settings.label_column, LABELS, table.path.name, reading)


def read_captions(table: TableFile, files: list[str], settings: Preparation, reading: Reading) -> Column | None:
    """The captions in a table, in the order of the files; None if it has no such column.

    An image may have several rows, a list of captions, and captions in several columns.
    """
    names = table.file_column()
    candidates = [name for name in table.columns if name != names]
    if not settings.caption_column or settings.caption_column == NONE:
        candidates = usual_columns(candidates, CAPTIONS)
    columns = choose_captions(candidates, settings.caption_column, CAPTIONS, table.path.name, reading)
    if not columns:
        return None
    captions_of: dict[str, list[Any]] = {}
    for column in columns:
        for name, value in read_column(table, column):
            captions_of.setdefault(name, []).extend(value if isinstance(value, list) else [value])
    captions = [single(captions_of.get(name, [])) for name in all_nfc(files)]
    count = sum(bool(caption) for caption in captions)
    note_captions(count, f"{named_columns(columns)} of {table.path.name}", reading)
    return Column(captions)


def single(values: list[Any]) -> Any:
    """One caption as it is, several as a list, and an empty text for none."""
    present = [value for value in values if value not in (None, "")]
    return present if len(present) > 1 else present[0] if present else ""


def note_captions(count: int, where: str, reading: Reading) -> None:
    """Note how many images have a caption."""
    reading.notes.append(f"captions of {counted(count, 'image')} from {where}")


def note_unread_texts(count: int, reading: Reading) -> None:
    """Note that text files, which could be captions, are not read."""
    reading.notes.append(f"{counted(count, 'text file')} beside the images {'is' if count == 1 else 'are'} not read")
