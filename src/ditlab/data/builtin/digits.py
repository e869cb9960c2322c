"""The bundled handwriting: 1,797 digits, 8x8 in 17 greys (UCI Optical Recognition, as scikit-learn has it)."""

from functools import cache

import torch

from ditlab.core.errors import lookup
from ditlab.data.base import InMemory

HELD_OUT = 360  # a fifth, in the proportions of the classes


def digits() -> InMemory:
    """The 1,437 digits for training."""
    return _split()[0]


def held_out_digits() -> InMemory:
    """The 360 digits that no training sees."""
    return _split()[1]


def named_digits(name: str) -> InMemory:
    """The data set called "digits" or "digits-held-out".

    Raises:
        InputError: another name.
    """
    return lookup({"digits": digits, "digits-held-out": held_out_digits}, name, "data set")()


@cache
def _split() -> tuple[InMemory, InMemory]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]
    from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).reshape(-1, 1, 8, 8).mul(255 / 16).round().byte()
    targets = torch.from_numpy(labels).long()
    parts = train_test_split(range(len(targets)), test_size=HELD_OUT, stratify=labels, random_state=0)
    names = [str(digit) for digit in range(10)]
    train, held_out = (InMemory(images[part], targets[part], names) for part in parts)
    return train, held_out
