"""Read and write published state dicts of U-DiT."""

import re
from typing import Any

from torch import Tensor

from ditlab.core.errors import InputError

# Parts of keys: (published, ditlab). The indices of blocks are converted separately.
PUBLISHED = (
    ("x_embedder.proj.", "x_embedder."),
    ("t_embedder_1.", "conditions.0.t_embedder."),
    ("t_embedder_2.", "conditions.1.t_embedder."),
    ("t_embedder_3.", "conditions.2.t_embedder."),
    ("y_embedder_1.", "conditions.0.y_embedder."),
    ("y_embedder_2.", "conditions.1.y_embedder."),
    ("y_embedder_3.", "conditions.2.y_embedder."),
    ("encoder_level_1.", "encoders.0.blocks."),
    ("encoder_level_2.", "encoders.1.blocks."),
    ("latent.", "middle."),
    ("decoder_level_2.", "decoders.0.blocks."),
    ("decoder_level_1.", "decoders.1.blocks."),
    ("down1_2.body.0.", "encoders.0.down."),
    ("down2_3.body.0.", "encoders.1.down."),
    ("up3_2.body.0.", "decoders.0.up."),
    ("up2_1.body.0.", "decoders.1.up."),
    ("reduce_chan_level2.", "decoders.0.reduce."),
    ("reduce_chan_level1.", "decoders.1.reduce."),
    ("attn.to_qkv.", "attn.qkv."),
    ("attn.to_out.", "attn.proj."),
    ("attn.downsampler.layer.", "attn.downsampler.0."),
)
PARTS = "attn|mlp|adaLN_modulation"
POINTWISE = re.compile(r"(attn\.proj|reduce|project_(in|out)\.[01])\.weight")  # 1x1 convolutions in the published code


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `create` that can be derived from a published state dict, without size and classes."""
    width, channels = tensors["x_embedder.proj.weight"].shape[:2]
    stages = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
    return {
        "channels": channels,
        "learn_variance": len(tensors["final_layer.out_proj.weight"]) == 2 * channels,
        "width": width,
        "heads": len(tensors["latent.0.attn1.logit_scale"]),
        "depths": [len({key.split(".")[1] for key in tensors if key.startswith(f"{stage}.")}) for stage in stages],
    }


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a published state dict (all options as published, not fused) to ditlab's, without copying."""
    renamed = {}
    for key, value in tensors.items():
        # A published block is a pair of ditlab's: block 3, attn2 becomes block 7, attn.
        key = re.sub(rf"\.(\d+)\.({PARTS})([12])\.", lambda m: f".{2 * int(m[1]) + int(m[3]) - 1}.{m[2]}.", key)
        for published, ditlab in PUBLISHED:
            key = key.replace(published, ditlab)
        renamed[key] = value.flatten(1) if POINTWISE.search(key) else value
    return renamed


def to_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the keys of a state dict to the published ones, the inverse of `from_published`.

    Raises:
        InputError: the network is fused, or does not have the published options and three levels.
    """
    fused = "middle.0.mlp.project_in.1.weight" not in tensors
    if fused or "decoders.1.up.weight" not in tensors or "decoders.2.up.weight" in tensors:
        raise InputError(
            "only U-DiT in its full form, not fused and on three levels, has a published layout; convert to ditlab"
        )
    renamed = {}
    for key, value in tensors.items():
        if POINTWISE.search(key):
            value = value[:, :, None, None]
        for published, ditlab in PUBLISHED:
            key = key.replace(ditlab, published)
        key = re.sub(rf"\.(\d+)\.({PARTS})\.", lambda m: f".{int(m[1]) // 2}.{m[2]}{int(m[1]) % 2 + 1}.", key)
        renamed[key] = value
    return renamed
