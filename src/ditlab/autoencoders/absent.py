"""A placeholder for the autoencoder of a model that was saved without one."""

from torch import Tensor

from ditlab.autoencoders.base import Autoencoder
from ditlab.core.errors import InputError
from ditlab.core.types import Noise


class Absent(Autoencoder):
    """Keeps latents as they are; encoding and decoding raise an error."""

    any_values = True

    def __init__(self) -> None:
        super().__init__()
        self.config = {"kind": "absent"}

    def latent_shape(self, channels: int, size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        return channels, size

    def encode(self, images: Tensor) -> Tensor:
        raise InputError("this model has no autoencoder, so images cannot be encoded; load it with autoencoder=")

    def latents(self, moments: Tensor, noise: Noise) -> Tensor:
        return moments

    def decode(self, x0: Tensor) -> Tensor:
        raise InputError(
            "this model has no autoencoder, so latents cannot be decoded; load it with autoencoder=, "
            'or use output_type="latent"'
        )

    def decode_scaled(self, x0: Tensor) -> Tensor:
        return self.decode(x0)
