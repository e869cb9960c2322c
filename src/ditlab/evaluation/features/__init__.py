"""Feature networks, in whose features distances are measured. A new one is one file and a line in `FEATURES`."""

from collections.abc import Callable

import torch

from ditlab.core.registry import Registry
from ditlab.evaluation.features import digits, glyphs, motion, own
from ditlab.evaluation.features.base import Extracted, Features
from ditlab.evaluation.features.dinov2 import DinoV2
from ditlab.evaluation.features.i3d import I3D
from ditlab.evaluation.features.inception import Inception

FEATURES: Registry[Callable[[str, torch.device], Features]] = Registry(
    "features",
    {
        "inception": Inception.load,
        "dinov2": DinoV2.load,
        "digits": digits.load,
        "glyphs": glyphs.load,
        "own": own.load,
        "i3d": I3D.load,
        "moving-digits": motion.load,
    },
)

__all__ = ["FEATURES", "Extracted", "Features", "open_features"]


def open_features(name: str, weights: str = "", device: torch.device | None = None) -> Features:
    """Load a feature network by name.

    Args:
        name: a name in `FEATURES`.
        weights: file, folder or hub id of its weights; empty for the default weights.
        device: device of the network (default: the CPU).

    Raises:
        InputError: the name is unknown, or the weights are missing or incomplete.
    """
    return FEATURES.find(name)(weights, device or torch.device("cpu"))
