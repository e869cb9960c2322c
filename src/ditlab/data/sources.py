"""Where pictures come from: folders, tables of labels, tar shards, Hugging Face datasets. Nothing is decoded here
before it is asked for, and a million names take some hundred bytes each.
"""

import csv
import hashlib
import io
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, final

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditlab.core.device import cache_folder
from ditlab.core.errors import InputError, lookup
from ditlab.core.io import replace_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
LEAST_SIDE = 8  # smaller pictures are icons or accidents
KEPT_FROM = 1000  # pictures of a shard whose listing is worth keeping


class Unreadable(Exception):  # noqa: N818 - not a mistake of the user, but a property of a file
    """A picture that cannot be used; the message is the reason."""


class Source(ABC):
    """Pictures by number, with labels and names."""

    classes: list[str]  # empty: unconditional
    labels: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def name(self, i: int) -> str:
        """What reports call picture i."""

    @abstractmethod
    def raw(self, i: int) -> Image.Image:
        """Picture i, opened but perhaps not decoded; may raise whatever Pillow raises."""

    @final
    def open(self, i: int, min_side: int = LEAST_SIDE) -> Image.Image:
        """Picture i, decoded.

        Raises:
            Unreadable: missing, broken, animated, or with a side of less than `min_side` pixels.
        """
        try:
            image = self.raw(i)
            # An MPO is a camera's JPEG with a preview or depth map behind the picture.
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                raise Unreadable("animated")
            if min(image.size) < min_side:
                raise Unreadable(f"only {image.width}x{image.height} pixels")
            image.load()
        except Unreadable:
            raise
        except Exception as error:  # Pillow's decoders raise almost anything on broken files
            raise Unreadable(_reason(error)) from error
        return image


def _reason(error: Exception) -> str:
    """One line without paths and addresses, so that equal faults read equal."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


class Files(Source):
    """Picture files."""

    def __init__(self, root: Path, files: list[str], labels: list[int], classes: list[str]) -> None:
        self.root, self.files, self.classes = root, files, classes
        self.labels = torch.tensor(labels, dtype=torch.long)

    def name(self, i: int) -> str:
        return printable(self.files[i])

    def raw(self, i: int) -> Image.Image:
        return Image.open(self.root / self.files[i])


class Tar(Source):
    """Pictures in tar shards as WebDataset writes them: members of one stem belong together.

    The members are listed first, so that pictures can be read in any order.
    """

    def __init__(self, shards: list[Path]) -> None:
        self.shards = shards
        self.places: list[tuple[int, str, int, int]] = []  # shard, name, offset, length
        given: list[str] = []
        for number, shard in enumerate(shards):
            for name, place, label in _members(shard):
                self.places.append((number, name, *place))
                given.append(label)
        if any(given) and not all(given):
            bare = self.name(given.index(""))
            raise InputError(
                f"{bare} has no label, but others have ({given.count('')} such); add .cls or .json members"
            )
        listed = shards[0].parent / "classes.txt" if shards else Path()
        names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else None
        self.classes, self.labels = _label(given, names, str(shards[0].parent))

    def name(self, i: int) -> str:
        return printable(f"{self.shards[self.places[i][0]].name}:{self.places[i][1]}")

    def raw(self, i: int) -> Image.Image:
        number, _, offset, length = self.places[i]
        with self.shards[number].open("rb") as file:
            file.seek(offset)
            return Image.open(io.BytesIO(file.read(length)))


class HuggingFace(Source):
    """A data set of the `datasets` library, by its image column and its label column, if it has one."""

    def __init__(self, table: Any, name: str) -> None:
        from datasets import ClassLabel  # type: ignore[import-untyped]
        from datasets import Image as Column

        kinds = table.features.items()
        pictures = [key for key, kind in kinds if isinstance(kind, Column)]
        labels = [key for key, kind in kinds if isinstance(kind, ClassLabel)]
        if not pictures:
            raise InputError(f"{name} has no column of images (it has {', '.join(table.features)})")
        self.column, self.title = pictures[0], name
        self.table = table.select_columns(pictures[:1]).cast_column(self.column, Column())  # it may be set to bytes
        self.classes = list(table.features[labels[0]].names) if labels else []
        rows = list(table[labels[0]]) if labels else [0] * len(table)
        bare = [i for i, row in enumerate(rows) if row is None or row < 0]
        if bare:
            raise InputError(
                f"{name}[{bare[0]}] has no label ({len(bare)} such); filter these rows out and save it again"
            )
        self.labels = torch.tensor(rows, dtype=torch.long)

    def name(self, i: int) -> str:
        return f"{self.title}[{i}]"

    def raw(self, i: int) -> Image.Image:
        image: Image.Image = self.table[i][self.column]
        return image


def open_source(text: str, labels: str = "") -> Source:
    """Pictures from a folder of classes, a flat folder, tar shards (file, folder or pattern), or "hf:NAME[:SPLIT]".

    Args:
        text: where the pictures are.
        labels: a CSV or JSONL file with the labels of a flat folder.

    Raises:
        InputError: nothing there, or something that does not fit together; one line with the remedy.
    """
    source = _choose(text, labels)
    if not len(source):
        raise InputError(f"no pictures in {text}; put some there ({', '.join(SUFFIXES)})")
    return source


def _choose(text: str, labels: str) -> Source:
    path = Path(text)
    hub, shards = text.startswith("hf:") or _saved(path), _shards(path)
    if labels and (hub or shards):
        raise InputError(f"labels {labels} cannot be used: {text} brings its own; leave them out")
    if hub:
        return _hugging_face(text.removeprefix("hf:"))
    if shards:
        return Tar(shards)
    if not path.is_dir():
        raise InputError(f'no data at "{text}"; give an existing folder of pictures')
    if labels:
        return _table(path, Path(labels))
    return _folder(path)


def _folder(root: Path) -> Files:
    homes = sorted((child for child in root.iterdir() if child.is_dir() and child.name[0] != "."), key=natural)
    known = _distinct(root, homes)
    stray = sorted((file.name for file in root.iterdir() if file.is_file() and is_picture(file.name)), key=natural)
    if homes and stray:
        raise InputError(f"{root / stray[0]} lies beside the class folders; move it into one of them")
    files: list[str] = []
    labels: list[int] = []
    for label, home in enumerate(homes):
        found = walk(home, known)
        if not found:
            raise InputError(f"no pictures in {home}; put some there ({', '.join(SUFFIXES)}) or remove it")
        files += [f"{home.name}/{file}" for file in found]
        labels += [label] * len(found)
    if not homes:
        files, labels = stray, [0] * len(stray)
    return Files(root, files, labels, [printable(home.name) for home in homes])


def _distinct(root: Path, homes: list[Path]) -> set[str]:
    """The real paths of a folder and its class folders."""
    known: dict[str, Path] = {}
    for folder in (root, *homes):
        other = known.setdefault(os.path.realpath(folder), folder)
        if other != folder:
            raise InputError(f"{folder} and {other} are the same folder; remove one of them")
    return set(known)


def printable(name: str) -> str:
    """A file's name for people and reports: bytes that are not UTF-8 are written as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_picture(name: str) -> bool:
    """Whether a file's name says so; hidden files are none."""
    return name.lower().endswith(SUFFIXES) and name[0] != "."


def walk(root: Path, known: set[str]) -> list[str]:
    """Picture files below a folder, relative to it, in natural order.

    Links are followed, but into no folder whose real path is `known`; those that are walked are added.
    """
    found: list[str] = []
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in known and place != str(root):
            folders.clear()
            continue
        known.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")  # a file system has no order
        inside = os.path.relpath(place, root)
        for name in files:
            if is_picture(name):
                found.append(name if inside == "." else f"{inside}/{name}")
    found.sort()  # 01 before 1, which are equal to the natural order
    return sorted(found, key=natural)


def natural(path: str | Path) -> list[tuple[int, str]]:
    """Sort key with numbers by value: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _table(root: Path, file: Path) -> Files:
    """Labels of a flat folder: CSV with the columns file and label, or a JSON object a line."""
    pairs = _rows(file)
    files = walk(root, set())
    for missing, names in (("label", set(files) - pairs.keys()), ("picture", pairs.keys() - set(files))):
        if names:
            name = printable(min(names))
            raise InputError(f"{name} has no {missing} ({len(names)} such); mend {file} or {root}")
    classes, labels = _label([pairs[name] for name in files], None, str(file))
    return Files(root, files, labels.tolist(), classes)


def _rows(file: Path) -> dict[str, str]:
    """Label by file, as the table says."""
    pairs: dict[str, str] = {}
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets write a mark at the beginning
        rows = csv.DictReader(io.StringIO(text)) if file.suffix.lower() == ".csv" else _json_lines(text)
        for row in rows:
            name, label = row.get("file") or row["file_name"], row["label"]
            if label in (None, ""):
                raise ValueError(f"a label for {name}")
            if pairs.setdefault(str(name), str(label)) != str(label):
                raise InputError(f"{name} has the labels {pairs[name]} and {label} in {file}; remove one of the rows")
    except OSError as error:
        raise InputError(f"cannot read labels {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"labels {file} are not UTF-8; save the table as CSV UTF-8") from error
    except InputError:
        raise
    except (ValueError, KeyError) as error:
        raise InputError(
            f"labels {file} lack {error}; give a CSV with the columns file and label, or such JSON objects, one a line"
        ) from error
    return pairs


def _json_lines(text: str) -> Iterable[dict[str, Any]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"an object in line {number}")
            yield row


def _label(given: list[str], names: list[str] | None, where: str) -> tuple[list[str], Tensor]:
    """Class names and indices of labels as text; numbers index the names, if there are names."""
    if not any(given):
        return [], torch.zeros(len(given), dtype=torch.long)
    classes = names or sorted(set(given), key=natural)
    index = {name: i for i, name in enumerate(classes)} | {str(i): i for i in range(len(classes)) if names}
    unknown = [label for label in given if label not in index]
    if unknown:
        raise InputError(f'label "{unknown[0]}" in {where} is not among its {len(classes)} classes')
    return classes, torch.tensor([index[label] for label in given])


Member = tuple[str, tuple[int, int], str]  # name, (offset, length), label


def _members(shard: Path) -> list[Member]:
    """Every picture of a shard; large shards are listed once, as long as they stay as they are."""
    state = shard.stat()
    identity = f"{shard.resolve()} {state.st_size} {state.st_mtime_ns}"
    listing = cache_folder() / "shards" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
    with suppress(OSError, ValueError):
        return [(name, (start, length), label) for name, start, length, label in json.loads(listing.read_bytes())]
    found = _listed(shard)
    if len(found) >= KEPT_FROM:
        with suppress(OSError):  # it is listed again next time
            replace_text(listing, json.dumps([(name, *place, label) for name, place, label in found]))
    return found


def _listed(shard: Path) -> list[Member]:
    """Every picture of a shard, from its headers."""
    pictures: dict[str, tuple[str, tuple[int, int]]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # never decompressed: places would not be those in the file
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header, a kilobyte each
                home, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                stem = f"{home}/{stem}"
                if member.isfile() and is_picture(name):
                    pictures[stem] = (member.name, (member.offset_data, member.size))
                elif member.isfile() and kind in ("cls", "json"):
                    content = tar.extractfile(member)
                    if label := _member_label(content.read() if content else b"", kind):
                        labels[stem] = label
            _check_end(shard, tar.offset)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise InputError(f"shard {shard} is truncated, damaged or compressed ({error}); copy it again") from error
    return [(name, place, labels.get(stem, "")) for stem, (name, place) in pictures.items()]


def _member_label(content: bytes, kind: str) -> str:
    """The label in a .cls or .json member; JSON without one is about something else."""
    if kind == "cls":
        return content.decode().strip()
    row = json.loads(content)
    label = row.get("label") if isinstance(row, dict) else None
    return "" if label is None else str(label)


def _check_end(shard: Path, offset: int) -> None:
    """A tar ends with zeros; tarfile also takes a damaged header for the end."""
    with shard.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"byte {offset} begins neither a file nor the end")


def _shards(path: Path) -> list[Path]:
    """The tar files of a folder or a pattern, or the one given."""
    if path.is_dir():
        shards = sorted(file for file in path.glob("*.tar") if file.name[0] != ".")
        if shards and walk(path, set()):
            raise InputError(
                f'{path} holds pictures and {shards[0].name}; give "{path}/*.tar", or move one of them away'
            )
        return shards
    if "*" in path.name and path.parent.is_dir():
        return sorted(path.parent.glob(path.name))
    return [path] if path.suffix == ".tar" else []


def _saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the datasets library."""
    whole = [path / name for name in ("dataset_info.json", "state.json")]
    return (path / "dataset_dict.json").is_file() or all(file.is_file() for file in whole)


def _hugging_face(text: str) -> HuggingFace:
    try:
        import datasets
    except ImportError:
        raise InputError("hf: needs the datasets library; pip install 'ditlab[data]'") from None
    name, _, split = text.partition(":")
    try:
        saved = _saved(Path(name))
        table = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, split=split or "train")
    except Exception as error:  # the library has many kinds
        raise InputError(f"cannot open the data set {text}: {' '.join(str(error).split())[:200]}") from error
    if isinstance(table, datasets.DatasetDict):
        table = lookup(table, split or "train", f"split of {name}:")
    elif saved and split and split != str(table.split):
        raise InputError(f"{name} has no splits; leave :{split} out")
    return HuggingFace(table, name)
