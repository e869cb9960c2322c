"""Features of images in a latent cache, beside the latents: those of a frozen encoder, for training aids."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

FEATURES = "features"  # name in `Batch.extra`
CACHED = "cache"  # value of settings that ask for the features of the cache


@dataclass(frozen=True)
class ImageFeatures:
    """What computes the features of images that are encoded."""

    about: dict[str, Any]
    """What the description of the cache holds: `encoder` (a hash), `source`, `width` (E) and `side` (s)."""
    compute: Callable[[Tensor], Tensor]
    """Features (B, E, s, s) of displayed images, uint8 (B, 1 or 3, H, W)."""
