"""A folder of pictures: one sub-folder for each class, or none for unconditional training; all of one size."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ditlab.data.base import Dataset
from ditlab.errors import InputError
from ditlab.types import Batch

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
    homes = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
    files: list[Path] = []
    labels: list[int] = []
    for label, home in enumerate(homes or [path]):
        found = sorted(file for file in home.iterdir() if file.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"no pictures in {home}; put some there ({', '.join(sorted(SUFFIXES))}) or remove it")
        files += found
        labels += [label] * len(found)
    return Folder(files, torch.tensor(labels), [home.name for home in homes])


def _open(file: Path) -> Image.Image:
    try:
        image = Image.open(file)
        image.load()
    except OSError as error:
        raise InputError(f"cannot read picture {file}: {error}; repair or remove it") from error
    return image


def _facts(file: Path) -> tuple[tuple[int, int], bool]:
    try:
        with Image.open(file) as image:
            return (image.height, image.width), image.mode in ("1", "L")
    except OSError as error:
        raise InputError(f"cannot read picture {file}: {error}; repair or remove it") from error
