"""Read and write published state dicts of DiMSUM.

They hold the filters of the wavelets, which are constants, and projections of the condition that have no influence.
"""

from typing import Any

import torch
from torch import Tensor

from ditlab.backbones.published import count_of, negated
from ditlab.core.errors import InputError

HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")
DEAD = ".mixer.cond_proj."
FILTERS = (".freq_mamba.dwt.", ".freq_mamba.idwt.")


def read_sizes(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `create` that can be derived from a published state dict."""
    width, channels, patch, _ = tensors["x_embedder.proj.weight"].shape
    side = round(tensors["pos_embed"].shape[1] ** 0.5) * patch
    return {
        "size": (side, side),
        "channels": channels,
        "learn_variance": len(tensors[HEAD[0]]) == 2 * channels * patch**2,
        "width": width,
        "depth": count_of(tensors, "blocks."),
        "patch": patch,
        "final_norm": "norm_f.weight" in tensors,
    }


def from_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the network, with ditlab's velocity.

    Raises:
        InputError: a file of a variant that no released model uses.
    """
    if f"blocks.0.spatial_mamba{DEAD}weight" not in tensors:
        raise InputError("DiMSUM without cond_mamba is not supported; give a model with the released settings")
    constants = filters(tensors)
    for key in constants.keys() & tensors.keys():
        if tensors[key].shape != constants[key].shape or not torch.allclose(tensors[key], constants[key], atol=1e-3):
            raise InputError(f"DiMSUM with other wavelets ({key}) is not supported; give a model with Haar's")
    return negated({key: value for key, value in tensors.items() if key not in constants}, HEAD)


def to_published(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the published code, with SiT's velocity.

    Projections of the condition that the network does not have are zeros; they have no influence.
    """
    dead: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if key.endswith(".mixer.in_proj.weight"):
            inner, width = len(value) // 2, tensors["final_layer.linear.weight"].shape[1]
            start = key.removesuffix(".mixer.in_proj.weight") + DEAD
            dead |= {f"{start}weight": value.new_zeros(inner, width), f"{start}bias": value.new_zeros(inner)}
    return negated(dead | tensors | filters(tensors), HEAD)


def filters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the filters of Haar's wavelets for each block of a state dict, with their published keys."""
    one = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    half = torch.tensor(0.5).sqrt().square()  # as the published code rounds it
    bands = torch.kron(one, one).view(4, 1, 1, 2, 2).transpose(3, 4).contiguous() * half
    names = ("w_ll", "w_lh", "w_hl", "w_hh")
    constants: dict[str, Tensor] = {}
    for i in range(count_of(tensors, "blocks.")):
        dwt, idwt = (f"blocks.{i}{part}" for part in FILTERS)
        constants |= {f"{dwt}{name}": band for name, band in zip(names, bands, strict=True)}
        constants[f"{idwt}filters"] = bands[:, 0]
    return constants
