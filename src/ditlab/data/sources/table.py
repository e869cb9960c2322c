"""A folder of images with a table of labels: CSV with the columns file and label, or one JSON object per line."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc, nfc
from ditlab.data.sources.base import column_of_texts
from ditlab.data.sources.folder import Folder, printable, walk


class Table(Folder):
    """Image files with labels from a table."""

    @classmethod
    def matches(cls, text: str, labels: str) -> bool:
        return bool(labels) and Path(text).is_dir()

    @classmethod
    def from_text(cls, text: str, labels: str) -> Self:
        """Open a folder and its table of labels; each file must have a row, and each row a file.

        Raises:
            InputError: the table cannot be read, or does not match the folder.
        """
        root, table = Path(text), Path(labels)
        label_of = read_labels(table)
        files = walk(root, set())
        composed = all_nfc(files)
        for missing, names in (("label", set(composed) - label_of.keys()), ("image", label_of.keys() - set(composed))):
            if names:
                name = printable(min(names))
                raise InputError(f"{name} has no {missing} ({len(names)} without one); correct {table} or {root}")
        source = cls(root, files)
        source.columns = {"label": column_of_texts([label_of[name] for name in composed], None, str(table))}
        return source


def read_labels(table: Path) -> dict[str, str]:
    """Read a table of labels: file name -> label.

    Raises:
        InputError: the table cannot be read, lacks a label, or has two labels for a file.
    """
    label_of: dict[str, str] = {}
    try:
        text = table.read_text(encoding="utf-8-sig")  # spreadsheet programs write a byte order mark
        rows = csv.DictReader(io.StringIO(text)) if table.suffix.lower() == ".csv" else _json_lines(text)
        for row in rows:
            name, label = nfc(str(row.get("file") or row["file_name"])), row["label"]
            if label in (None, ""):
                raise ValueError(f"a label for {name}")
            if label_of.setdefault(name, str(label)) != str(label):
                raise InputError(
                    f"{name} has the labels {label_of[name]} and {label} in {table}; remove one of the rows"
                )
    except OSError as error:
        raise InputError(f"cannot read labels {table}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"labels {table} are not UTF-8; save the table as CSV UTF-8") from error
    except InputError:
        raise
    except (ValueError, KeyError) as error:
        raise InputError(
            f"labels {table} lack {error}; give a CSV file with the columns file and label, "
            "or one JSON object with these keys per line"
        ) from error
    return label_of


def _json_lines(text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"an object in line {number}")
            yield row
