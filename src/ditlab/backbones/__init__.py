"""Networks only: (x, t, y) -> tensor. `create("DiT-XL/2")` builds one by its paper's name.

A new family is one file with a `Backbone` in it and one line in `BACKBONES`.
"""

import inspect
from typing import Any

from ditlab.backbones.base import Backbone
from ditlab.backbones.dit import DiT
from ditlab.errors import InputError, nearest

BACKBONES: dict[str, type[Backbone]] = {
    "DiT": DiT,
}

SHAPE = dict.fromkeys(("size", "channels", "classes", "learn_variance"))  # what `create` itself is given

__all__ = ["BACKBONES", "Backbone", "create", "names"]


def create(
    name: str,
    *,
    size: int | tuple[int, int] = 32,
    channels: int = 4,
    classes: int = 1000,
    learn_variance: bool = True,
    **options: Any,
) -> Backbone:
    """Build a network by name with freshly initialised weights.

    Args:
        name: family and size, such as "DiT-XL/2"; `names()` lists them. The family alone needs all sizes as options.
        size: side, or (height, width), of the latent or picture.
        channels: channels of the latent or picture.
        classes: number of classes; 0 is unconditional. The null label is the class count itself.
        learn_variance: give the output a second half for the learned reverse variance (DDPM only).
        options: what the family offers: for DiT `condition`, `qk_norm`, and `width`, `depth`, `heads`, `patch` to
            override the size table. None means "as the name says".

    Returns:
        The network. Its `config` holds everything needed to create it again.

    Raises:
        InputError: unknown name or option, or sizes that do not fit together.
    """
    family, _, variant = name.partition("-")
    if family not in BACKBONES or (variant and variant not in BACKBONES[family].variants()):
        raise InputError(f'unknown model "{name}"; {nearest(name, names())}')
    kind = BACKBONES[family]
    if isinstance(size, int):
        size = (size, size)
    given = {key: value for key, value in options.items() if value is not None}
    known = inspect.signature(kind).parameters
    for key in given:
        if key not in known:
            raise InputError(f'{name} has no option "{key}"; {nearest(key, known)}')
    settings = kind.variants().get(variant, {}) | given
    missing = [key for key, value in known.items() if value.default is value.empty and key not in settings | SHAPE]
    if missing:
        raise InputError(f'"{name}" names no size; give {", ".join(missing)} too, or choose from: {", ".join(names())}')
    net = kind(size=size, channels=channels, classes=classes, learn_variance=learn_variance, **settings)
    net.config = {
        "name": name,
        "size": list(size),
        "channels": channels,
        "classes": classes,
        "learn_variance": learn_variance,
        **settings,
    }
    return net


def names() -> list[str]:
    """All published names."""
    return [f"{family}-{variant}" for family, kind in BACKBONES.items() for variant in kind.variants()]
