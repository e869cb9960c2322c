"""Adapters in the layout of peft: low-rank updates (LoRA) of a model, `adapter_model.safetensors` and its config.

A weight W becomes W + scale (alpha / r) B A. Modules that were trained in full become W + scale (W' - W).
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ditlab.core.errors import InputError, nothing_at
from ditlab.core.hub import fetch
from ditlab.core.weights import read_json, read_tensors

if TYPE_CHECKING:
    from ditlab.backbones import Backbone

SETTINGS, UPDATES = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
OTHERS = ("use_dora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "lora_bias")  # settings that change the sum


def add_adapter(net: "Backbone", place: str | Path, scale: float) -> None:
    """Add the updates of an adapter to the weights of a network.

    Args:
        net: the network, whose weights are changed in place.
        place: folder or hub id of the adapter.
        scale: factor of the updates; 0 changes nothing, and 1 is the strength of the training.

    Raises:
        InputError: the folder holds no adapter of peft, or one of another network or kind.
    """
    if not math.isfinite(scale):
        raise InputError(f"scale {scale} of an adapter; give a finite number")
    folder = fetch(place)
    if not (folder / SETTINGS).is_file():
        raise nothing_at(folder, "adapter", f"give a folder with {SETTINGS} and {UPDATES}, the layout of peft")
    settings = read_json(folder / SETTINGS)
    if settings.get("peft_type") != "LORA" or (odd := [name for name in OTHERS if settings.get(name)]):
        kind = settings.get("peft_type") if settings.get("peft_type") != "LORA" else f"LORA with {odd[0]}"
        raise InputError(f"{place} is an adapter of the kind {kind}; only plain LORA is supported")
    tensors = {key.removeprefix(PREFIX): value for key, value in read_tensors(folder / UPDATES).items()}
    updates = {name: scale * update for name, update in differences(net, tensors, settings, place).items()}
    weights = dict(net.state_dict())
    for name, update in updates.items():
        weights[name] += update.to(weights[name])


def differences(
    net: "Backbone", tensors: dict[str, Tensor], settings: dict[str, Any], place: str | Path
) -> dict[str, Tensor]:
    """Return the differences of an adapter to the weights of a network, by name; raises an error if it does not fit."""
    weights, found = net.state_dict(), {}
    for key, value in tensors.items():
        layer, separator, _ = key.partition(".lora_A.")
        if ".lora_B." in key and key.replace(".lora_B.", ".lora_A.") in tensors:
            continue
        if not separator:
            name, update = key, value
        else:
            name, b = f"{layer}.weight", tensors.get(key.replace(".lora_A.", ".lora_B."))
            if b is None or min(value.ndim, b.ndim) < 2 or b.flatten(1).shape[1] != len(value):
                raise InputError(f"{place} has no pair of matrices for {layer}; give a complete adapter")
            rank = value.shape[0]
            alpha = settings.get("lora_alpha", rank) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            product = b.float().flatten(1) @ value.float().flatten(1)  # of a convolution, B is (out, r, 1, 1)
            update = alpha * product.view(len(b), *value.shape[1:])
        if name not in weights or weights[name].shape != update.shape:
            has = f"{tuple(weights[name].shape)}" if name in weights else "no such weight"
            raise InputError(
                f"{place} changes {name} {tuple(update.shape)}, and the model has {has}; give the model from which "
                "the adapter was trained"
            )
        found[name] = update if separator else update.to(weights[name]) - weights[name]
    return found
