"""Tar shards in WebDataset's format, in which members with the same stem belong together."""

import hashlib
import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Self

from PIL import Image

from ditlab.core.device import cache_folder
from ditlab.core.errors import InputError
from ditlab.core.io import replace_text
from ditlab.core.spelling import nfc
from ditlab.data.identity import Stamp, file_stamp
from ditlab.data.sources.base import Source, column_of_texts
from ditlab.data.sources.folder import is_image, printable, walk

KEEP_LISTING_FROM = 1000  # number of images in a shard from which its listing is cached

Member = tuple[str, tuple[int, int], str]  # name, (offset, length), label


class TarShards(Source):
    """Images in tar shards, which can be read in any order because all members are listed first."""

    def __init__(self, shards: list[Path]) -> None:
        """List the members of the shards.

        Raises:
            InputError: a shard is damaged, or only some of the images have a label.
        """
        self.shards = shards
        self.places: list[tuple[int, str, int, int]] = []  # shard, name, offset, length
        labels: list[str] = []
        for number, shard in enumerate(shards):
            for name, place, label in _members(shard):
                self.places.append((number, name, *place))
                labels.append(label)
        if any(labels) and not all(labels):
            unlabeled = self.name(labels.index(""))
            raise InputError(
                f"{unlabeled} has no label, but others have one ({labels.count('')} images without); "
                "add .cls or .json members"
            )
        listed = shards[0].parent / "classes.txt"
        names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else None
        self.columns = {"label": column_of_texts(labels, names, str(shards[0].parent))}

    @classmethod
    def matches(cls, text: str, labels: str) -> bool:
        path = Path(text)
        if path.is_dir():
            return bool(_visible_shards(path))
        return path.suffix == ".tar" or "*" in path.name

    @classmethod
    def from_text(cls, text: str, labels: str) -> Self:
        """Open the tar files of a folder or of a pattern, or a single tar file.

        Raises:
            InputError: there is no such file, or the folder holds image files too.
        """
        path = Path(text)
        if path.is_dir():
            shards = _visible_shards(path)
            if walk(path, set()):
                raise InputError(
                    f'{path} holds images and {shards[0].name}; give "{path}/*.tar", or move one of them away'
                )
        else:
            shards = sorted(path.parent.glob(path.name)) if "*" in path.name and path.parent.is_dir() else [path]
        if not shards or not shards[0].is_file():
            raise InputError(f'no tar file "{text}"; give an existing file, folder or pattern')
        return cls(shards)

    def name(self, i: int) -> str:
        return printable(f"{self.shards[self.places[i][0]].name}:{self.places[i][1]}")

    def raw(self, i: int) -> Image.Image:
        return Image.open(io.BytesIO(self.content(i)))

    def stamp(self, i: int) -> Stamp:
        number, name, _, length = self.places[i]
        shard = self.shards[number]
        return file_stamp(shard, nfc(f"{shard.name}:{name}"))._replace(size=length)

    def content(self, i: int) -> bytes:
        number, _, offset, length = self.places[i]
        with self.shards[number].open("rb") as file:
            file.seek(offset)
            return file.read(length)


def _visible_shards(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.tar") if file.name[0] != ".")


def _members(shard: Path) -> list[Member]:
    """All images of a shard; the listing of a large shard is cached until the file changes."""
    state = shard.stat()
    identity = f"{shard.resolve()} {state.st_size} {state.st_mtime_ns}"
    listing = cache_folder() / "shards" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        return [(name, (start, length), label) for name, start, length, label in json.loads(listing.read_bytes())]
    members = _list_members(shard)
    if len(members) >= KEEP_LISTING_FROM:
        with suppress(OSError):  # without a cache file, the shard is listed again next time
            replace_text(listing, json.dumps([(name, *place, label) for name, place, label in members]))
    return members


def _list_members(shard: Path) -> list[Member]:
    """All images of a shard, from its headers."""
    images: dict[str, tuple[str, tuple[int, int]]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # "r:" rejects compressed files, whose offsets would be wrong
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header, a kilobyte each
                folder, _, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                stem = f"{folder}/{stem}"
                if member.isfile() and is_image(name):
                    images[stem] = (member.name, (member.offset_data, member.size))
                elif member.isfile() and extension in ("cls", "json"):
                    content = tar.extractfile(member)
                    if label := _member_label(content.read() if content else b"", extension):
                        labels[stem] = label
            _check_end(shard, tar.offset)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise InputError(f"shard {shard} is truncated, damaged or compressed ({error}); copy it again") from error
    return [(name, place, labels.get(stem, "")) for stem, (name, place) in images.items()]


def _member_label(content: bytes, extension: str) -> str:
    """The label in a .cls or .json member; empty for a JSON member that holds no label."""
    if extension == "cls":
        return content.decode().strip()
    row = json.loads(content)
    label = row.get("label") if isinstance(row, dict) else None
    return "" if label is None else str(label)


def _check_end(shard: Path, offset: int) -> None:
    """Check that a tar file ends with zeros: `tarfile` mistakes a damaged header for the end."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"no header and no end of archive at byte {offset}")
