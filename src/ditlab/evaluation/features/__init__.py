"""Networks in whose features distances are measured. A new one is one file and one line in `FEATURES`."""

from collections.abc import Callable

import torch

from ditlab.core.registry import Registry
from ditlab.evaluation.features import digits, glyphs
from ditlab.evaluation.features.base import Extracted, Features
from ditlab.evaluation.features.dinov2 import DinoV2
from ditlab.evaluation.features.inception import Inception

FEATURES: Registry[Callable[[str, torch.device], Features]] = Registry(
    "features",
    {
        "inception": Inception.load,
        "dinov2": DinoV2.load,
        "digits": digits.load,
        "glyphs": glyphs.load,
    },
)

__all__ = ["FEATURES", "Extracted", "Features", "open_features"]


def open_features(name: str, weights: str = "", device: torch.device | None = None) -> Features:
    """A feature network by name.

    Args:
        name: in `FEATURES`.
        weights: file, folder or hub id of its weights; empty for the default place.
        device: of the network; the CPU if None.

    Raises:
        InputError: an unknown name, or weights that are missing or incomplete.
    """
    return FEATURES.find(name)(weights, device or torch.device("cpu"))
