"""Placeholder for an autoencoder that did not come with the model: latents in and out, no images."""

from torch import Tensor

from ditlab.autoencoders.base import Autoencoder
from ditlab.core.errors import InputError
from ditlab.core.types import Noise


class Absent(Autoencoder):
    """Latents can be sampled and given; images cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"kind": "absent"}

    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        return channels, size

    def encode(self, images: Tensor) -> Tensor:
        raise InputError(
            "this model came without its autoencoder, so images cannot be encoded; load it with autoencoder="
        )

    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        return moments

    def decode(self, x0: Tensor) -> Tensor:
        raise InputError(
            "this model came without its autoencoder; give it (autoencoder=, --autoencoder), "
            'or ask for output_type="latent"'
        )
