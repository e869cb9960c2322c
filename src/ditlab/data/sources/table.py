"""A folder of images with a table of labels that the user names."""

from pathlib import Path
from typing import Self

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.spelling import all_nfc
from ditlab.data.reading import UNCONDITIONAL, Reading, classes_from
from ditlab.data.sources.base import CLIP_SETTINGS, PIXEL_SETTINGS, column_of_texts, reads_clips
from ditlab.data.sources.columns import NONE
from ditlab.data.sources.files import list_images, utf8_name
from ditlab.data.sources.folder import Folder
from ditlab.data.sources.tables import TableFile, label_choice, note_unread_texts, read_captions, read_labels


class Table(Folder):
    """Image files with labels from a table."""

    uses = PIXEL_SETTINGS | CLIP_SETTINGS | {"labels", "split", "label_column", "caption_column"}

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return bool(settings.labels) and Path(text).is_dir()

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open a folder and its table of labels; each file must have a row, and each row a file.

        Raises:
            InputError: the table cannot be read, or does not match the folder.
        """
        root, table, reading = Path(text), TableFile.open(Path(settings.labels)), Reading()
        column = label_choice(table, settings, reading)
        clips = reads_clips(settings)
        files, captioned = list_images(root, reading, known={table.path.name}, named=True, clips=clips)
        texts = [""] * len(files)
        if column is not None:
            label_of = read_labels(table, column, reading)
            composed = all_nfc(files)
            both = {"label": set(composed) - label_of.keys(), "image": label_of.keys() - set(composed)}
            for missing, names in both.items():
                if names:
                    name = utf8_name(min(names))
                    first = utf8_name(next(iter(label_of), ""))
                    unlike = label_of and label_of.keys().isdisjoint(files)
                    hint = f"; no row has a file name as in the folder, the first one is {first}" if unlike else ""
                    raise InputError(
                        f"{name} has no {missing} ({len(names)} without one); correct {table.path} or {root}{hint}"
                    )
            texts = [label_of[name] for name in composed]
        elif settings.label_column != NONE:
            raise table.lacks("a column of labels")
        source = cls(root, files)
        source.columns = {"label": column_of_texts(texts, None, str(table.path))}
        if captions := read_captions(table, files, settings, reading):
            source.columns["caption"] = captions
        if captioned:
            note_unread_texts(captioned, reading)
        classes = classes_from(len(source.classes), f"column {column} of {table.path.name}")
        reading.conditions = classes if source.classes else UNCONDITIONAL
        source.reading = reading
        return source
