"""Patterns of file names: "*", "?" and "[...]" as in a shell, and braces such as {000000..000127} or {a,b}."""

import glob
import os
import re
from pathlib import Path
from typing import Self

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.core.sizes import SPECIAL
from ditlab.core.spelling import with_slashes
from ditlab.data.reading import Reading
from ditlab.data.sources.base import CLIP_SETTINGS, PIXEL_SETTINGS, label_column, reads_clips
from ditlab.data.sources.files import is_wanted, sorted_naturally, utf8_name, why_left_out
from ditlab.data.sources.folder import Folder

BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
LARGEST = 1_000_000  # files that braces may name; more is a slip of the keyboard


def is_pattern(text: str) -> bool:
    """Whether a text stands for several files, and is not the name of one."""
    return not os.path.lexists(text) and (glob.has_magic(text) or BRACES.search(text) is not None)


def matching_files(text: str) -> list[str]:
    """The paths that a pattern stands for; those from braces alone need not exist."""
    paths: list[str] = []
    for path in expand_braces(text):
        paths += sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else [path]
    return paths


def expand_braces(text: str) -> list[str]:
    """Write out all alternatives of braces; {08..11} keeps leading zeros.

    Raises:
        InputError: an empty range, or very many alternatives.
    """
    match = BRACES.search(text)
    if match is None:
        return [text]
    first, last, listed = match.groups()
    if listed is None:
        numbers = range(int(first), int(last) + 1)
        if not 0 < len(numbers) <= LARGEST:
            raise InputError(f"{match[0]} in {text} stands for {len(numbers):,} names; give {{FIRST..LAST}}")
        names = [str(number).zfill(len(first)) for number in numbers]
    else:
        names = listed.split(",")
    before, after = text[: match.start()], expand_braces(text[match.end() :])
    if len(names) * len(after) > LARGEST:
        raise InputError(f"{text} stands for more than {LARGEST:,} names; give fewer")
    return [f"{before}{name}{rest}" for name in names for rest in after]


class Pattern(Folder):
    """Image files that match a pattern, without labels."""

    uses = PIXEL_SETTINGS | CLIP_SETTINGS

    @classmethod
    def matches(cls, text: str, settings: Preparation) -> bool:
        return is_pattern(text)

    @classmethod
    def from_text(cls, text: str, settings: Preparation) -> Self:
        """Open the image files that match a pattern.

        Raises:
            InputError: no file matches, or folders match.
        """
        paths, reading, clips = list(dict.fromkeys(matching_files(text))), Reading(), reads_clips(settings)
        folders = [path for path in paths if os.path.isdir(path)]
        if not paths or len(folders) == len(paths):
            problem = "only folders match" if paths else "no file matches"
            raise InputError(f"{problem} {text}; give a pattern of image files, or the folder that holds them")
        for folder in folders:
            reading.leave_out(utf8_name(folder), "folder that matches the pattern")
        files = [path for path in paths if path not in {*folders}]
        root = Path(os.path.commonpath([os.path.dirname(path) or "." for path in files]) if files else ".")
        images = []
        for path in files:
            if not os.path.isfile(path) and os.path.exists(path):
                reading.leave_out(utf8_name(path), SPECIAL)
            elif is_wanted(os.path.basename(path), clips):
                images.append(with_slashes(os.path.relpath(path, root)))
            else:
                reading.leave_out(utf8_name(path), why_left_out(os.path.basename(path), clips))
        source = cls(root, sorted_naturally(images))
        source.columns = {"label": label_column([0] * len(images), [])}
        if len({os.path.dirname(image) for image in images}) > 1:
            reading.notes.append("folders are not classes in a pattern; give their folder to read them as classes")
        source.reading = reading
        return source
