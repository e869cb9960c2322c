"""The autoencoder of pixel-space models: pixels scaled to [-1, 1]."""

from torch import Tensor

from ditlab.autoencoders.base import Autoencoder
from ditlab.core.types import Noise


class Pixel(Autoencoder):
    """Converts pixels 0..255 of images or videos to x0 in [-1, 1], and back."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"kind": "pixel"}

    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        return channels, size

    def encode(self, images: Tensor) -> Tensor:
        return images.float() / 127.5 - 1

    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        return moments

    def decode(self, x0: Tensor) -> Tensor:
        return ((x0 + 1) * 127.5).round().clamp(0, 255).byte()
