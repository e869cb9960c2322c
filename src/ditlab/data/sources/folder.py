"""A folder of images: one sub-folder for each class, or a flat folder without labels."""

import os
from pathlib import Path
from typing import Self

from PIL import Image

from ditlab.core.errors import InputError
from ditlab.core.spelling import nfc
from ditlab.data.identity import Stamp, file_stamp
from ditlab.data.sources.base import Source, label_column, natural

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2", ".avif")


class Folder(Source):
    """Image files in a folder."""

    has_labels = False

    def __init__(self, root: Path, files: list[str]) -> None:
        """A folder with files whose paths are relative to `root`; `from_text` adds the label column."""
        self.root, self.files = root, files

    @classmethod
    def matches(cls, text: str, labels: str) -> bool:
        return Path(text).is_dir()

    @classmethod
    def from_text(cls, text: str, labels: str) -> Self:
        """Open a folder with one sub-folder for each class, in natural order, or a flat folder.

        Raises:
            InputError: a class folder is empty, or there are images beside the class folders.
        """
        root = Path(text)
        folders = sorted((child for child in root.iterdir() if child.is_dir() and child.name[0] != "."), key=natural)
        visited = _distinct(root, folders)
        flat = sorted((file.name for file in root.iterdir() if file.is_file() and is_image(file.name)), key=natural)
        if folders and flat:
            raise InputError(f"{root / flat[0]} lies beside the class folders; move it into one of them")
        files: list[str] = []
        indices: list[int] = []
        for index, folder in enumerate(folders):
            images = walk(folder, visited)
            if not images:
                raise InputError(f"no images in {folder}; put some there ({', '.join(SUFFIXES)}) or remove it")
            files += [f"{folder.name}/{file}" for file in images]
            indices += [index] * len(images)
        if not folders:
            files, indices = flat, [0] * len(flat)
        source = cls(root, files)
        source.columns = {"label": label_column(indices, [printable(folder.name) for folder in folders])}
        return source

    def name(self, i: int) -> str:
        return printable(self.files[i])

    def raw(self, i: int) -> Image.Image:
        return Image.open(self.root / self.files[i])

    def stamp(self, i: int) -> Stamp:
        return file_stamp(f"{self.root}/{self.files[i]}", nfc(self.files[i]))

    def content(self, i: int) -> bytes:
        return (self.root / self.files[i]).read_bytes()


def _distinct(root: Path, folders: list[Path]) -> set[str]:
    """The real paths of a folder and its class folders, which must differ."""
    by_path: dict[str, Path] = {}
    for folder in (root, *folders):
        other = by_path.setdefault(os.path.realpath(folder), folder)
        if other != folder:
            raise InputError(f"{folder} and {other} are the same folder; remove one of them")
    return set(by_path)


def printable(name: str) -> str:
    """A file name for messages and reports, in which bytes that are not UTF-8 are written as \\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def is_image(name: str) -> bool:
    """Whether a file name is that of an image; hidden files are not images."""
    return name.lower().endswith(SUFFIXES) and name[0] != "."


def walk(root: Path, visited: set[str]) -> list[str]:
    """Image files below a folder, relative to it, in natural order.

    Links are followed, except into folders whose real path is in `visited`; the walked folders are added to it.
    """
    images: list[str] = []
    for path, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(path)
        if real in visited and path != str(root):
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if name[0] != ".")  # file systems list folders in any order
        relative = os.path.relpath(path, root)
        for name in files:
            if is_image(name):
                images.append(name if relative == "." else f"{relative}/{name}")
    images.sort()  # 01 before 1, which are equal in natural order
    return sorted(images, key=natural)
