"""The listing of a tar shard: its images, labels and captions with their positions, from one pass over the headers."""

import hashlib
import json
import posixpath
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ditlab.config.sections import Preparation
from ditlab.core.device import cache_folder
from ditlab.core.errors import InputError
from ditlab.core.file_cache import file_cache
from ditlab.core.formats import parse_json, parse_object, read_object
from ditlab.core.io import replace_text
from ditlab.core.stores import StoredFile
from ditlab.data.sources.base import reads_clips
from ditlab.data.sources.columns import CAPTIONS, LABELS, NONE, usual_columns
from ditlab.data.sources.files import CLUTTER, SYSTEM, is_wanted, suffix_of, why_left_out

KEEP_LISTING_FROM = 1000  # number of images in a shard from which its listing is cached
LISTING = 3  # version of the format of cached listings
LARGEST_TEXT = 2**24  # bytes of a member with a label or captions
COMPRESSED_STARTS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")

ShardFile = Path | StoredFile
"""A shard on this machine or in a store."""
Image = tuple[str, int, int]
"""Name of a member, position of its first byte, length."""
CLS = "cls"  # as the origin of labels: members with this suffix


@dataclass
class Listing:
    """What a shard holds. A key is the name of a member without its last suffix."""

    images: list[Image] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)
    """Key -> label."""
    origins: dict[str, int] = field(default_factory=dict)
    """Origin of labels ("cls", or a key of JSON members) -> number of members."""
    captions: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Key -> position and length of a member with a caption, and its JSON key; "" is a text member."""
    texts: dict[str, Any] = field(default_factory=dict)
    """Key -> captions, of a shard in a store only: training reads all of them before its first step."""
    json_keys: list[str] = field(default_factory=list)
    """Keys of the JSON members."""
    left_out: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Reason -> number of members that are not read, and the name of the first one."""

    def leave_out(self, name: str, reason: str) -> None:
        """Count a member that is not read."""
        count, example = self.left_out.get(reason, (0, name))
        self.left_out[reason] = (count + 1, example)


def open_shard(shard: ShardFile) -> BinaryIO:
    """Open a shard; one in a store is fetched first.

    Raises:
        InputError: it cannot be fetched.
    """
    return shard.open("rb") if isinstance(shard, Path) else file_cache().open(shard)


def place_of(shard: ShardFile) -> str:
    """Where a shard is, with its size and time."""
    if isinstance(shard, StoredFile):
        return f"{shard.url} {shard.size} {shard.version}"
    state = shard.stat()
    return f"{shard.resolve()} {state.st_size} {state.st_mtime_ns}"


def read_listing(shard: ShardFile, settings: Preparation) -> Listing:
    """List a shard; the listing of a large shard, or of one in a store, is kept until the file changes.

    Raises:
        InputError: the shard is damaged or compressed, or a member is no JSON.
    """
    choice = [LISTING, settings.label_column, settings.caption_column, *(["clips"] if reads_clips(settings) else [])]
    identity = f"{place_of(shard)} {json.dumps(choice)}"
    cached = cache_folder() / "shards" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError, TypeError, KeyError):
        content = read_object(cached)
        return Listing(**content | {"images": [tuple(image) for image in content["images"]]})
    listing = list_shard(shard, settings)
    if len(listing.images) >= KEEP_LISTING_FROM or isinstance(shard, StoredFile):
        with suppress(OSError):  # without a cache file, the shard is listed again next time
            replace_text(cached, json.dumps(asdict(listing)))
    return listing


def list_shard(shard: ShardFile, settings: Preparation) -> Listing:
    """List a shard from its headers.

    Raises:
        InputError: the shard is damaged or compressed, or a member is no JSON.
    """
    listing = Listing()
    reader = CompanionReader(listing, settings, texts=isinstance(shard, StoredFile))
    try:
        with open_shard(shard) as file:
            if file.read(8).startswith(COMPRESSED_STARTS):
                raise InputError(
                    f"shard {shard} is compressed, so its images cannot be read in any order; decompress it first"
                )
            file.seek(0)
            list_members(file, listing, reader, clips=reads_clips(settings))
    except InputError:
        raise
    except (OSError, tarfile.TarError, ValueError, MemoryError, OverflowError) as error:  # such as absurd lengths
        raise InputError(
            f"shard {shard} is truncated, damaged or compressed ({str(error) or type(error).__name__}); copy it again"
        ) from error
    reader.finish()
    return listing


def list_members(file: BinaryIO, listing: Listing, reader: "CompanionReader", *, clips: bool) -> None:
    """Add all members of an open shard to a listing, of images or of clips."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header, a kilobyte each
            if not member.isfile():
                continue
            folder, name = posixpath.split(posixpath.normpath(member.name))
            if {part.lower() for part in folder.split("/")} & SYSTEM or "/." in f"/{folder}".replace("/..", ""):
                listing.leave_out(member.name, CLUTTER)
            elif member.issparse():  # its length is not that of its part of the shard
                listing.leave_out(member.name, "sparse member")
            elif is_wanted(name, clips):
                listing.images.append((member.name, member.offset_data, member.size))
            elif name[0] != "." and suffix_of(name) in (".cls", ".json", ".txt") and member.size <= LARGEST_TEXT:
                opened = tar.extractfile(member)
                reader.read(member, opened.read() if opened else b"")
            else:
                listing.leave_out(member.name, why_left_out(name, clips))
        check_end(file, tar.offset)


class CompanionReader:
    """Takes labels and captions from the members beside the images."""

    def __init__(self, listing: Listing, settings: Preparation, *, texts: bool = False) -> None:
        """Fill a listing according to the settings for the columns of labels and captions, which `texts` keeps."""
        self.texts = texts
        self.listing, self.label, self.caption = listing, settings.label_column, settings.caption_column
        self.keys: dict[str, None] = {}
        self.from_json: dict[str, tuple[str, Any]] = {}  # key -> JSON key of the label, label

    def read(self, member: tarfile.TarInfo, content: bytes) -> None:
        """Read one member with the suffix .cls, .json or .txt."""
        key, suffix = posixpath.splitext(member.name)
        suffix = suffix.lower()
        if suffix == ".cls":
            if self.label in ("", CLS):
                self.listing.labels[key] = decoded(content, member.name)
                self.listing.origins[CLS] = self.listing.origins.get(CLS, 0) + 1
        elif suffix == ".txt":
            if self.caption in ("", "txt"):
                self.listing.captions[key] = (member.offset_data, member.size, "")
                if self.texts:
                    self.listing.texts[key] = decoded(content, member.name)
        else:
            self.read_json(member, key, content)

    def read_json(self, member: tarfile.TarInfo, key: str, content: bytes) -> None:
        """Read one JSON member; one that holds no object is counted."""
        try:
            row = parse_json(content)
        except ValueError as error:
            raise InputError(f"member {member.name} is no JSON ({error}); correct it") from error
        if not isinstance(row, dict):
            self.listing.leave_out(member.name, "no JSON object (.json)")
            return
        self.keys.update(dict.fromkeys(row))
        label = self.chosen(row, self.label, LABELS)
        if label is not None and row[label] not in (None, ""):
            self.from_json[key] = (label, row[label])
        caption = self.chosen(row, self.caption, CAPTIONS)
        if caption is not None and isinstance(row[caption], str | list):
            self.listing.captions.setdefault(key, (member.offset_data, member.size, caption))
            if self.texts:
                self.listing.texts.setdefault(key, row[caption])

    @staticmethod
    def chosen(row: dict[str, Any], wanted: str, usual: tuple[str, ...]) -> str | None:
        """The JSON key that holds a label or a caption."""
        if wanted:
            return wanted if wanted != NONE and wanted in row else None
        return next(iter(usual_columns(row, usual)), None)

    def finish(self) -> None:
        """Use the labels in JSON members if there are no .cls members."""
        self.listing.json_keys = list(self.keys)
        for key, (origin, label) in self.from_json.items():
            self.listing.origins[origin] = self.listing.origins.get(origin, 0) + 1
            if CLS not in self.listing.origins:
                self.listing.labels[key] = label


def check_end(file: BinaryIO, offset: int) -> None:
    """Check that a tar file ends with zeros: `tarfile` mistakes a damaged header for the end."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ValueError(f"no header and no end of archive at byte {offset}")


def caption_text(content: bytes, key: str, name: str) -> Any:
    """The caption in a text member, or the caption or captions under a key of a JSON member.

    Args:
        content: the member.
        key: JSON key; empty for a text member.
        name: what holds it, for messages.

    Raises:
        InputError: it is not UTF-8.
    """
    return parse_object(content)[key] if key else decoded(content, name)


def decoded(content: bytes, name: str) -> str:
    """The text in a member.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InputError(f"member {name} is not UTF-8; save the text as UTF-8") from None


def lookup_key(values: dict[str, Any], name: str) -> Any:
    """The value that belongs to a member: that of its name without the last suffix, or without further parts."""
    folder, slash, file = name.rpartition("/")
    parts = file.split(".")
    for count in range(len(parts) - 1, 0, -1):
        key = folder + slash + ".".join(parts[:count])
        if key in values:
            return values[key]
    return None


def origins_of(listings: Iterable[Listing]) -> dict[str, int]:
    """Origin of labels -> number of members, over several shards."""
    total: dict[str, int] = {}
    for listing in listings:
        for origin, count in listing.origins.items():
            total[origin] = total.get(origin, 0) + count
    return total
