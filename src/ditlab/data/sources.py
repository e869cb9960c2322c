"""Where pictures come from: folders, tables of labels, tar shards, Hugging Face datasets. Nothing is decoded here
before it is asked for, and a million names take some hundred bytes each.
"""

import csv
import io
import json
import os
import re
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import torch
from PIL import Image
from torch import Tensor

from ditlab.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")
LEAST_SIDE = 8  # smaller pictures are icons or accidents


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
    def open(self, i: int) -> Image.Image:
        """Picture i, decoded.

        Raises:
            Unreadable: missing, broken, animated or tiny.
        """
        try:
            image = self.raw(i)
            if getattr(image, "n_frames", 1) > 1:
                raise Unreadable("animated")
            if min(image.size) < LEAST_SIDE:
                raise Unreadable(f"only {image.width}x{image.height} pixels")
            image.load()
        except Unreadable:
            raise
        except Exception as error:  # Pillow's decoders raise almost anything on broken files
            raise Unreadable(" ".join(str(error).split()) or type(error).__name__) from error
        return image


class Files(Source):
    """Picture files."""

    def __init__(self, root: Path, files: list[str], labels: list[int], classes: list[str]) -> None:
        self.root, self.files, self.classes = root, files, classes
        self.labels = torch.tensor(labels, dtype=torch.long)

    def name(self, i: int) -> str:
        return self.files[i]

    def raw(self, i: int) -> Image.Image:
        return Image.open(self.root / self.files[i])


class Tar(Source):
    """Pictures in tar shards as WebDataset writes them: members of one stem belong together.

    The members are listed once, so that pictures can be read in any order.
    """

    def __init__(self, shards: list[Path]) -> None:
        self.shards = shards
        self.places: list[tuple[int, str, int, int]] = []  # shard, name, offset, length
        given: list[str] = []
        for number, shard in enumerate(shards):
            for name, place, label in _members(shard):
                self.places.append((number, name, *place))
                given.append(label)
        listed = shards[0].parent / "classes.txt" if shards else Path()
        names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else None
        self.classes, self.labels = _label(given, names, str(shards[0].parent))

    def name(self, i: int) -> str:
        return f"{self.shards[self.places[i][0]].name}:{self.places[i][1]}"

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
        self.table, self.column, self.title = table.select_columns(pictures[:1]), pictures[0], name
        self.classes = list(table.features[labels[0]].names) if labels else []
        rows = table[labels[0]][:] if labels else [0] * len(table)
        self.labels = torch.tensor(list(rows), dtype=torch.long)

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
    if text.startswith("hf:"):
        return _hugging_face(text.removeprefix("hf:"))
    path = Path(text)
    if shards := _shards(path):
        return Tar(shards)
    if not path.is_dir():
        raise InputError(f'no data at "{text}"; give an existing folder of pictures')
    if labels:
        return _table(path, Path(labels))
    return _folder(path)


def _folder(root: Path) -> Files:
    homes = sorted((child for child in root.iterdir() if child.is_dir() and child.name[0] != "."), key=natural)
    stray = sorted((file.name for file in root.iterdir() if file.is_file() and is_picture(file.name)), key=natural)
    if homes and stray:
        raise InputError(f"{root / stray[0]} lies beside the class folders; move it into one of them")
    files: list[str] = []
    labels: list[int] = []
    for label, home in enumerate(homes):
        found = walk(home, root)
        if not found:
            raise InputError(f"no pictures in {home}; put some there ({', '.join(SUFFIXES)}) or remove it")
        files += [f"{home.name}/{file}" for file in found]
        labels += [label] * len(found)
    if not homes:
        files, labels = stray, [0] * len(stray)
    if not files:
        raise InputError(f"no pictures in {root}; put some there ({', '.join(SUFFIXES)})")
    return Files(root, files, labels, [home.name for home in homes])


def is_picture(name: str) -> bool:
    """Whether a file's name says so; hidden files are none."""
    return name.lower().endswith(SUFFIXES) and name[0] != "."


def walk(root: Path, *closed: Path) -> list[str]:
    """Picture files below a folder, relative to it, in natural order.

    Links are followed, but into no folder twice, and not into the `closed` ones.
    """
    found: list[str] = []
    known = {os.path.realpath(path) for path in closed}
    for place, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(place)
        if real in known:
            folders.clear()
            continue
        known.add(real)
        folders[:] = [name for name in folders if name[0] != "."]
        inside = os.path.relpath(place, root)
        for name in files:
            if is_picture(name):
                found.append(name if inside == "." else f"{inside}/{name}")
    return sorted(found, key=natural)


def natural(path: str | Path) -> list[tuple[int, str]]:
    """Sort key with numbers by value: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _table(root: Path, file: Path) -> Files:
    """Labels of a flat folder: CSV with the columns file and label, or a JSON object a line."""
    try:
        text = file.read_text(encoding="utf-8")
        rows: Iterable[dict[str, Any]] = (
            csv.DictReader(io.StringIO(text))
            if file.suffix == ".csv"
            else [json.loads(line) for line in text.splitlines() if line.strip()]
        )
        pairs = {str(row.get("file") or row["file_name"]): str(row["label"]) for row in rows}
    except OSError as error:
        raise InputError(f"cannot read labels {file}: {error.strerror}") from error
    except (ValueError, KeyError) as error:
        raise InputError(
            f"labels {file} lack {error}; give a CSV with the columns file and label, or such JSON objects, one a line"
        ) from error
    files = walk(root)
    for what, names in (("a label", set(files) - pairs.keys()), ("a picture", pairs.keys() - set(files))):
        if names:
            raise InputError(f"{min(names)} has no {what.split()[1]} ({len(names)} such); mend {file} or {root}")
    classes, labels = _label([pairs[name] for name in files], None, str(file))
    return Files(root, files, labels.tolist(), classes)


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


def _members(shard: Path) -> Iterable[tuple[str, tuple[int, int], str]]:
    """Name, place and label of every picture of a shard."""
    pictures: dict[str, tuple[str, tuple[int, int]]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                stem, _, kind = member.name.rpartition("/")[2].partition(".")
                stem = f"{member.name.rpartition('/')[0]}/{stem}"
                if member.isfile() and f".{kind.lower()}".endswith(SUFFIXES):
                    pictures[stem] = (member.name, (member.offset_data, member.size))
                elif member.isfile() and kind in ("cls", "json"):
                    content = tar.extractfile(member)
                    text = content.read().decode() if content else ""
                    labels[stem] = text.strip() if kind == "cls" else str(json.loads(text)["label"])
    except (OSError, tarfile.TarError, ValueError, KeyError) as error:
        raise InputError(f"shard {shard} is truncated or damaged ({error}); copy it again") from error
    if max((sum(place) for _, place in pictures.values()), default=0) > shard.stat().st_size:
        raise InputError(f"shard {shard} is truncated; copy it again")
    return [(name, place, labels.get(stem, "")) for stem, (name, place) in pictures.items()]


def _shards(path: Path) -> list[Path]:
    """The tar files of a folder or a pattern, or the one given."""
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if "*" in path.name and path.parent.is_dir():
        return sorted(path.parent.glob(path.name))
    return [path] if path.suffix == ".tar" else []


def _hugging_face(text: str) -> HuggingFace:
    try:
        import datasets
    except ImportError:
        raise InputError("hf: needs the datasets library; pip install 'ditlab[data]'") from None
    name, _, split = text.partition(":")
    try:
        table = (
            datasets.load_from_disk(name)
            if Path(name, "dataset_info.json").exists() or Path(name, "dataset_dict.json").exists()
            else datasets.load_dataset(name)
        )
        if hasattr(table, "keys"):
            table = table[split or "train"]
    except Exception as error:  # the library has many kinds
        raise InputError(f"cannot open the data set {text}: {' '.join(str(error).split())[:200]}") from error
    return HuggingFace(table, name)
