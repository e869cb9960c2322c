"""The autoencoder of pixel-space models: pixels scaled to [-1, 1]."""

from torch import Tensor

from ditlab.autoencoders.base import Autoencoder
from ditlab.core.types import Noise
from ditlab.core.values import network_scale


class Pixel(Autoencoder):
    """Converts pixels 0..255 of images or videos to x0 in [-1, 1], and back; float images are in that scale already."""

    any_values = True

    def __init__(self) -> None:
        super().__init__()
        self.config = {"kind": "pixel"}

    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        return channels, size

    def encode(self, images: Tensor) -> Tensor:
        return network_scale(images)

    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        return moments

    def decode(self, x0: Tensor) -> Tensor:
        return ((x0 + 1) * 127.5).round().clamp(0, 255).byte()

    def decode_scaled(self, x0: Tensor) -> Tensor:
        return x0.float()
