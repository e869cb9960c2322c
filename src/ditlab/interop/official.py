"""The official DiT layout and its relative SiT: sizes are read from tensor shapes, keys are ditlab's own.

SiT has DiT's keys and shapes, but its time runs from noise to data and its velocity points to the data. Both are
turned round at this border: time by the clock of the process, the sign in the weights of the head.
"""

from typing import Any

import torch
from torch import Tensor

from ditlab.autoencoders import Absent, Autoencoder, Pixel
from ditlab.backbones import create
from ditlab.backbones.dit import SIZES
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, Linear
from ditlab.errors import InputError
from ditlab.pipeline import Pipeline, fit

SIT_CLOCK = {"clock_rate": -1.0, "clock_start": 1.0}  # its network is fed 1 - t, unscaled
HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")


def is_official(tensors: dict[str, Tensor]) -> bool:
    """Whether these are the keys of an official DiT."""
    return {"x_embedder.proj.weight", "pos_embed", *HEAD} <= tensors.keys()


def from_official(tensors: dict[str, Tensor], source: str, *, sit: bool = False, **overrides: Any) -> Pipeline:
    """A pipeline around official DiT or SiT weights, which are used as they are, without a copy.

    Args:
        tensors: state dict under official keys.
        source: what messages call it.
        sit: these are weights of SiT.
        overrides: arguments of `ditlab.create` that shapes cannot tell (heads=, size=).

    Raises:
        InputError: sizes that must be given, or tensors that do not fit.
    """
    tensors = {key: value.float() for key, value in tensors.items()}  # files in half precision too; no copy otherwise
    settings = read_sizes(tensors) | {key: value for key, value in overrides.items() if value is not None}
    if "heads" not in settings:
        raise InputError(
            f"{source}: depth {settings['depth']} and width {settings['width']} are no published size; "
            "give heads= (--heads), the number of attention heads"
        )
    uniform: dict[str, Any] = {"time": "uniform", "stratified": False}  # both were trained so
    objective = Objective(DDPM(), "eps", learn_variance=settings["learn_variance"], **uniform)
    config = {}
    if sit:
        if settings["learn_variance"]:
            config["note"] = "read from SiT; the second half of its head, which SiT never used, was dropped"
        tensors = tensors | turn_sit_head(tensors, settings)
        settings["learn_variance"] = False
        objective = Objective(Linear(**SIT_CLOCK), "velocity", **uniform)
    with torch.device("meta"):
        net = create(official_name(settings), **settings)
    net.load_state_dict(fit(tensors, net.state_dict(), source), assign=True)
    return Pipeline(net.eval(), objective, autoencoder_of(settings["channels"]), config=config)


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of `ditlab.create` that tensor shapes tell; heads from the size table where it has them."""
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    depth = 1 + max((int(key.split(".")[1]) for key in tensors if key.startswith("blocks.")), default=-1)
    side = round(tensors["pos_embed"].shape[1] ** 0.5) * patch  # a square, unless the caller says otherwise
    modulation = tensors.get("blocks.0.adaLN_modulation.1.weight")
    heads = {(row.depth, row.width): {"heads": row.heads} for row in SIZES.values()}
    return {
        "size": (side, side),
        "channels": channels,
        "classes": len(tensors["y_embedder.embedding_table.weight"]) - 1,
        "learn_variance": len(tensors[HEAD[0]]) == 2 * channels * patch**2,
        "condition": "adaln" if modulation is not None and len(modulation) == 4 * width else "adaln-zero",
        "width": width,
        "depth": depth,
        "patch": patch,
    } | heads.get((depth, width), {})


def official_name(settings: dict[str, Any]) -> str:
    """ "DiT-XL/2" for published sizes, "DiT" for others."""
    sizes = {tuple(row): name for name, row in SIZES.items()}
    name = sizes.get((settings["depth"], settings["width"], settings["heads"]))
    return f"DiT-{name}/{settings['patch']}" if name and settings["patch"] in (2, 4, 8) else "DiT"


def turn_sit_head(tensors: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    """SiT's head without its unused second half of channels, and with the sign of our velocity."""
    patch, channels = settings["patch"], settings["channels"]

    def turn(value: Tensor) -> Tensor:
        rows = value.reshape(patch * patch, -1, *value.shape[1:])  # (p p, C or 2 C, ...), channels fastest
        return -rows[:, :channels].flatten(0, 1)

    return {key: turn(tensors[key]) for key in HEAD}


def autoencoder_of(channels: int) -> Autoencoder:
    """Pixels for grey and RGB; latents of an autoencoder that is not there otherwise."""
    return Pixel() if channels in (1, 3) else Absent()


def to_official(pipe: Pipeline) -> dict[str, Tensor]:
    """The state dict under official keys; SiT's sign is turned back.

    Raises:
        InputError: a model that the official code cannot run.
    """
    config = pipe.net.config
    if not config["name"].startswith("DiT"):
        raise InputError(f"{config['name']} has no official DiT layout; convert to ditlab instead")
    if config.get("condition", "adaln-zero") != "adaln-zero" or config.get("qk_norm"):
        raise InputError("the official code has adaln-zero without qk_norm only; convert to ditlab instead")
    tensors = dict(pipe.net.state_dict())
    process = pipe.objective.process
    if isinstance(process, DDPM) and pipe.objective.target == "eps":
        return tensors
    if process == Linear(**SIT_CLOCK) and pipe.objective.target == "velocity":
        return tensors | {key: -tensors[key] for key in HEAD}
    raise InputError(
        "the official layout is for eps on the ddpm process, or for SiT; this model was trained otherwise, "
        "and nothing but ditlab would sample it rightly"
    )
