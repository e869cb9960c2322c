"""The published layouts of Flux's weights: Black Forest Labs', and diffusers'.

Both have one linear layer for a packed token of 2x2 latent positions, channels slowest. The blocks with a single stream
have one layer before attention and MLP and one after both, which ditlab and, before them, diffusers divide. diffusers
also divides the projections to queries, keys and values, and its last modulation is (scale, shift).
"""

import re
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones.inputs import SCALE
from ditlab.backbones.mmdit_layouts import swapped
from ditlab.backbones.published import count_of
from ditlab.core.errors import InputError

NATIVE = 128  # side of the latents of 1024x1024 images
PATCH = 2
LENGTHS = {True: 512, False: 256}  # text tokens of Flux.1 dev, which reads the guidance scale, and of schnell
DIFFUSERS_LENGTH = 512  # text tokens of every model in diffusers' pipeline
MARKS = (
    "img_in.weight",
    "txt_in.weight",
    "time_in.in_layer.weight",
    "vector_in.in_layer.weight",
    "double_blocks.0.img_attn.qkv.weight",
    "single_blocks.0.linear1.weight",
    "final_layer.linear.weight",
)
DIFFUSERS_MARKS = ("x_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight", "norm_out.linear.weight")

OUTER = {  # Black Forest Labs' name -> (ditlab's, diffusers')
    "img_in": ("x_embedder.proj", "x_embedder"),
    "txt_in": ("context_embedder", "context_embedder"),
    "time_in.in_layer": ("t_embedder.mlp.0", "time_text_embed.timestep_embedder.linear_1"),
    "time_in.out_layer": ("t_embedder.mlp.2", "time_text_embed.timestep_embedder.linear_2"),
    "guidance_in.in_layer": ("t_embedder.further.mlp.0", "time_text_embed.guidance_embedder.linear_1"),
    "guidance_in.out_layer": ("t_embedder.further.mlp.2", "time_text_embed.guidance_embedder.linear_2"),
    "vector_in.in_layer": ("y_embedder.mlp.0", "time_text_embed.text_embedder.linear_1"),
    "vector_in.out_layer": ("y_embedder.mlp.2", "time_text_embed.text_embedder.linear_2"),
    "final_layer.linear": ("final_layer.linear", "proj_out"),
    "final_layer.adaLN_modulation.1": ("final_layer.adaLN_modulation.1", "norm_out.linear"),
}
DOUBLE = {  # the same in a block with two streams; queries, keys and values have several names in diffusers
    "img_mod.lin": ("x_block.adaLN_modulation.1", "norm1.linear"),
    "img_attn.qkv": ("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
    "img_attn.norm.query_norm": ("x_block.attn.ln_q", "attn.norm_q"),
    "img_attn.norm.key_norm": ("x_block.attn.ln_k", "attn.norm_k"),
    "img_attn.proj": ("x_block.attn.proj", "attn.to_out.0"),
    "img_mlp.0": ("x_block.mlp.fc1", "ff.net.0.proj"),
    "img_mlp.2": ("x_block.mlp.fc2", "ff.net.2"),
    "txt_mod.lin": ("context_block.adaLN_modulation.1", "norm1_context.linear"),
    "txt_attn.qkv": ("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
    "txt_attn.norm.query_norm": ("context_block.attn.ln_q", "attn.norm_added_q"),
    "txt_attn.norm.key_norm": ("context_block.attn.ln_k", "attn.norm_added_k"),
    "txt_attn.proj": ("context_block.attn.proj", "attn.to_add_out"),
    "txt_mlp.0": ("context_block.mlp.fc1", "ff_context.net.0.proj"),
    "txt_mlp.2": ("context_block.mlp.fc2", "ff_context.net.2"),
}
SINGLE = {  # the same in a block with one stream; the layers around attention and MLP are `FIRST` and `LAST`
    "modulation.lin": ("adaLN_modulation.1", "norm.linear"),
    "norm.query_norm": ("attn.ln_q", "attn.norm_q"),
    "norm.key_norm": ("attn.ln_k", "attn.norm_k"),
    "linear2": ("", "proj_out"),  # of diffusers only
}
FIRST, LAST = "linear1", "linear2"
FIRST_PARTS = ("attn.qkv", "fc1")  # rows of the first layer in ditlab: 3 D and 4 D
LAST_PARTS = ("attn.proj", "fc2")  # columns of the last layer in ditlab: D and 4 D
FIRST_OF_DIFFUSERS = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")  # rows: D, D, D and 4 D
LISTS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}  # -> diffusers' name
BLOCK = re.compile(r"(\w+_blocks)\.(\d+)\.(.+)")
SCALED = re.compile(r".*\.(query|key)_norm")  # norms, whose gain is called scale


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `create` that Black Forest Labs' state dict determines.

    Raises:
        InputError: a network that reads an image beside the noisy one.
    """
    width, packed = tensors["img_in.weight"].shape
    out = len(tensors["final_layer.linear.weight"])
    if packed != out:
        raise InputError(
            f"a Flux with {packed // PATCH**2} input and {out // PATCH**2} output channels, which reads another image "
            "too; give a text-to-image model"
        )
    guided = "guidance_in.in_layer.weight" in tensors
    return {
        "size": (NATIVE, NATIVE),
        "channels": packed // PATCH**2,
        "classes": 0,
        "learn_variance": False,
        "width": width,
        "heads": width // len(tensors["double_blocks.0.img_attn.norm.query_norm.scale"]),
        "depth": count_of(tensors, "double_blocks."),
        "single_depth": count_of(tensors, "single_blocks."),
        "patch": PATCH,
        "text_length": LENGTHS[guided],
        "text_width": tensors["txt_in.weight"].shape[1],
        "pooled_width": tensors["vector_in.in_layer.weight"].shape[1],
        "unit_time": True,
    } | ({"inputs": (SCALE,)} if guided else {})


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Black Forest Labs' keys to ditlab's.

    Raises:
        InputError: an unknown key.
    """
    depth = count_of(tensors, "double_blocks.")
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, _, kind = key.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        block = BLOCK.fullmatch(stem)
        if block is None:
            out[f"{known(OUTER, stem, key)[0]}.{kind}"] = unpacked(stem, value)
            continue
        number = int(block[2]) + (0 if block[1] == "double_blocks" else depth)
        if block[1] == "double_blocks":
            out[f"blocks.{number}.{known(DOUBLE, block[3], key)[0]}.{kind}"] = value
        elif block[3] == FIRST:
            rows = torch.split(value, [3 * len(value) // 7, 4 * len(value) // 7])
            out |= {f"blocks.{number}.{name}.{kind}": part for name, part in zip(FIRST_PARTS, rows, strict=True)}
        elif block[3] == LAST and kind == "weight":
            columns = torch.split(value, [len(value), 4 * len(value)], dim=1)
            parts = zip(LAST_PARTS, columns, strict=True)
            out |= {f"blocks.{number}.{name}.{kind}": part.contiguous() for name, part in parts}
        elif block[3] == LAST:
            out[f"blocks.{number}.{LAST_PARTS[0]}.{kind}"] = value
        else:
            out[f"blocks.{number}.{known(SINGLE, block[3], key)[0]}.{kind}"] = value
    return out


def to_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename ditlab's keys to Black Forest Labs', the inverse of `from_published`."""
    depth = len({key.split(".")[1] for key in tensors if ".x_block." in key})
    outer, double, single = ({names[0]: stem for stem, names in table.items()} for table in (OUTER, DOUBLE, SINGLE))
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, _, kind = key.rpartition(".")
        if not stem.startswith("blocks."):
            out[f"{outer[stem]}.{kind}"] = packed(outer[stem], value)
            continue
        _, number, part = stem.split(".", 2)
        i = int(number)
        names, place = (double, f"double_blocks.{i}") if i < depth else (single, f"single_blocks.{i - depth}")
        block = f"blocks.{i}"
        if part in names:
            out[f"{place}.{names[part]}.{'scale' if SCALED.fullmatch(f'.{names[part]}') else kind}"] = value
        elif part == FIRST_PARTS[0]:
            out[f"{place}.{FIRST}.{kind}"] = torch.cat([tensors[f"{block}.{name}.{kind}"] for name in FIRST_PARTS])
        elif part == LAST_PARTS[0]:
            columns = [tensors[f"{block}.{name}.{kind}"] for name in LAST_PARTS] if kind == "weight" else [value]
            out[f"{place}.{LAST}.{kind}"] = torch.cat(columns, dim=-1)
    return out


def from_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename diffusers' keys to Black Forest Labs'.

    Raises:
        InputError: an unknown key.
    """
    outer = {names[1]: stem for stem, names in OUTER.items()}
    tables = {"transformer_blocks": ("double_blocks", DOUBLE), "single_transformer_blocks": ("single_blocks", SINGLE)}
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, _, kind = key.rpartition(".")
        block = BLOCK.fullmatch(stem)
        if block is None:
            name = f"{known(outer, stem, key)}.{kind}"
            out[name] = swapped(value) if stem == "norm_out.linear" else value
            continue
        place, table = known(tables, block[1], key)
        ours, parts = known(inner(table), block[3], key)
        if block[3] == parts[0]:
            ending = "scale" if SCALED.fullmatch(f".{ours}") else kind
            joined = [tensors[f"{block[1]}.{block[2]}.{part}.{kind}"] for part in parts]
            out[f"{place}.{block[2]}.{ours}.{ending}"] = torch.cat(joined) if len(joined) > 1 else value
    return out


def to_diffusers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Black Forest Labs' keys to diffusers', the inverse of `from_diffusers`."""
    out: dict[str, Tensor] = {}
    for key, value in tensors.items():
        stem, _, kind = key.rpartition(".")
        kind = "weight" if kind == "scale" else kind
        block = BLOCK.fullmatch(stem)
        if block is None:
            name = OUTER[stem][1]
            out[f"{name}.{kind}"] = swapped(value) if name == "norm_out.linear" else value
            continue
        table = DOUBLE if block[1] == "double_blocks" else SINGLE
        parts = next(parts for ours, parts in inner(table).values() if ours == block[3])
        units = len(value) // (len(parts) + (3 if block[3] == FIRST else 0))  # the MLP has four of them
        rows = torch.split(value, [*[units] * (len(parts) - 1), len(value) - units * (len(parts) - 1)])
        place = f"{LISTS[block[1]]}.{block[2]}"
        out |= {f"{place}.{part}.{kind}": part_of.contiguous() for part, part_of in zip(parts, rows, strict=True)}
    return out


def inner(table: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """diffusers' names in a block -> Black Forest Labs' name, and all of diffusers' names that belong to it."""
    names = {ours: parts if isinstance(parts, tuple) else (parts,) for ours, (_, parts) in table.items()}
    if table is SINGLE:
        names[FIRST] = FIRST_OF_DIFFUSERS
    return {part: (ours, parts) for ours, parts in names.items() for part in parts}


def known(table: dict[str, Any], stem: str, key: str) -> Any:
    """Return the entry of a name.

    Raises:
        InputError: an unknown name, with the key it is part of.
    """
    if stem not in table:
        raise InputError(f"{key} is no key of a FluxTransformer2DModel, or of Flux in Black Forest Labs' layout")
    return table[stem]


def unpacked(stem: str, value: Tensor) -> Tensor:
    """Return a tensor of a layer around the blocks in ditlab's layout: a kernel (D, C, p, p), or channels fastest."""
    if stem == "img_in" and value.ndim == 2:
        return torch.unflatten(value, 1, (-1, PATCH, PATCH))
    if stem == "final_layer.linear":
        return torch.unflatten(value, 0, (-1, PATCH, PATCH)).movedim(0, 2).flatten(0, 2)
    return value


def packed(stem: str, value: Tensor) -> Tensor:
    """The inverse of `unpacked`."""
    if stem == "img_in" and value.ndim == 4:
        return value.flatten(1)
    if stem == "final_layer.linear":
        return torch.unflatten(value, 0, (PATCH, PATCH, -1)).movedim(2, 0).flatten(0, 2)
    return value


def diffusers_config(config: dict[str, Any]) -> dict[str, Any]:
    """Convert the ditlab config of a network, with its `axes`, to the config.json of a FluxTransformer2DModel."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": config["width"] // config["heads"],
        "axes_dims_rope": list(config["axes"]),
        "guidance_embeds": SCALE in config.get("inputs", ()),
        "in_channels": PATCH**2 * config["channels"],
        "joint_attention_dim": config["text_width"],
        "num_attention_heads": config["heads"],
        "num_layers": config["depth"],
        "num_single_layers": config["single_depth"],
        "out_channels": None,
        "patch_size": 1,
        "pooled_projection_dim": config["pooled_width"],
    }


def read_diffusers_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `create` that diffusers' config.json has and the tensors do not determine.

    Args:
        config: content of the file; empty if there is only a state dict.
    """
    axes = config.get("axes_dims_rope")
    length = {"text_length": DIFFUSERS_LENGTH} if config else {}
    return length | ({"axes": tuple(int(width) for width in axes)} if axes else {})
