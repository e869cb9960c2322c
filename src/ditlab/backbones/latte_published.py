"""The published forms of Latte: the official one of class models, and diffusers' of the model that reads text.

Diffusers has a list of blocks within frames and one of blocks that mix frames, no positions, and the other names that
PixArt has there.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ditlab.backbones import pixart_published
from ditlab.backbones.published import count_of
from ditlab.core.errors import InputError

TIME = "temporal_"  # prefix of the list of blocks that mix frames
MARKS = (
    "temporal_transformer_blocks.0.attn1.to_q.weight",
    "transformer_blocks.0.attn2.to_q.weight",
    "adaln_single.linear.weight",
    "caption_projection.linear_1.weight",
)
T2V = pixart_published.XL | {"depth": 56}  # Latte-1: 28 blocks of each list
FRAMES, SIDE = 16, 64  # of the latents of Latte-1, for weights without a config.json
POSITIONS = ("pos_embed", "temp_embed")


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `create` that follow from shapes, but for classes and heads."""
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    side = round(tensors["pos_embed"].shape[1] ** 0.5) * patch
    sizes: dict[str, Any] = {
        "size": (tensors["temp_embed"].shape[1], side, side),
        "channels": channels,
        "learn_variance": len(tensors["final_layer.linear.weight"]) == 2 * channels * patch**2,
        "width": width,
        "depth": count_of(tensors, "blocks."),
        "patch": patch,
    }
    if (text := tensors.get("y_embedder.y_proj.fc1.weight")) is not None:
        sizes |= {"text_length": T2V["text_length"], "text_width": text.shape[1]}
    return sizes


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a network that reads text to those of diffusers.

    Raises:
        InputError: its text is not embedded as published.
    """
    if "y_embedder.y_proj.fc1.weight" not in tensors:
        raise InputError("the published Latte reads states of a text encoder only; convert to ditlab instead")
    lists: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for key, value in tensors.items():
        if key.startswith("blocks."):
            place, part = moved(key, lambda i: i // 2)
            lists[place % 2][part] = value
        elif key not in POSITIONS:
            lists[0][key] = value
    space, time = (pixart_published.renamed(part) for part in lists)
    return space | {f"{TIME}{key}": value for key, value in time.items()}


def moved(key: str, change: Callable[[int], int]) -> tuple[int, str]:
    """Return the index of the block in a key, and the key with this index changed."""
    blocks, number, rest = key.split(".", 2)
    return int(number), f"{blocks}.{change(int(number))}.{rest}"


def from_diffusers(tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert tensors and config.json of a LatteTransformer3DModel; without a config.json, sizes are those of Latte-1.

    Returns:
        Tensors under ditlab's keys, with empty positions; and the arguments of `ditlab.create` that they do not
        determine.

    Raises:
        InputError: an unknown key, or a size whose positions diffusers interpolates.
    """
    frames, side = int(config.get("video_length", FRAMES)), int(config.get("sample_size", SIDE))
    if side >= 2 * pixart_published.UNSTRETCHED:
        raise InputError(
            f"a LatteTransformer3DModel of sample_size {side} has interpolated positions; give one below 128"
        )
    out: dict[str, Tensor] = {}
    space, time = (pixart_published.officially_named(part, "a LatteTransformer3DModel") for part in split(tensors))
    for key, value in space.items():
        out[moved(key, lambda i: 2 * i)[1] if key.startswith("blocks.") else key] = value
    out |= {moved(key, lambda i: 2 * i + 1)[1]: value for key, value in time.items()}
    empty = out["final_layer.scale_shift_table"][None, :0]
    options: dict[str, Any] = {"size": (frames, side, side)}
    if "num_attention_heads" in config:
        options["heads"] = int(config["num_attention_heads"])
    return out | dict.fromkeys(POSITIONS, empty), options


def split(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the blocks within frames with everything else, and the blocks that mix frames, with PixArt's names."""
    time = {key.removeprefix(TIME): value for key, value in tensors.items() if key.startswith(TIME)}
    return {key: value for key, value in tensors.items() if not key.startswith(TIME)}, time


def diffusers_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of diffusers for the ditlab config of a network.

    Raises:
        InputError: diffusers has no such network.
    """
    frames, *sides = config["size"]
    if not config.get("text_length"):
        raise InputError("diffusers' Latte reads a text; convert this model with classes to official instead")
    if sides[0] != sides[1] or config["depth"] % 2:
        raise InputError(
            f"diffusers' Latte has square frames and an even depth, and this model {sides[0]}x{sides[1]} and depth "
            f"{config['depth']}; convert to ditlab instead"
        )
    return {
        "_class_name": "LatteTransformer3DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": config["width"] // config["heads"],
        "caption_channels": config["text_width"],
        "cross_attention_dim": config["width"],
        "in_channels": config["channels"],
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_single",
        "num_attention_heads": config["heads"],
        "num_embeds_ada_norm": 1000,
        "num_layers": config["depth"] // 2,
        "out_channels": config["channels"] * (2 if config["learn_variance"] else 1),
        "patch_size": config["patch"],
        "sample_size": sides[0],
        "video_length": frames,
    }
