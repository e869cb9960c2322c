"""Networks only: (x, timestep, condition) -> tensor. `create("DiT-XL/2")` builds one by its paper's name.

A new family is one file with a `Backbone` in it and one line in `BACKBONES`. Its options are the keyword arguments of
its class; recipes and the command line read their names, types and help from the signature and its docstring.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from ditlab.backbones.base import Backbone
from ditlab.backbones.dit import DiT
from ditlab.backbones.skipdit import SkipDiT
from ditlab.backbones.udit import UDiT
from ditlab.backbones.unet import ADM, LDM
from ditlab.backbones.uvit import UViT
from ditlab.core.errors import InputError, lookup, nearest

BACKBONES: dict[str, type[Backbone]] = {
    "DiT": DiT,
    "U-DiT": UDiT,
    "U-ViT": UViT,
    "Skip-DiT": SkipDiT,
    "ADM": ADM,
    "LDM": LDM,
}

SHAPE = dict.fromkeys(("size", "channels", "classes", "learn_variance"))  # what `create` itself is given

__all__ = ["BACKBONES", "Backbone", "create", "find", "name_of", "names"]


def create(
    name: str,
    *,
    size: int | tuple[int, ...] = 32,
    channels: int = 4,
    classes: int = 1000,
    learn_variance: bool = True,
    **options: Any,
) -> Backbone:
    """Build a network by name with freshly initialized weights.

    Args:
        name: family and size, such as "DiT-XL/2" or "U-DiT-B"; `names()` lists them. The family alone ("DiT"), or a
            class outside the package ("package.module:Class"), needs all sizes as options.
        size: side, (height, width), or (frames, height, width) of the image, video or latent.
        channels: channels of the image, video or latent.
        classes: number of classes; 0 is unconditional. The label of the null class is the class count itself.
        learn_variance: give the output a second half for the learned reverse variance (DDPM only).
        options: keyword arguments of the family's class; for DiT `condition`, `qk_norm`, and `width`, `depth`, `heads`,
            `patch` to override the size table. None means "as the name says".

    Returns:
        The network. Its `config` holds everything needed to create it again.

    Raises:
        InputError: unknown name or option, or sizes that do not fit together.
    """
    kind, sizes = find(name)
    if isinstance(size, int):
        size = (size, size)
    given = {key: value for key, value in options.items() if value is not None}
    known = check_class(kind, name)
    for key in given:
        if key not in known:
            raise InputError(f'{name} has no option "{key}"; {nearest(key, known)}')
    settings = {key: _plain(value) for key, value in (sizes | given).items()}
    missing = [key for key, value in known.items() if value.default is value.empty and key not in settings | SHAPE]
    if missing:
        raise InputError(f'"{name}" names no size; give {", ".join(missing)} too, or choose from: {", ".join(names())}')
    kind.check_rank(size)
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


def check_class(kind: type[Backbone], name: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class that can be created by name.

    Raises:
        InputError: a class that lacks a member or a parameter that every network must have.
    """
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise InputError(f"{name}: the class {kind.__name__} does not define {', '.join(lacking)}; add it")
    known = inspect.signature(kind).parameters
    if missing := [key for key in SHAPE if key not in known]:
        raise InputError(f"{name}: {kind.__name__}() does not take {', '.join(missing)}; add the parameter")
    return known


def find(name: str) -> tuple[type[Backbone], dict[str, Any]]:
    """Class and published sizes of a name; no sizes for a family alone, or for "package.module:Class".

    Raises:
        InputError: an unknown name, or a class that cannot be imported or is no Backbone.
    """
    if ":" in name:
        return _imported(name), {}
    return lookup(_published() | {family: (kind, {}) for family, kind in BACKBONES.items()}, name, "model")


def class_of(name: str) -> type[Backbone]:
    """The class of a name, see `find`."""
    return find(name)[0]


def _imported(name: str) -> type[Backbone]:
    path, _, attribute = name.partition(":")
    try:
        kind = getattr(import_module(path), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f'cannot import model "{name}": {error}; give package.module:Class') from error
    if not (isinstance(kind, type) and issubclass(kind, Backbone)):
        raise InputError(f'"{name}" is no Backbone; give a subclass of ditlab.backbones.Backbone')
    return kind


def name_of(kind: type[Backbone], settings: dict[str, Any]) -> str:
    """The published name of a network with these settings ("DiT-XL/2"), the family ("DiT") if there is none."""
    outside = f"{kind.__module__}:{kind.__qualname__}"
    family = next((family for family, own in BACKBONES.items() if own is kind), outside)
    for variant, sizes in kind.variants().items():
        if all(_plain(settings.get(key)) == _plain(value) for key, value in sizes.items()):
            return f"{family}-{variant}"
    return family


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def names() -> list[str]:
    """All published names."""
    return list(_published())


def _published() -> dict[str, tuple[type[Backbone], dict[str, Any]]]:
    """Class and sizes for each published name: family and variant, separated by a dash."""
    return {
        f"{family}-{variant}": (kind, sizes)
        for family, kind in BACKBONES.items()
        for variant, sizes in kind.variants().items()
    }
