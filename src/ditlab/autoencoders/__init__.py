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
from ditlab.core.errors import InputError
from ditlab.core.registry import Registry


def check(name: str, kind: Any) -> None:
    """Check that a class is an autoencoder.

    Raises:
        InputError: it is not.
    """
    if not (isinstance(kind, type) and issubclass(kind, Autoencoder)):
        raise InputError(f'the autoencoder "{name}" is no subclass of ditlab.autoencoders.Autoencoder')
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise InputError(f'the autoencoder "{name}" has no {", ".join(missing)}; {kind.__name__} must define it')


AUTOENCODERS: Registry[type[Autoencoder]] = Registry(
    "autoencoder", {"pixel": Pixel, "kl": KL, "patch": Patch, "absent": Absent}, check
)

__all__ = ["AUTOENCODERS", "KL", "Absent", "Autoencoder", "Latent", "Patch", "Pixel", "create_autoencoder"]


def create_autoencoder(kind: str, **options: Any) -> Autoencoder:
    """Build an autoencoder from its saved `config`.

    Raises:
        InputError: an unknown kind.
    """
    return AUTOENCODERS.find(kind)(**options)
