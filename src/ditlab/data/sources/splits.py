"""Data sets that are divided into train, val and test: recognize the parts by their names, and choose one."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data.reading import Reading
from ditlab.data.sources.columns import NONE
from ditlab.data.sources.files import list_images, read_folder

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Name of a part in lower case -> what it is."""


def are_splits(names: Iterable[str]) -> bool:
    """Whether these are the parts of a divided data set and nothing else: a train part and another one."""
    kinds = {SPLITS.get(name.lower(), "") for name in names}
    return "train" in kinds and len(kinds) > 1 and "" not in kinds


def pick_split(wanted: str, names: Sequence[str], where: str) -> str:
    """The name of the part that the user wants; "val" also finds "validation".

    Args:
        wanted: the setting; empty for the train part.
        names: the parts that there are.
        where: the data set, for messages.

    Raises:
        InputError: there is no such part, or several.
    """
    wanted = wanted or "train"
    if wanted in names:
        return wanted
    kind = SPLITS.get(wanted.lower())
    matching = [name for name in names if kind is not None and SPLITS.get(name.lower()) == kind]
    if len(matching) != 1:
        problem = "several parts of this kind in" if matching else "unknown split of"
        raise InputError(f'{problem} {where}: "{wanted}"; choose from: {", ".join(names)}')
    return matching[0]


def describe_split(chosen: str, names: Iterable[str]) -> str:
    """The part that is read, and those that are not."""
    others = [name for name in names if name != chosen]
    return f"{chosen} (also there: {', '.join(others)})" if others else chosen


def split_folders(root: Path, reading: Reading, clips: bool = False) -> list[str]:
    """The folders train, val and test of a divided data set; empty if the folder is not divided in this way.

    Further folders do not matter if they hold no images.

    Args:
        root: the folder.
        reading: where the files and folders beside the parts are counted.
        clips: whether the parts hold clips instead of images.

    Raises:
        InputError: there are images beside the folders.
    """
    beside = Reading()
    here = read_folder(root, beside, named=True, clips=clips)
    parts = [name for name in here.folders if name.lower() in SPLITS]
    others = [name for name in here.folders if name not in parts]
    listed = (list_images(root / name, beside, prefix=f"{name}/", clips=clips)[0] for name in others)
    if not are_splits(parts) or any(listed):
        return []
    if here.images:
        raise InputError(
            f"{root / min(here.images)} lies beside the folders {', '.join(parts)}; move it into one of them"
        )
    reading.leave_out_all(beside)
    return parts


def choose_folder(text: str, wanted: str, reading: Reading, clips: bool = False) -> tuple[str, list[str]]:
    """The folder of the part of a divided data set that is read, or the folder itself; and the names of all parts.

    Args:
        text: the folder.
        wanted: name of the part; empty for the train part, "none" to read the parts as classes.
        reading: where the choice is noted.
        clips: whether the folder holds clips instead of images.

    Raises:
        InputError: there is no such part.
    """
    parts = [] if wanted == NONE else split_folders(Path(text), reading, clips)
    if not parts:
        if wanted not in ("", NONE):
            raise InputError(
                f'split is "{wanted}", but {text} has no folders train and {wanted}; remove split, or set held_out'
            )
        return text, []
    chosen = pick_split(wanted, parts, text)
    reading.split = describe_split(chosen, parts)
    return str(Path(text) / chosen), parts


def named_part(text: str) -> tuple[str, str]:
    """Divide "SOURCE:SPLIT" into the source and the name of a part, which is empty if there is none."""
    head, _, tail = text.rpartition(":")
    return (head, tail) if head and tail.lower() in SPLITS and not os.path.lexists(text) else (text, "")


def one_part(part: str, settings: Preparation, source: str) -> Preparation:
    """The settings with the part that a source names, if it names one.

    Raises:
        InputError: the settings have another part.
    """
    if part and settings.split not in ("", part):
        raise InputError(f'split is "{settings.split}", but the source is {source}; remove one of them')
    return replace(settings, split=part or settings.split)


def held_out_part(names: Sequence[str]) -> str | None:
    """The part with held-out images: val, otherwise test; None if there is neither."""
    for kind in ("val", "test"):
        for name in names:
            if SPLITS.get(name.lower()) == kind:
                return name
    return None
