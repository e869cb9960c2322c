"""The published forms of PixArt.

Diffusers' layout has other names, separate q, k and v, no positions and no null caption.
"""

from math import asin
from typing import Any

import torch
from torch import Tensor

from ditlab.core.errors import InputError

# ditlab (and official) name -> diffusers name; {i} is the index of the block.
NAMES = {
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
    "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
    "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
    "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    "t_block.1": "adaln_single.linear",
    "y_embedder.y_proj.fc1": "caption_projection.linear_1",
    "y_embedder.y_proj.fc2": "caption_projection.linear_2",
    "blocks.{i}": "transformer_blocks.{i}",
    "blocks.{i}.attn.proj": "transformer_blocks.{i}.attn1.to_out.0",
    "blocks.{i}.cross_attn.q_linear": "transformer_blocks.{i}.attn2.to_q",
    "blocks.{i}.cross_attn.proj": "transformer_blocks.{i}.attn2.to_out.0",
    "blocks.{i}.mlp.fc1": "transformer_blocks.{i}.ff.net.0.proj",
    "blocks.{i}.mlp.fc2": "transformer_blocks.{i}.ff.net.2",
    "final_layer": "",
    "final_layer.linear": "proj_out",
}
FUSED = {  # name of a fused layer -> diffusers' names of its parts
    "blocks.{i}.attn.qkv": [f"transformer_blocks.{{i}}.attn1.to_{part}" for part in "qkv"],
    "blocks.{i}.cross_attn.kv_linear": [f"transformer_blocks.{{i}}.attn2.to_{part}" for part in "kv"],
}
LEFT_OUT = ("pos_embed", "y_embedder.y_embedding")  # diffusers computes positions, and encodes the empty caption
XL = {"depth": 28, "width": 1152, "heads": 16, "patch": 2, "text_length": 120, "text_width": 4096}  # with T5-XXL
STRIDE = 8  # of Stable Diffusion's autoencoder, which the published models use
UNSTRETCHED = 64  # diffusers' default: the largest sample size whose positions have the distance 1


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `create` that can be derived from an official state dict."""
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    null = tensors.get("y_embedder.y_embedding")
    sizes: dict[str, Any] = {
        "channels": channels,
        "classes": 0,
        "learn_variance": len(tensors["final_layer.linear.weight"]) == 2 * channels * patch**2,
        "width": width,
        "depth": depth,
        "patch": patch,
        "text_length": XL["text_length"] if null is None else len(null),
        "text_width": tensors["y_embedder.y_proj.fc1.weight"].shape[1],
        "resolution": STRIDE if "csize_embedder.mlp.0.weight" in tensors else 0,
        "null_caption": null is not None,
    }
    positions = tensors.get("pos_embed", torch.empty(0, 0))
    side = round(positions.shape[1] ** 0.5)  # assumes a square; callers can override the size
    if side and side**2 == positions.shape[1]:
        sizes |= {"size": (side * patch, side * patch), "position_grid": side}
        if side > 1:  # the second token is at column 1 / interpolation, and its first value is the sine
            sizes["interpolation"] = round(1 / asin(float(positions[0, 1, 0])), 3)
    if (depth, width) == (XL["depth"], XL["width"]):
        sizes["heads"] = XL["heads"]
    return sizes


def pattern_of(stem: str, blocks: str) -> tuple[str, str]:
    """Return a key without its last part as a pattern with {i}, and the index of its block."""
    if not stem.startswith(f"{blocks}."):
        return stem, ""
    number = stem.split(".")[1]
    return f"{blocks}.{{i}}{stem.removeprefix(f'{blocks}.{number}')}", number


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename official keys to diffusers' keys."""
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key in LEFT_OUT:
            continue
        stem, _, kind = key.rpartition(".")
        pattern, number = pattern_of(stem, "blocks")
        if pattern in FUSED:
            names = FUSED[pattern]
            parts = zip(names, value.chunk(len(names)), strict=True)
            out |= {f"{name.replace('{i}', number)}.{kind}": part.contiguous() for name, part in parts}
        else:
            out[f"{NAMES[pattern].replace('{i}', number)}.{kind}".lstrip(".")] = value
    return out


def officially_named(tensors: dict[str, Tensor], model: str = "a PixArtTransformer2DModel") -> dict[str, Tensor]:
    """Rename the keys of a `model` of diffusers to official keys, and join the parts of fused layers.

    Raises:
        InputError: an unknown key.
    """
    official = {name: ours for ours, name in NAMES.items()}
    first = {names[0]: (ours, names) for ours, names in FUSED.items()}
    parts = {name for names in FUSED.values() for name in names}
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, _, kind = key.rpartition(".")
        pattern, number = pattern_of(stem, "transformer_blocks")
        if pattern in first:
            ours, names = first[pattern]
            joined = [tensors[f"{name.replace('{i}', number)}.{kind}"] for name in names]
            out[f"{ours.replace('{i}', number)}.{kind}"] = torch.cat(joined)
        elif pattern in official:
            out[f"{official[pattern].replace('{i}', number)}.{kind}"] = value
        elif pattern not in parts:
            raise InputError(f"{key} is no key of {model}; give one")
    return out


def from_diffusers(tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert tensors and config.json of a PixArtTransformer2DModel.

    Returns:
        Tensors under official keys, without positions; and the arguments of `ditlab.create` that they do not determine.
    """
    side, patch = int(config["sample_size"]), int(config["patch_size"])
    scale = config.get("interpolation_scale")
    options = {
        "size": (side, side),
        "heads": int(config["num_attention_heads"]),
        "position_grid": side // patch,
        "interpolation": float(max(side // UNSTRETCHED, 1) if scale is None else scale),
    }
    return officially_named(tensors), options


def to_diffusers(tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert a state dict and the ditlab config of its network to a PixArtTransformer2DModel and its config.json.

    Raises:
        InputError: diffusers has no such positions.
    """
    patch, width, grid = config["patch"], config["width"], [side // config["patch"] for side in config["size"]]
    base = config.get("position_grid") or grid[0]
    if not config.get("position_grid") and grid[0] != grid[1]:
        raise InputError(
            f"size {config['size'][0]}x{config['size'][1]} is not square, and diffusers stretches the positions of "
            "other sizes; convert to ditlab or official instead"
        )
    return renamed(tensors), {
        "_class_name": "PixArtTransformer2DModel",
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "attention_head_dim": width // config["heads"],
        "caption_channels": config["text_width"],
        "cross_attention_dim": width,
        "in_channels": config["channels"],
        "interpolation_scale": config.get("interpolation", 1.0),
        "norm_elementwise_affine": False,
        "norm_eps": 1e-6,
        "norm_type": "ada_norm_single",
        "num_attention_heads": config["heads"],
        "num_embeds_ada_norm": 1000,
        "num_layers": config["depth"],
        "out_channels": config["channels"] * (2 if config["learn_variance"] else 1),
        "patch_size": patch,
        "sample_size": base * patch,
        "use_additional_conditions": bool(config.get("resolution")),
    }
