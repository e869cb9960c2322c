"""Images or videos <-> the x0 of the network. A new autoencoder is one file and one line in `AUTOENCODERS`."""

from typing import Any

from ditlab.autoencoders.absent import Absent
from ditlab.autoencoders.base import Autoencoder
from ditlab.autoencoders.kl import KL
from ditlab.autoencoders.latent import Latent
from ditlab.autoencoders.patch import Patch
from ditlab.autoencoders.pixel import Pixel
from ditlab.core.errors import lookup

AUTOENCODERS: dict[str, type[Autoencoder]] = {"pixel": Pixel, "kl": KL, "patch": Patch, "absent": Absent}

__all__ = ["AUTOENCODERS", "KL", "Absent", "Autoencoder", "Latent", "Patch", "Pixel", "create_autoencoder"]


def create_autoencoder(kind: str, **options: Any) -> Autoencoder:
    """Build an autoencoder from its saved `config`."""
    return lookup(AUTOENCODERS, kind, "autoencoder")(**options)
