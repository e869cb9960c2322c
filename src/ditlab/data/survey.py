"""A look at a source before anything is made of it: classes, sizes, broken files, duplicates, a contact sheet."""

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
from ditlab.report.sheets import contact_sheet

ROWS, COLUMNS, THUMBNAIL = 16, 8, 64
NAME = 24  # letters of a class name beside its row


class Facts(NamedTuple):
    """What one picture told."""

    size: tuple[int, int]  # height, width
    mode: str
    content: str  # hash of size and pixels, so that a copy in another file format counts as one


@dataclass(frozen=True)
class Survey:
    """What a source holds."""

    pictures: int
    classes: dict[str, int]  # readable pictures of each class
    sizes: dict[str, int]  # HEIGHTxWIDTH -> pictures, most frequent first
    short_side: tuple[int, int, int]  # least, median, greatest
    modes: dict[str, int]
    duplicates: list[list[str]]  # names of pictures with equal pixels
    unreadable: dict[str, str]  # name -> reason

    def tables(self) -> list[Table]:
        """The survey for the screen."""
        least, median, greatest = self.short_side
        facts = Table("what", "how many", title=f"{self.pictures:,} pictures")
        facts.add_row("unreadable", f"{len(self.unreadable):,}")
        facts.add_row("further copies of a picture", f"{sum(len(group) - 1 for group in self.duplicates):,}")
        facts.add_row("short side, least / median / greatest", f"{least} / {median} / {greatest}")
        facts.add_row("modes", ", ".join(f"{mode} {count:,}" for mode, count in self.modes.items()))
        tables = [facts, counted("class", self.classes), counted("height x width", self.sizes)]
        if self.unreadable:
            listed = Table("unreadable", "reason")
            for name, reason in list(self.unreadable.items())[:ROWS]:
                listed.add_row(literal(name), Text(reason))
            tables.append(listed)
        if self.duplicates:
            listed = Table("equal pictures")
            for group in self.duplicates[:ROWS]:
                listed.add_row(Text(", ".join(group[:4]) + (", ..." if len(group) > 4 else "")))
            tables.append(listed)
        return tables


def counted(what: str, counts: dict[str, int]) -> Table:
    """The first rows of a count."""
    table = Table(what, "pictures")
    for name, count in list(counts.items())[:ROWS]:
        table.add_row(literal(name), f"{count:,}")
    if len(counts) > ROWS:
        table.add_row(f"and {len(counts) - ROWS} more", f"{sum(list(counts.values())[ROWS:]):,}")
    return table


def literal(name: str) -> Text:
    """A name on one line, cut where the screen ends; brackets in it are no markup."""
    return Text(name, no_wrap=True, overflow="ellipsis")


def survey(source: Source, console: Console) -> Survey:
    """Decode every picture once, with a progress bar."""
    classes = Counter(dict.fromkeys(source.classes, 0))
    sizes: Counter[str] = Counter()
    modes: Counter[str] = Counter()
    sides: list[int] = []
    content: defaultdict[str, list[str]] = defaultdict(list)
    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        looks = spread(pool, lambda i: _look(source, i), len(source))
        for i, facts in enumerate(
            track(looks, "looking", len(source), console=console, disable=not console.is_terminal)
        ):
            if isinstance(facts, str):
                unreadable[source.name(i)] = facts
                continue
            if source.classes:
                classes[source.classes[int(source.labels[i])]] += 1
            sizes["{}x{}".format(*facts.size)] += 1
            modes[facts.mode] += 1
            sides.append(min(facts.size))
            content[facts.content].append(source.name(i))
    sides.sort()
    short = (sides[0], sides[len(sides) // 2], sides[-1]) if sides else (0, 0, 0)
    copies = [names for names in content.values() if len(names) > 1]
    return Survey(
        len(source), dict(classes), dict(sizes.most_common()), short, dict(modes.most_common()), copies, unreadable
    )


def _look(source: Source, i: int) -> Facts | str:
    """The facts of picture i, or why it cannot be read."""
    try:
        image = source.open(i)
        mode = image.mode
        seen = to_rgb(image).convert("RGB")
    except Unreadable as error:
        return str(error)
    digest = hashlib.blake2b(seen.tobytes(), digest_size=16)
    digest.update(repr(seen.size).encode())
    return Facts((seen.height, seen.width), mode, digest.hexdigest())


def sample_sheet(source: Source, path: Path) -> None:
    """Write a contact sheet: up to 16 classes, the first 8 readable pictures of each.

    Raises:
        InputError: not one picture can be read.
    """
    thumbnail = Preprocess((THUMBNAIL, THUMBNAIL))
    rows: list[list[Image.Image]] = []
    for label in range(min(ROWS, max(1, len(source.classes)))):
        row: list[Image.Image] = []
        for i in (source.labels == label).nonzero().flatten().tolist():
            if len(row) == COLUMNS:
                break
            try:
                row.append(Image.fromarray(thumbnail(source.open(i))))
            except Unreadable:
                continue
        rows.append(row)
    shown = [row for row in rows if row]
    names = [cut(name) for name, row in zip(source.classes, rows, strict=False) if row]
    if not shown:
        raise InputError(f"no picture of {len(source)} can be read for {path}; leave the contact sheet out")
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(shown, names or None).save(path, "PNG")


def cut(name: str) -> str:
    """A name that leaves room for pictures."""
    return name if len(name) <= NAME else name[: NAME - 3] + "..."
