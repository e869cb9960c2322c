"""Sources of images: folders, tar shards, Hugging Face data sets. A new source is one file and a line in `SOURCES`."""

from dataclasses import fields, replace
from pathlib import Path

from ditlab.config.fields import shown
from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.spelling import expand
from ditlab.core.stores import is_url
from ditlab.data.decode import Raster
from ditlab.data.reading import UNCONDITIONAL, Reading
from ditlab.data.sources.base import MIN_SIDE, Column, NamedSource, Source, Texts, Unreadable, reads_clips
from ditlab.data.sources.columns import NONE
from ditlab.data.sources.files import SUFFIXES, is_output
from ditlab.data.sources.folder import Folder
from ditlab.data.sources.frame_folders import FrameFolders
from ditlab.data.sources.hugging_face import PREFIX, HuggingFace, all_splits, name_and_split
from ditlab.data.sources.mds import MDS
from ditlab.data.sources.parquet import Parquet
from ditlab.data.sources.part import HELD_OUT, TRAIN, divide
from ditlab.data.sources.patterns import Pattern
from ditlab.data.sources.splits import SPLITS, choose_folder, held_out_part, named_part, split_folders
from ditlab.data.sources.stored_tar import StoredTar
from ditlab.data.sources.table import Table
from ditlab.data.sources.tar import TarShards, tar_parts
from ditlab.data.sources.trajectories import TrajectoryFolder

SOURCES: dict[str, type[NamedSource]] = {
    "parquet": Parquet,
    "mds": MDS,
    "stored-tar": StoredTar,
    "hf": HuggingFace,
    "frame-folders": FrameFolders,
    "trajectories": TrajectoryFolder,
    "tar": TarShards,
    "table": Table,
    "pattern": Pattern,
    "folder": Folder,
}
"""Name -> source class, in the order in which they are tried."""

NUMBERS = frozenset({"range", "show"})
"""Settings without effect on clips, whose numbers have 8 bits."""
REASONS = 4  # reasons in the message on a source without images

__all__ = [
    "MIN_SIDE",
    "SOURCES",
    "SUFFIXES",
    "Column",
    "Raster",
    "Source",
    "Texts",
    "Unreadable",
    "check_used",
    "find_source",
    "held_out_name",
    "is_output",
    "open_source",
    "source_and_part",
    "where_data_may_be",
]


def find_source(text: str, settings: Preparation | None = None) -> type[NamedSource] | None:
    """The class of the source that a string names; None if there is none.

    Args:
        text: path, pattern or hub name.
        settings: a label file makes a folder a table.
    """
    settings = settings or Preparation()
    text, _ = source_and_part(text)
    if not text:  # which `Path` takes for the present folder
        return None
    return next((source for source in SOURCES.values() if source.matches(text, settings)), None)


def source_and_part(text: str) -> tuple[str, str]:
    """Divide "SOURCE:PART" into the source and the name of a part, which is empty if there is none."""
    if not text.startswith(PREFIX) or is_url(text):
        return named_part(text)
    name, part = name_and_split(text.removeprefix(PREFIX))
    return f"{PREFIX}{name}", part


def open_source(text: str, settings: Preparation | None = None) -> Source:
    """Open images from a folder, files that match a pattern, tar shards, or "hf:NAME[:SPLIT]".

    Args:
        text: path, pattern or hub name.
        settings: the columns, the label file and the split to read.

    Raises:
        InputError: the source does not exist, is empty, does not match the label file, or makes no use of a setting.
    """
    text, settings = expand(text), settings or Preparation()
    if settings.held_out:
        return open_divided(text, settings)
    part, source_class = Reading(), find_source(text, settings)
    if source_class is None:
        raise InputError(f'no data at "{text}"; {where_data_may_be(text, "give an existing folder of images")}')
    if not issubclass(source_class, HuggingFace | TarShards):  # which report what they have by that name
        text, settings = with_part(text, settings)
    check_used(settings, source_class.uses, text)
    # A table lists what is read.
    if source_class in (Folder, FrameFolders, TrajectoryFolder) or (source_class is Table and settings.split):
        clips = reads_clips(settings) and source_class is not FrameFolders
        place, parts = choose_folder(text, settings.split, part, clips)
        settings = replace(settings, split="")
        source_class = find_source(place, settings) if place != text else source_class
        assert source_class is not None
        check_used(settings, source_class.uses, place)
        source = source_class.from_text(place, settings)
        source.parts = parts
        note_part(source.reading, part)
    else:
        source = source_class.from_text(text, settings)
    if not len(source):
        what, such = ("clips", ".mp4, .webm, .gif") if reads_clips(settings) else ("images", ".jpg, .png, .webp")
        raise InputError(f"no {what} in {text}{_what_else(source.reading)}; put some there (such as {such})")
    source.min_side, source.max_pixels, source.channels = settings.min_side, settings.max_pixels, settings.channels
    if "caption" in source.columns and source.reading.conditions == UNCONDITIONAL:
        source.reading.conditions = "captions, and no classes"
    return source


def with_part(text: str, settings: Preparation) -> tuple[str, Preparation]:
    """The source in "SOURCE:PART", and the settings with this part.

    Raises:
        InputError: the settings have another part.
    """
    place, part = source_and_part(text)
    if part and settings.split not in ("", NONE, part):
        raise InputError(f'split is "{settings.split}", but the source is {text}; remove one of them')
    return place, replace(settings, split=part or settings.split)


def open_divided(text: str, settings: Preparation) -> Source:
    """Open the training part or the held-out part of images that `held_out` divides.

    Raises:
        InputError: the data set is divided already, no image is held out, or there is no such part.
    """
    (place, divided), share = with_part(text, settings), settings.held_out
    part = SPLITS.get(divided.split.lower(), divided.split) if divided.split != NONE else ""
    if part not in ("", TRAIN, HELD_OUT):
        raise InputError(
            f'split is "{divided.split}", but held_out divides {place} into {TRAIN} and {HELD_OUT}; choose one of them'
        )
    source = open_source(place, replace(settings, held_out=0.0, split=NONE if settings.split == NONE else ""))
    if len(source.parts) > 1:
        raise InputError(
            f"held_out is {share:g}, but {place} is divided already ({', '.join(source.parts)}); remove held_out"
        )
    return divide(source, share, part or TRAIN, place)


def where_data_may_be(text: str, remedy: str) -> str:
    """What to do about a source that does not exist, or that is a single file."""
    if Path(text).is_file():
        folder = Path(text).parent
        return f'this is a single file; give its folder ({folder}), or a pattern such as "{folder}/*.jpg"'
    return nearest_path(text, remedy)


def held_out_name(text: str, split: str) -> str:
    """The source of the held-out images: the val part of a divided data set, otherwise its test part.

    Args:
        text: path, pattern or hub name.
        split: the part that is trained on.

    Returns:
        Its name; empty if there is none, or if it is the part that is trained on.

    Raises:
        InputError: the parts of a data set cannot be listed.
    """
    source_class, (place, part) = find_source(text), source_and_part(text)
    place, split = place.removeprefix(PREFIX) if source_class is HuggingFace else place, part or split
    if split == NONE or (split and SPLITS.get(split.lower()) != "train"):
        return ""
    if source_class is HuggingFace:
        held_out = held_out_part(all_splits(place))
        return f"{PREFIX}{place}:{held_out}" if held_out else ""
    if source_class is not None and issubclass(source_class, TarShards):
        held_out = held_out_part(tar_parts(source_class, place))
        return f"{place}:{held_out}" if held_out else ""
    held_out = held_out_part(split_folders(Path(place), Reading())) if source_class is Folder else None
    return str(Path(place) / held_out) if held_out else ""


def note_part(reading: Reading, part: Reading) -> None:
    """Add which part of a divided folder was chosen, and what was left out beside the parts."""
    reading.split = part.split or reading.split
    reading.leave_out_all(part)


def _what_else(reading: Reading) -> str:
    """What a source without images has instead."""
    reasons = [f" ({left.count:,} {reason}: {left.example})" for reason, left in reading.left_out.items()]
    more = f" (and {len(reasons) - REASONS:,} more kinds)" if len(reasons) > REASONS else ""
    return "".join(reasons[:REASONS]) + more


def check_used(settings: Preparation, uses: frozenset[str], what: str) -> None:
    """Check that all settings that differ from their default have an effect.

    Args:
        settings: how images are read.
        uses: names of the settings that have an effect.
        what: the data source, for the message.

    Raises:
        InputError: a setting without effect.
    """
    uses -= NUMBERS if reads_clips(settings) else frozenset()
    for field in fields(Preparation):
        value = getattr(settings, field.name)
        if field.name not in uses and value != field.default:
            raise InputError(f"{field.name} is {shown(value)}, which has no effect on {what}; remove it")
