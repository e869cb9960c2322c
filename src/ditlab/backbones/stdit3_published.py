"""Read and write published state dicts of STDiT3.

Its output layer has twice the channels, of which nothing uses the second half, and its velocity points to the data.
"""

from typing import Any

import torch
from torch import Tensor

from ditlab.backbones.published import count_of, negated

TEXT = {"text_length": 300, "text_width": 4096}  # T5-XXL
HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")
UNUSED = ("final_layer.unused_weight", "final_layer.unused_bias")


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `create` that can be derived from a published state dict: all but the size.

    Without a null caption, the number of text tokens is that of the published model.
    """
    width, channels, _, patch, _ = tensors["x_embedder.proj.weight"].shape
    null = tensors.get("y_embedder.y_embedding")
    return {
        "channels": channels,
        "classes": 0,
        "learn_variance": False,
        "width": width,
        "depth": count_of(tensors, "spatial_blocks."),
        "heads": width // len(tensors["spatial_blocks.0.attn.q_norm.weight"]),
        "patch": patch,
        "text_length": TEXT["text_length"] if null is None else len(null),
        "text_width": tensors["y_embedder.y_proj.fc1.weight"].shape[1],
        "null_caption": null is not None,
        "unused_half": len(tensors[HEAD[0]]) == 2 * channels * patch**2,
    }


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the network; an unused half of the output layer becomes buffers."""
    _, channels, _, patch, _ = tensors["x_embedder.proj.weight"].shape
    changed: dict[str, Tensor] = {}
    if len(tensors[HEAD[0]]) == 2 * channels * patch**2:
        for used, unused in zip(HEAD, UNUSED, strict=True):
            halves = torch.unflatten(tensors[used], 0, (patch * patch, 2, channels))  # channels fastest
            changed |= {used: halves[:, 0].flatten(0, 1), unused: halves[:, 1].flatten(0, 1)}
    return negated(tensors | changed, HEAD)


def to_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the published tensors, the inverse of `from_published`."""
    tensors = negated(tensors, HEAD)
    if UNUSED[0] not in tensors:
        return tensors
    channels = tensors["x_embedder.proj.weight"].shape[1]
    joined: dict[str, Tensor] = {}
    for used, unused in zip(HEAD, UNUSED, strict=True):
        halves = [torch.unflatten(tensors[name], 0, (-1, channels)) for name in (used, unused)]
        joined[used] = torch.stack(halves, dim=1).flatten(0, 2)
    return {key: value for key, value in tensors.items() if key not in UNUSED} | joined
