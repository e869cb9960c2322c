"""Autoencoders: they convert images or videos to the latents x0 of the network, and back.

To add an autoencoder, write a file with a subclass of `Autoencoder` and a line in `AUTOENCODERS`.
"""

from typing import Any

from ditlab.autoencoders.absent import Absent
from ditlab.autoencoders.base import Autoencoder
from ditlab.autoencoders.kl import KL
from ditlab.autoencoders.latent import Latent
from ditlab.autoencoders.patch import Patch
from ditlab.autoencoders.pixel import Pixel
from ditlab.core.registry import Registry

AUTOENCODERS: Registry[type[Autoencoder]] = Registry(
    "autoencoder", {"pixel": Pixel, "kl": KL, "patch": Patch, "absent": Absent}, base=Autoencoder
)

__all__ = ["AUTOENCODERS", "KL", "Absent", "Autoencoder", "Latent", "Patch", "Pixel", "create_autoencoder"]


def create_autoencoder(kind: str, **options: Any) -> Autoencoder:
    """Build an autoencoder from its saved `config`.

    Raises:
        InputError: an unknown kind.
    """
    return AUTOENCODERS.find(kind)(**options)
