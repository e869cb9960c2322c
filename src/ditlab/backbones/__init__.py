"""Networks: functions (x, timestep, condition) -> tensor. `create("DiT-XL/2")` builds one by its published name.

To add a family, write a file with a subclass of `Backbone` and a line in `BACKBONES`. The options of a family are the
keyword arguments of its class; recipes and the command line use the names, types and help texts of its signature and
docstring.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from ditlab.backbones.base import Backbone
from ditlab.backbones.clip_hourglass import ClipHourglass
from ditlab.backbones.deep_fusion import DeepFusion
from ditlab.backbones.dic import DiC
from ditlab.backbones.dimsum import DiMSUM
from ditlab.backbones.dit import DiT
from ditlab.backbones.dydit import DyDiT
from ditlab.backbones.fit import FiT, FiTv2
from ditlab.backbones.flux import Flux
from ditlab.backbones.hourglass import Hourglass
from ditlab.backbones.inputs import add_inputs
from ditlab.backbones.latte import Latte
from ditlab.backbones.lightningdit import LightningDiT
from ditlab.backbones.mmdit import MMDiT
from ditlab.backbones.pde_transformer import PDETransformer
from ditlab.backbones.pixart import PixArt
from ditlab.backbones.skipdit import SkipDiT
from ditlab.backbones.stdit3 import STDiT3
from ditlab.backbones.udit import UDiT
from ditlab.backbones.unet import ADM, LDM
from ditlab.backbones.uvit import UViT
from ditlab.backbones.videodit import VideoDiT
from ditlab.core.errors import InputError, lookup, nearest
from ditlab.core.registry import Registry, is_reference, load_entry_points

SHAPE = dict.fromkeys(("size", "channels", "classes", "learn_variance"))  # arguments that `create` passes to any family


def check_parameters(name: str, kind: type[Backbone]) -> None:
    """Check that a class takes the arguments that `create` passes to any family.

    Raises:
        InputError: it lacks a parameter that every network must have.
    """
    known = inspect.signature(kind).parameters
    if missing := [key for key in SHAPE if key not in known]:
        raise InputError(f'the model "{name}" does not take {", ".join(missing)}; add the parameter')


BACKBONES: Registry[type[Backbone]] = Registry(
    "model",
    {
        "DiT": DiT,
        "U-DiT": UDiT,
        "U-ViT": UViT,
        "Skip-DiT": SkipDiT,
        "DyDiT": DyDiT,
        "LightningDiT": LightningDiT,
        "DiMSUM": DiMSUM,
        "FiT": FiT,
        "FiTv2": FiTv2,
        "DiC": DiC,
        "PDE-Transformer": PDETransformer,
        "ADM": ADM,
        "LDM": LDM,
        "Hourglass": Hourglass,
        "MMDiT": MMDiT,
        "Flux": Flux,
        "PixArt": PixArt,
        "DeepFusion": DeepFusion,
        "Latte": Latte,
        "STDiT3": STDiT3,
        "VideoDiT": VideoDiT,
        "ClipHourglass": ClipHourglass,
    },
    check_parameters,
    base=Backbone,
)

__all__ = ["BACKBONES", "Backbone", "create", "find", "name_of", "names"]


def create(
    name: str,
    *,
    size: int | tuple[int, ...] | None = None,
    channels: int | None = None,
    classes: int | None = None,
    learn_variance: bool | None = None,
    inputs: Sequence[str] | None = None,
    **options: Any,
) -> Backbone:
    """Build a network by name with freshly initialized weights.

    Shape and classes that are not given are those of `Backbone.defaults`: 32, 4 channels and 1000 classes, or 128, 16
    channels and text for Stable Diffusion 3.

    Args:
        name: family and size, such as "DiT-XL/2" or "U-DiT-B"; `names()` lists them. The family alone ("DiT"), or a
            class outside the package ("package.module:Class"), needs all sizes as options.
        size: (height, width) of the image or latent, (frames, height, width) of the video, or the side of a square.
        channels: channels of the image, video or latent.
        classes: number of classes; 0 is unconditional. The label of the null class is the class count.
        learn_variance: double the output channels; the second half is the learned reverse variance (DDPM only).
        inputs: further inputs beside the timestep, see `ditlab.backbones.inputs`; None is those of the named size.
        options: keyword arguments of the family's class, such as `condition` and `qk_norm` for DiT; `width`, `depth`,
            `heads` and `patch` override the size table. None is the value of the named size.

    Returns:
        The network. Its `config` has the arguments of `create` that build it again.

    Raises:
        InputError: unknown name or option, or sizes that do not fit together.
    """
    kind, sizes = find(name)
    own = sizes.get("inputs", ())
    sizes = {key: value for key, value in sizes.items() if key != "inputs"}
    given = {"size": size, "channels": channels, "classes": classes, "learn_variance": learn_variance}
    shape: dict[str, Any] = {**kind.defaults, **{key: value for key, value in given.items() if value is not None}}
    if isinstance(shape["size"], int):
        shape["size"] = (shape["size"], shape["size"])
    options = {key: value for key, value in options.items() if value is not None}
    BACKBONES.check_part(name, kind)
    known = inspect.signature(kind).parameters
    for key in options:
        if key not in known:
            raise InputError(f'{name} has no option "{key}"; {nearest(key, known)}')
    settings = {key: _plain(value) for key, value in (sizes | options).items()}
    missing = [key for key, value in known.items() if value.default is value.empty and key not in settings | SHAPE]
    if missing:
        raise InputError(
            f'"{name}" is a family without a size; give {", ".join(missing)} too, or choose from: {", ".join(names())}'
        )
    kind.check_rank(shape["size"])
    net = kind(**shape, **settings)
    net.config = {"name": name, **shape, "size": list(shape["size"]), **settings}
    inputs = own if inputs is None else inputs
    if inputs:
        add_inputs(net, inputs)
    if inputs or own:
        net.config["inputs"] = list(inputs)
    return net


def find(name: str) -> tuple[type[Backbone], dict[str, Any]]:
    """Return the class of a name, and the constructor arguments of its published size.

    A family alone ("DiT") and "package.module:Class" have no published size.

    Raises:
        InputError: an unknown name, or a class that cannot be imported or is no `Backbone`.
    """
    if is_reference(name):
        return BACKBONES.find(name), {}
    if name not in BACKBONES and name not in _published():
        load_entry_points()
    return lookup(_published() | {family: (kind, {}) for family, kind in BACKBONES.items()}, name, "model")


def class_of(name: str) -> type[Backbone]:
    """Return the class of a name, see `find`."""
    return find(name)[0]


def name_of(kind: type[Backbone], settings: dict[str, Any]) -> str:
    """Return the published name of a network with these settings ("DiT-XL/2"), or the family ("DiT") if it has none."""
    reference = f"{kind.__module__}:{kind.__qualname__}"
    family = next((family for family, registered in BACKBONES.items() if registered is kind), reference)
    for variant, sizes in kind.variants().items():
        if all(_plain(settings.get(key)) == _plain(value) for key, value in sizes.items()):
            return f"{family}-{variant}"
    return family


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def names() -> list[str]:
    """Return all published names."""
    return list(_published())


def _published() -> dict[str, tuple[type[Backbone], dict[str, Any]]]:
    """Map published names ("DiT-XL/2": family, dash, variant) to class and constructor arguments."""
    return {
        f"{family}-{variant}": (kind, sizes)
        for family, kind in BACKBONES.items()
        for variant, sizes in kind.variants().items()
    }
