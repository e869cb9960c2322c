"""Which files are images or clips, and the listing of a folder: clutter and the output of ditlab are left out."""

import importlib
import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from ditlab.core.io import LOCK, is_vacant
from ditlab.core.sizes import SPECIAL
from ditlab.data.reading import LeftOut, Reading
from ditlab.data.sources.base import natural
from ditlab.report.videos import has_pyav

SUFFIXES = (
    ".jpg", ".jpeg", ".webp", ".png", ".jpe", ".jfif", ".mpo", ".apng", ".avif", ".bmp", ".dib", ".tif", ".tiff",
    ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf", ".jpc", ".tga", ".pcx",
    ".qoi", ".sgi", ".dds", ".npy",
)  # fmt: skip
"""Suffixes of image files. Of two files of one sample in a tar shard, the one whose suffix comes first is the image."""
ANIMATIONS = (".gif", ".webp", ".apng", ".png")
PHOTOS = (".jpg", ".jpeg", ".jpe", ".jfif")
VIDEOS = (".mp4", ".webm", ".mov", ".m4v", ".mkv", ".avi")
"""Suffixes of clips: animations and images, which Pillow reads, and videos, which need PyAV."""
PLUGINS = {".heic": "pillow-heif", ".heif": "pillow-heif", ".jxl": "pillow-jxl-plugin"}
"""Suffixes that Pillow reads if a package is installed."""
SYSTEM = frozenset({"@eadir", "__macosx", "lost+found", "#recycle", "@recycle", "$recycle.bin", "thumbs.db",
    "desktop.ini", "system volume information"})  # fmt: skip
"""Folders and files that operating systems and file servers add, in lower case."""
SAMPLES = (frozenset({"settings.json", "grid.png"}), frozenset({"samples.json", "grid.png"}))
"""Files in a folder of generated images."""
OUTPUTS = (
    *(frozenset({"recipe.toml", other}) for other in ("metrics.jsonl", "checkpoints", LOCK)),  # a run
    *(frozenset({"settings.json", other}) for other in ("metrics.jsonl", "training.pt")),  # an autoencoder in training
    *(frozenset({"config.json", f"{kind}.safetensors"}) for kind in ("model", "autoencoder", "adapter")),
    *(frozenset({"study.json", other}) for other in ("results.jsonl", "locks")),
    frozenset({"description.json", "index.json"}),  # a latent cache
)
"""Files by which other folders that ditlab wrote are recognized."""
SHEETS = frozenset({"grid.png", "trajectory.gif"})
"""Files in a folder of generated images that show several of them."""
HIDDEN, CLUTTER, OURS, CLOSED = "hidden", "system file or folder", "written by ditlab", "cannot be opened"
COMPANIONS = {
    "array beside an image of the same name": ((".npy",), (*SUFFIXES, *PLUGINS)),
    "image beside a video of the same name": (PHOTOS, VIDEOS),
}
"""Reason to leave a file out -> its suffixes, and those of the file that it belongs to."""
COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2?|txz)$", re.IGNORECASE)


@cache
def readable() -> frozenset[str]:
    """Suffixes of the image files that can be read here, with the plug-ins of Pillow that are installed."""
    Image.init()
    with suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    with suppress(ImportError):
        importlib.import_module("pillow_jxl")
    known = {*Image.registered_extensions(), ".npy"}
    return frozenset(suffix for suffix in (*SUFFIXES, *PLUGINS) if suffix in known)


def suffix_of(name: str) -> str:
    """The suffix of a file name in lower case, such as ".png" or ".tar.gz"; empty if there is none."""
    if compressed := COMPRESSED.search(name):
        return compressed[0].lower()
    position = name.rfind(".")
    return name[position:].lower() if position > 0 else ""


def wanted(clips: bool) -> frozenset[str]:
    """Suffixes of the files that are read: clips, or images that can be read here."""
    if clips:
        return frozenset(ANIMATIONS + PHOTOS + (VIDEOS if has_pyav() else ()))
    return readable()


def is_wanted(name: str, clips: bool) -> bool:
    """Whether a file name is that of a clip, or of an image that can be read; hidden files are neither."""
    return name[0] != "." and name[name.rfind(".") :].lower() in wanted(clips)


def why_left_out(name: str, clips: bool = False) -> str:
    """The reason why a file that is not read as an image, or as a clip, is left out."""
    if name[0] == ".":
        return HIDDEN
    if name.lower() in SYSTEM:
        return CLUTTER
    suffix = suffix_of(name)
    if clips and suffix in VIDEOS and not has_pyav():
        return f"needs PyAV, pip install 'ditlab[video]' ({suffix})"
    if clips:
        return f"not a clip ({suffix or 'no suffix'})"
    if suffix in PLUGINS:
        return f"needs the package {PLUGINS[suffix]} ({suffix})"
    if suffix in SUFFIXES:
        return f"cannot be read by this version of Pillow ({suffix})"
    return f"not an image ({suffix or 'no suffix'})"


def written_by_ditlab(names: Collection[str]) -> bool:
    """Whether a folder with these names is the output of a command."""
    present = frozenset(names)
    return any(marks <= present for marks in (*SAMPLES, *OUTPUTS))


def holds_samples(names: Collection[str]) -> bool:
    """Whether a folder with these names holds generated images."""
    present = frozenset(names)
    return any(marks <= present for marks in SAMPLES)


def is_output(folder: Path) -> bool:
    """Whether a folder is the output of a command, or has nothing but its lock."""
    return is_vacant(folder) or written_by_ditlab(os.listdir(folder))


def passed_over(reading: Reading) -> int:
    """The number of folders that were not entered."""
    return sum(reading.left_out.get(reason, LeftOut()).count for reason in (HIDDEN, CLUTTER, OURS, CLOSED))


def utf8_name(name: str) -> str:
    """A file name for messages and reports, in which bytes that are not UTF-8 are written as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@dataclass
class Entries:
    """What one folder holds."""

    folders: list[str] = field(default_factory=list)  # in the order of their names
    images: list[str] = field(default_factory=list)
    captioned: int = 0
    """Images with a text file of the same stem."""
    ours: bool = False
    """Whether ditlab wrote the folder; only a folder that the user named is then listed."""


def read_folder(
    path: str | Path,
    reading: Reading,
    prefix: str = "",
    known: Collection[str] = (),
    *,
    named: bool = False,
    clips: bool = False,
) -> Entries:
    """List one folder, without those below it.

    Args:
        path: the folder.
        reading: where files that are left out are counted.
        prefix: what comes before the names in `reading`.
        known: names of further files that are read.
        named: whether the user named this folder; it is then read although ditlab wrote it.
        clips: list clips instead of images.
    """
    try:
        entries = list(os.scandir(path))
    except OSError:
        reading.leave_out(prefix or str(path), CLOSED)
        return Entries()
    ours = written_by_ditlab([entry.name for entry in entries])
    if ours and not named:
        reading.leave_out(prefix.rstrip("/"), OURS)
        return Entries(ours=True)
    result, suffixes, texts, others = Entries(ours=ours), wanted(clips), set[str](), list[str]()
    for entry in entries:
        name = entry.name
        if entry.is_dir():
            result.folders.append(name)
        elif not entry.is_file() and os.path.exists(entry):  # opening it may wait forever
            reading.leave_out(utf8_name(prefix + name), SPECIAL)
        elif name[name.rfind(".") :].lower() in suffixes and name[0] != ".":
            result.images.append(name)
        elif name[-4:].lower() == ".txt" and name[0] != ".":
            texts.add(name)
        else:
            others.append(name)
    _leave_out_companions(result, reading, prefix)
    if ours:
        sheets = SHEETS & {*result.images}
        result.images = [name for name in result.images if name not in sheets]
        for name in sheets:
            reading.leave_out(prefix + name, OURS)
    used = (
        {f"{os.path.splitext(image)[0]}{end}" for image in result.images for end in (".txt", ".TXT")} if texts else ()
    )
    result.captioned = len(texts.intersection(used))
    for name in sorted({*others, *texts.difference(used)} - {*known}):
        if not name.startswith(LOCK):
            reading.leave_out(utf8_name(prefix + name), why_left_out(name, clips))
    result.folders = _visible(result.folders, reading, prefix)
    return result


def _leave_out_companions(entries: Entries, reading: Reading, prefix: str) -> None:
    """Leave out files that belong to another one, such as masks and thumbnails."""
    for reason, (companions, owners) in COMPANIONS.items():
        if not (others := {name for name in entries.images if name.lower().endswith(companions)}):
            continue
        stems = {
            os.path.splitext(name)[0] for name in entries.images if name not in others and name.lower().endswith(owners)
        }
        beside = {name for name in others if os.path.splitext(name)[0] in stems}
        for name in sorted(beside):
            reading.leave_out(utf8_name(prefix + name), reason)
        entries.images = [name for name in entries.images if name not in beside]


def _visible(folders: list[str], reading: Reading, prefix: str) -> list[str]:
    """The folders in the order of their names, without hidden ones and those of the operating system."""
    visible = []
    for name in sorted(folders):  # file systems list folders in any order
        reason = HIDDEN if name[0] == "." else CLUTTER if name.lower() in SYSTEM else ""
        if reason:
            reading.leave_out(utf8_name(prefix + name), reason)
        else:
            visible.append(name)
    return visible


def list_images(
    root: str | Path,
    reading: Reading,
    visited: set[str] | None = None,
    prefix: str = "",
    known: Collection[str] = (),
    *,
    named: bool = False,
    clips: bool = False,
) -> tuple[list[str], int]:
    """List the images below a folder; links are followed, except into folders that were visited before.

    Args:
        root: the folder.
        reading: where files that are left out are counted.
        visited: real paths of other folders that are listed separately; the folders below `root` are added.
        prefix: what comes before the names in `reading`.
        known: names of further files of `root` that are read.
        named: whether the user named this folder; it is then read although ditlab wrote it.
        clips: list clips instead of images.

    Returns:
        The paths relative to the folder in natural order, and the number of images with a text file of the same stem.
    """
    visited = set() if visited is None else visited
    images: list[str] = []
    captioned, waiting = 0, [""]
    while waiting:
        relative = waiting.pop()
        path = os.path.join(root, relative)
        real = os.path.realpath(path)
        if real in visited and relative:
            continue
        visited.add(real)
        top = not relative
        here = read_folder(path, reading, prefix + relative, known if top else (), named=named and top, clips=clips)
        images += [relative + name for name in here.images] if relative else here.images
        captioned += here.captioned
        waiting += [f"{relative}{name}/" for name in reversed(here.folders)]
    return sorted_naturally(images), captioned


def sorted_naturally(names: list[str]) -> list[str]:
    """Names in natural order; 01 comes before 1, which are equal there."""
    return sorted(sorted(names), key=natural)
