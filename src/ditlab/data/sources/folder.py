"""A folder of images: one sub-folder for each class, or a flat folder; a table can add labels and captions."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from PIL import Image

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc, nfc
from ditlab.core.units import counted
from ditlab.data.decode import Raster, open_image
from ditlab.data.identity import Stamp, file_stamp
from ditlab.data.reading import Reading, classes_from
from ditlab.data.sources.base import (
    CLIP_SETTINGS,
    PIXEL_SETTINGS,
    Column,
    NamedSource,
    Texts,
    column_of_texts,
    label_column,
    natural,
    reads_clips,
)
from ditlab.data.sources.columns import NONE, caption_names, note_unread
from ditlab.data.sources.files import (
    holds_samples,
    list_images,
    passed_over,
    read_folder,
    sorted_naturally,
    utf8_name,
)
from ditlab.data.sources.tables import (
    METADATA,
    TableFile,
    label_choice,
    metadata_of,
    note_unread_texts,
    read_captions,
    read_labels,
)

EMPTY = "folder without images"


class Folder(NamedSource):
    """Image files in a folder."""

    uses = PIXEL_SETTINGS | CLIP_SETTINGS | {"split", "label_column", "caption_column"}

    def __init__(self, root: Path, files: list[str]) -> None:
        """A folder with files whose paths are relative to `root`; `from_text` adds the columns."""
        self.root, self.files = root, files

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return Path(text).is_dir()

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open a folder with one sub-folder for each class, in natural order, or a flat folder.

        A table of metadata in the folder, and text files beside the images, hold labels and captions.

        Raises:
            InputError: the folder is the output of a command, or there are images beside the class folders.
        """
        root, reading = Path(text), Reading()
        layout = cls.layout(root, settings, reading)
        table = metadata_of(root, reading)
        column = None if table is None else label_choice(table, settings, reading)
        if table is None and settings.label_column not in ("", NONE):
            raise InputError(
                f'label_column is "{settings.label_column}", but {root} has no {METADATA[0]}; correct or remove it'
            )
        source = cls(root, layout.files)
        if column is not None and table is not None:
            source.columns = {"label": layout.table_labels(table, column, reading)}
        else:
            source.columns = {"label": layout.folder_labels(settings, reading)}
            if table is not None and not source.classes and not settings.label_column:
                unread = [
                    name
                    for name in table.columns
                    if name not in (table.file_column(), *caption_names(settings.caption_column))
                ]
                note_unread(unread, table.path.name, reading)
        if captions := layout.captions(table, settings, reading):
            source.columns["caption"] = captions
        source.reading = reading
        return source

    @classmethod
    def layout(cls, root: Path, settings: Preparation, reading: Reading) -> "Layout":
        """List the images or clips of a folder."""
        return Layout.read(root, reading, clips=reads_clips(settings))

    def name(self, i: int) -> str:
        return utf8_name(self.files[i])

    def raw(self, i: int) -> Image.Image | Raster:
        return open_image(self.root / self.files[i], self.channels)

    def file(self, i: int) -> Path:
        return self.root / self.files[i]

    def stamp(self, i: int) -> Stamp:
        return file_stamp(f"{self.root}/{self.files[i]}", self.key(i))

    def key(self, i: int) -> str:
        return nfc(self.files[i])

    def content(self, i: int) -> bytes:
        return (self.root / self.files[i]).read_bytes()


@dataclass
class Layout:
    """The files of a folder: those beside the class folders come first."""

    root: Path
    files: list[str]
    counts: dict[str, int]
    """Class folder -> images in it; "" for those beside the class folders."""
    captioned: int
    """Images with a text file of the same stem."""

    @classmethod
    def read(cls, root: Path, reading: Reading, *, clips: bool = False) -> Self:
        """List a folder and its class folders; folders without images, or without clips, are left out.

        Raises:
            InputError: the folder is the output of a command and holds no images to train on.
        """
        top = read_folder(root, reading, known=METADATA, named=True, clips=clips)
        if top.ours and not holds_samples(os.listdir(root)):
            raise InputError(f"{root} was written by ditlab and is no folder of images; give the folder of the images")
        folders = sorted(top.folders, key=natural)
        visited = _distinct(root, folders)
        files, captioned = sorted_naturally(top.images), top.captioned
        counts = {"": len(files)} if files else {}
        for name in folders:
            before = passed_over(reading)
            images, texts = list_images(root / name, reading, visited, f"{name}/", clips=clips)
            if images:
                files += [f"{name}/{image}" for image in images]
                counts[name] = len(images)
                captioned += texts
            elif passed_over(reading) == before:  # otherwise it is counted already
                reading.leave_out(utf8_name(name), EMPTY)
        return cls(root, files, counts, captioned)

    def folder_labels(self, settings: Preparation, reading: Reading) -> Column:
        """The labels by class folder.

        Raises:
            InputError: there are images beside the class folders.
        """
        classes = [name for name in self.counts if name]
        if settings.label_column == NONE or not classes:
            if classes:
                reading.notes.append(f"labels are ignored; class folders: {len(classes)}")
            return label_column([0] * len(self.files), [])
        if "" in self.counts:
            raise InputError(f"{self.root / self.files[0]} lies beside the class folders; move it into one of them")
        reading.conditions = classes_from(len(classes), "folders")
        indices = [index for index, name in enumerate(classes) for _ in range(self.counts[name])]
        return label_column(indices, [utf8_name(name) for name in classes])

    def table_labels(self, table: TableFile, column: str, reading: Reading) -> Column:
        """The labels in a table of metadata.

        Raises:
            InputError: an image has no label.
        """
        label_of = read_labels(table, column, reading)
        names = all_nfc(self.files)
        if missing := [name for name in names if name not in label_of]:
            raise InputError(
                f"{utf8_name(missing[0])} has no label ({len(missing)} without one); correct {table.path}, "
                f'or set label_column to "{NONE}"'
            )
        if extra := label_of.keys() - {*names}:
            reading.leave_out(min(extra), f"row of {table.path.name} without an image", len(extra))
        labels = column_of_texts([label_of[name] for name in names], None, str(table.path))
        reading.conditions = classes_from(len(labels.classes), f"column {column} of {table.path.name}")
        if folders := [name for name in self.counts if name]:
            reading.notes.append(
                f"{table.path.name} has labels, so the folders are not classes ({len(folders)}); "
                "rename it to use the folders"
            )
        return labels

    def captions(self, table: TableFile | None, settings: Preparation, reading: Reading) -> Column | None:
        """The captions in a table of metadata, or in text files beside the images; None if there are none.

        Raises:
            InputError: there is no such column.
        """
        column = None if table is None else read_captions(table, self.files, settings, reading)
        if table is None and settings.caption_column not in ("", NONE):
            raise InputError(
                f'caption_column is "{settings.caption_column}", but {self.root} has no {METADATA[0]}; '
                "correct or remove it"
            )
        if not self.captioned:
            return column
        if column is not None or settings.caption_column == NONE:
            note_unread_texts(self.captioned, reading)
            return column
        reading.notes.append(f"captions from {counted(self.captioned, 'text file')} beside the images")
        return Column(CaptionFiles(self.root, self.files))


class CaptionFiles(Texts):
    """The texts in files beside images, which are read when they are needed; empty where there is no file."""

    def __init__(self, root: Path, images: list[str]) -> None:
        """The text files of these images, whose paths are relative to `root`."""
        self.root, self.images = root, images

    def __len__(self) -> int:
        return len(self.images)

    def state(self, i: int) -> str:
        stem = os.path.splitext(f"{self.root}/{self.images[i]}")[0]
        return repr([file_stamp(stem + end, end)[1:] for end in (".txt", ".TXT")])

    def text(self, i: int) -> str:
        stem = os.path.splitext(self.root / self.images[i])[0]
        for end in (".txt", ".TXT"):
            try:
                return Path(stem + end).read_text(encoding="utf-8-sig").strip()
            except FileNotFoundError:
                continue
            except UnicodeDecodeError:
                raise InputError(f"{stem}{end} is not UTF-8; save the text as UTF-8") from None
        return ""


def _distinct(root: Path, folders: list[str]) -> set[str]:
    """The real paths of a folder and its class folders, which must differ."""
    by_path: dict[str, Path] = {}
    for folder in (root, *(root / name for name in folders)):
        other = by_path.setdefault(os.path.realpath(folder), folder)
        if other != folder:
            raise InputError(f"{folder} and {other} are the same folder; remove one of them")
    return set(by_path)
