"""A folder of pictures: one sub-folder for each class, or none for unconditional training; all of one size."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ditlab.data.base import Dataset
from ditlab.errors import InputError
from ditlab.types import Batch

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


class Folder(Dataset):
    """Pictures decoded when they are asked for; grey if all are grey, else RGB."""

    def __init__(self, files: list[Path], labels: Tensor, classes: list[str]) -> None:
        self.files, self.labels, self.classes = files, labels, classes
        self.pool = ThreadPoolExecutor()  # decoding lets go of the interpreter lock
        facts = list(self.pool.map(_facts, files))
        size, _ = facts[0]
        for file, (other, _) in zip(files, facts, strict=True):
            if other != size:
                raise InputError(
                    f"{file} has {other[0]}x{other[1]} pixels (height x width) but {files[0]} has "
                    f"{size[0]}x{size[1]}; make all pictures equally large"
                )
        self.size = size
        self.channels = 1 if all(grey for _, grey in facts) else 3

    def fetch(self, indices: Tensor) -> Batch:
        images = self.pool.map(self._decode, [self.files[i] for i in indices.tolist()])
        return Batch(torch.stack(list(images)), self.labels[indices])

    def _decode(self, file: Path) -> Tensor:
        with _open(file) as image:
            pixels = np.array(image.convert("L" if self.channels == 1 else "RGB"))
        return torch.from_numpy(pixels).reshape(*self.size, self.channels).permute(2, 0, 1)


def folder(path: Path) -> Folder:
    """Open a folder; classes are its sub-folders in alphabetical order.

    Raises:
        InputError: no pictures, a broken one, or pictures of different sizes.
    """
    homes = sorted((child for child in path.iterdir() if child.is_dir() and child.name[0] != "."), key=natural)
    stray = pictures_in(path)
    if homes and stray:
        raise InputError(f"{stray[0]} lies beside the class folders; move it into one of them")
    files: list[Path] = []
    labels: list[int] = []
    for label, home in enumerate(homes or [path]):
        found = pictures_in(home)
        if not found:
            raise InputError(f"no pictures in {home}; put some there ({', '.join(sorted(SUFFIXES))}) or remove it")
        files += found
        labels += [label] * len(found)
    return Folder(files, torch.tensor(labels), [home.name for home in homes])


def pictures_in(home: Path) -> list[Path]:
    """Picture files of a folder, in natural order; hidden ones are none."""
    return sorted((f for f in home.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != "."), key=natural)


def natural(path: Path) -> list[tuple[int, str]]:
    """Sort key with numbers by value: 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _open(file: Path) -> Image.Image:
    """The picture upright; transparent parts over white."""
    try:
        image = ImageOps.exif_transpose(Image.open(file))
        if image.mode not in MODES:
            raise InputError(f"picture {file} has mode {image.mode}; convert it to 8 bits, grey or RGB")
        if image.has_transparency_data:
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image.load()
    except (OSError, SyntaxError) as error:
        raise InputError(f"cannot read picture {file}: {error}; repair or remove it") from error
    return image


def _facts(file: Path) -> tuple[tuple[int, int], bool]:
    with _open(file) as image:
        return (image.height, image.width), image.mode in ("1", "L")
