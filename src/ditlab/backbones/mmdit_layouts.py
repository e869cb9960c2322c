"""The published layouts of MM-DiT's weights: Stability's, whose names are ditlab's, and diffusers'.

Modulations with two parts are (shift, scale) at Stability and (scale, shift) in diffusers; those with six or nine parts
agree. diffusers has separate projections to queries, keys and values.
"""

import re
from typing import Any

import torch
from torch import Tensor

from ditlab.core.errors import InputError

PREFIX = "model.diffusion_model."  # of the keys in a released single file
NATIVE = 128  # side of the latents of 1024x1024 images
HEAD = 64  # channels of an attention head in the released models, whose number of heads is their depth

OUTER = {  # Stability's name -> diffusers' name
    "x_embedder.proj": "pos_embed.proj",
    "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
    "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    "context_embedder": "context_embedder",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
    "final_layer.linear": "proj_out",
}
IN_BLOCK = {  # the same in a block
    "x_block.attn.ln_q": "attn.norm_q",
    "x_block.attn.ln_k": "attn.norm_k",
    "x_block.attn.proj": "attn.to_out.0",
    "x_block.attn2.ln_q": "attn2.norm_q",
    "x_block.attn2.ln_k": "attn2.norm_k",
    "x_block.attn2.proj": "attn2.to_out.0",
    "x_block.mlp.fc1": "ff.net.0.proj",
    "x_block.mlp.fc2": "ff.net.2",
    "x_block.adaLN_modulation.1": "norm1.linear",
    "context_block.attn.ln_q": "attn.norm_added_q",
    "context_block.attn.ln_k": "attn.norm_added_k",
    "context_block.attn.proj": "attn.to_add_out",
    "context_block.mlp.fc1": "ff_context.net.0.proj",
    "context_block.mlp.fc2": "ff_context.net.2",
    "context_block.adaLN_modulation.1": "norm1_context.linear",
}
STACKED = {  # the three layers of diffusers that are one at Stability
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
DIFFUSERS_LENGTH = 333  # tokens: 77 of the two CLIPs, and 256 of T5
TABLE = ("pos_embed", "pos_embed.pos_embed")
BLOCK = re.compile(r"(joint_blocks|transformer_blocks)\.(\d+)\.(.+)\.(weight|bias)")


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `create` that Stability's state dict determines.

    The number of heads is known from the gains of the queries, or if width and depth are in the released proportion.
    """
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    depth = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("joint_blocks."))
    side = round(tensors["pos_embed"].shape[1] ** 0.5)
    gain = tensors.get("joint_blocks.0.x_block.attn.ln_k.weight")
    dual = [f"joint_blocks.{i}.x_block.attn2.qkv.weight" in tensors for i in range(depth)]
    if dual != sorted(dual, reverse=True):
        raise InputError("only the first blocks of an MMDiT may have a second attention; this file has it elsewhere")
    head = HEAD if gain is None else len(gain)
    pooled = tensors.get("y_embedder.mlp.0.weight")
    sizes = {
        "size": (min(NATIVE, side * patch),) * 2,
        "channels": channels,
        "classes": 0,
        "learn_variance": False,
        "width": width,
        "depth": depth,
        "patch": patch,
        "qk_norm": gain is not None,
        "dual_blocks": sum(dual),
        "position_side": side,
        "text_length": 154,
        "text_width": tensors["context_embedder.weight"].shape[1],
        "pooled_width": 0 if pooled is None else pooled.shape[1],
        "text_block": False,
    }
    return sizes | ({"heads": width // head} if gain is not None or width == HEAD * depth else {})


def from_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' keys to Stability's.

    Raises:
        InputError: an unknown key, or a missing one.
    """
    outer = {theirs: ours for ours, theirs in OUTER.items()}
    inner = {theirs: ours for ours, theirs in IN_BLOCK.items()}
    stacked = {part: (ours, parts) for ours, parts in STACKED.items() for part in parts}
    last = last_block(tensors, "transformer_blocks")
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, _, kind = key.rpartition(".")
        block = BLOCK.fullmatch(key)
        if key == TABLE[1]:
            out[TABLE[0]] = value
        elif stem in outer:
            name = f"{outer[stem]}.{kind}"
            out[name] = swapped(value) if name.startswith("final_layer.adaLN") else value
        elif block is not None and block[3] in inner:
            name = f"joint_blocks.{block[2]}.{inner[block[3]]}.{kind}"
            out[name] = swapped(value) if is_last_text_modulation(name, last) else value
        elif block is not None and block[3] in stacked:
            ours, parts = stacked[block[3]]
            if block[3] == parts[0]:
                names = [f"transformer_blocks.{block[2]}.{part}.{kind}" for part in parts]
                out[f"joint_blocks.{block[2]}.{ours}.{kind}"] = torch.cat([tensors[name] for name in names])
        else:
            raise InputError(f"{key} is no key of an SD3Transformer2DModel; give one")
    return out


def to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Stability's keys to diffusers', the inverse of `from_diffusers`."""
    last = last_block({key.removeprefix(PREFIX): value for key, value in tensors.items()}, "joint_blocks")
    out: dict[str, Tensor] = {}
    for name, value in tensors.items():
        key = name.removeprefix(PREFIX)
        stem, _, kind = key.rpartition(".")
        block = BLOCK.fullmatch(key)
        if key == TABLE[0]:
            out[TABLE[1]] = value
        elif block is None:
            out[f"{OUTER[stem]}.{kind}"] = swapped(value) if key.startswith("final_layer.adaLN") else value
        elif block[3] in IN_BLOCK:
            theirs = f"transformer_blocks.{block[2]}.{IN_BLOCK[block[3]]}.{kind}"
            out[theirs] = swapped(value) if is_last_text_modulation(key, last) else value
        else:
            parts = zip(STACKED[block[3]], value.chunk(3), strict=True)
            out |= {f"transformer_blocks.{block[2]}.{part}.{kind}": rows.contiguous() for part, rows in parts}
    return out


def last_block(tensors: dict[str, Tensor], stem: str) -> int:
    """Return the largest index of a block, whose keys begin with `stem`."""
    return max(int(key.split(".")[1]) for key in tensors if key.startswith(f"{stem}."))


def is_last_text_modulation(key: str, last: int) -> bool:
    """Whether this is the modulation of the text in the last block, which has two parts."""
    return key.startswith(f"joint_blocks.{last}.context_block.adaLN_modulation.")


def swapped(value: Tensor) -> Tensor:
    """Exchange the halves of the rows, shift and scale."""
    return torch.cat(value.chunk(2)[::-1])


def diffusers_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the ditlab config of a network to the config.json of diffusers' SD3Transformer2DModel."""
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": config["width"] // config["heads"],
        "caption_projection_dim": config["width"],
        "dual_attention_layers": list(range(config.get("dual_blocks", 0))),
        "in_channels": config["channels"],
        "joint_attention_dim": config["text_width"],
        "num_attention_heads": config["heads"],
        "num_layers": config["depth"],
        "out_channels": config["channels"],
        "patch_size": config["patch"],
        "pooled_projection_dim": config["pooled_width"],
        "pos_embed_max_size": config["position_side"],
        "qk_norm": "rms_norm" if config.get("qk_norm") else None,
        "sample_size": max(config["size"]),
    }


def read_diffusers_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `create` that diffusers' config.json has and the tensors do not determine.

    Args:
        config: content of the file; empty if there is only a state dict.

    Raises:
        InputError: a setting that the released models do not have.
    """
    if not config:
        return {}
    if config.get("qk_norm") not in (None, "rms_norm"):
        raise InputError(
            f"qk_norm {config['qk_norm']} of an SD3Transformer2DModel; only rms_norm and none are supported"
        )
    side = int(config["sample_size"])
    return {"size": (side, side), "heads": int(config["num_attention_heads"]), "text_length": DIFFUSERS_LENGTH}
