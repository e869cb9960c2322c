"""Handwritten digits: 1,797 images of 8x8 pixels in 17 gray levels (UCI Optical Recognition, from scikit-learn)."""

from functools import cache

import torch

from ditlab.core.errors import lookup
from ditlab.data.base import InMemory

HELD_OUT = 360  # a fifth of the images, stratified by class
HELD_OUT_NAME = "digits-held-out"


def digits() -> InMemory:
    """The 1,437 digits for training."""
    return _split()[0]


def held_out_digits() -> InMemory:
    """The 360 digits that are never used in training."""
    return _split()[1]


def open_digits(name: str) -> InMemory:
    """Open the data set "digits" or "digits-held-out".

    Raises:
        InputError: `name` is another name.
    """
    return lookup({"digits": digits, HELD_OUT_NAME: held_out_digits}, name, "data set")()


@cache
def _split() -> tuple[InMemory, InMemory]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8).mul(255 / 16).round().byte()
    targets = torch.from_numpy(labels).long()
    train, held_out = train_test_split(range(len(targets)), test_size=HELD_OUT, stratify=labels, random_state=0)
    names = [str(digit) for digit in range(10)]
    return (
        InMemory(images[train], targets[train], names, features="digits", held_out_name=HELD_OUT_NAME),
        InMemory(images[held_out], targets[held_out], names, features="digits"),
    )
