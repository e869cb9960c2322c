"""Survey a data set before training: classes, sizes, unreadable files, duplicates, and a contact sheet."""

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from rich.text import Text

from ditlab.core.errors import InputError
from ditlab.data.base import spread
from ditlab.data.preprocess import Preprocess, to_rgb
from ditlab.data.sources import Source, Unreadable
from ditlab.report.sheets import check_sheet, contact_sheet, save_sheet

ROWS, COLUMNS, THUMBNAIL = 16, 8, 64
NAME = 24  # characters of a class name beside its row


class Properties(NamedTuple):
    """The properties of one image."""

    size: tuple[int, int]  # height, width
    mode: str
    content: str  # hash of size and pixels, so that a copy in another file format is a duplicate


@dataclass(frozen=True)
class Survey:
    """The result of a survey."""

    images: int
    classes: dict[str, int]  # readable images of each class
    sizes: dict[str, int]  # HEIGHTxWIDTH -> images, most frequent first
    short_side: tuple[int, int, int]  # min, median, max
    modes: dict[str, int]
    duplicates: list[list[str]]  # names of images with equal pixels
    unreadable: dict[str, str]  # name -> reason

    def tables(self) -> list[Table]:
        """The survey as tables for the terminal."""
        summary = Table("property", "value", title=f"{self.images:,} images")
        summary.add_row("unreadable", f"{len(self.unreadable):,}")
        summary.add_row("duplicates", f"{sum(len(group) - 1 for group in self.duplicates):,}")
        summary.add_row("short side, min / median / max", " / ".join(map(str, self.short_side)))
        summary.add_row("modes", ", ".join(f"{mode} {count:,}" for mode, count in self.modes.items()))
        tables = [summary, count_table("class", self.classes), count_table("height x width", self.sizes)]
        if self.unreadable:
            listed = Table("unreadable", "reason")
            for name, reason in list(self.unreadable.items())[:ROWS]:
                listed.add_row(literal(name), Text(reason))
            tables.append(listed)
        if self.duplicates:
            listed = Table("duplicates")
            for group in self.duplicates[:ROWS]:
                listed.add_row(Text(", ".join(group[:4]) + (", ..." if len(group) > 4 else "")))
            tables.append(listed)
        return tables


def count_table(what: str, counts: dict[str, int]) -> Table:
    """A table of counts: the first rows, and the sum of the others."""
    table = Table(what, "images")
    for name, count in list(counts.items())[:ROWS]:
        table.add_row(literal(name), f"{count:,}")
    if len(counts) > ROWS:
        table.add_row(f"and {len(counts) - ROWS} more", f"{sum(list(counts.values())[ROWS:]):,}")
    return table


def literal(name: str) -> Text:
    """A name on one line, cut at the edge of the screen; brackets in it are not markup."""
    return Text(name, no_wrap=True, overflow="ellipsis")


def survey(source: Source, console: Console) -> Survey:
    """Decode every image once, with a progress bar."""
    classes = Counter(dict.fromkeys(source.classes, 0))
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    sides: list[int] = []
    names_by_content: defaultdict[str, list[str]] = defaultdict(list)
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        results = spread(pool, lambda i: _inspect(source, i), len(source))
        bar = track(results, "inspecting", len(source), console=console, disable=not console.is_terminal)
        for i, result in enumerate(bar):
            if isinstance(result, str):
                unreadable[source.name(i)] = result
                continue
            if source.classes:
                classes[source.classes[int(source.labels[i])]] += 1
            sizes["{}x{}".format(*result.size)] += 1
            modes[result.mode] += 1
            sides.append(min(result.size))
            names_by_content[result.content].append(source.name(i))
    sides.sort()
    short_side = (sides[0], sides[len(sides) // 2], sides[-1]) if sides else (0, 0, 0)
    duplicates = [names for names in names_by_content.values() if len(names) > 1]
    return Survey(
        images=len(source),
        classes=dict(classes),
        sizes=dict(sizes.most_common()),
        short_side=short_side,
        modes=dict(modes.most_common()),
        duplicates=duplicates,
        unreadable=unreadable,
    )


def _inspect(source: Source, i: int) -> Properties | str:
    """The properties of image i, or the reason why it cannot be read."""
    try:
        image = source.read(i)
        mode = image.mode
        displayed = to_rgb(image).convert("RGB")
    except Unreadable as error:
        return str(error)
    content = hashlib.blake2b(displayed.tobytes(), digest_size=16)
    content.update(repr(displayed.size).encode())
    return Properties((displayed.height, displayed.width), mode, content.hexdigest())


def sample_sheet(source: Source, path: Path) -> None:
    """Write a contact sheet: a row for each of up to 16 classes, with its first 8 readable images.

    Raises:
        InputError: no image can be read, or the file exists and is no contact sheet.
    """
    check_sheet(path)
    thumbnail = Preprocess((THUMBNAIL, THUMBNAIL))
    rows: list[list[Image.Image]] = []
    for label in range(min(ROWS, max(1, len(source.classes)))):
        row: list[Image.Image] = []
        for i in (source.labels == label).nonzero().flatten().tolist():
            if len(row) == COLUMNS:
                break
            try:
                row.append(Image.fromarray(thumbnail(source.read(i))))
            except Unreadable:
                continue
        rows.append(row)
    shown = [row for row in rows if row]
    names = [cut(name) for name, row in zip(source.classes, rows, strict=False) if row]
    if not shown:
        raise InputError(f"none of {len(source)} images can be read for {path}; omit the contact sheet")
    save_sheet(contact_sheet(shown, names or None), path)


def cut(name: str) -> str:
    """A name, shortened to at most 24 characters."""
    return name if len(name) <= NAME else name[: NAME - 3] + "..."
