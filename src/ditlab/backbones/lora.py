"""Low-rank adaptation (LoRA, Hu et al. 2021) of attention and modulation layers, with the library peft.

A weight W becomes W + B A, with A and B of rank r, and W is frozen. Class embeddings, the head and all weights that the
source does not have are trained in full. The result is saved as an ordinary model with merged weights, or as the
trained tensors and the path of the source.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones import Backbone, create
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init

BASE = ".base_layer."  # part of the names of weights that have an update


def peft_library() -> Any:
    """Import peft.

    Raises:
        InputError: it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise InputError("train.lora needs peft; pip install 'ditlab[lora]'") from None
    return peft


def add_lora(net: Backbone, rank: int, whole: Iterable[str], seed: int) -> None:
    """Freeze the network and add a low-rank update to every layer of `net.lora_targets`.

    Args:
        net: the network, changed in place; its output stays the same, because B starts at zero.
        rank: rank of the updates.
        whole: names of parameters that are trained in full.
        seed: seed of the initial values of A.
    """
    peft = peft_library()
    settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(net.lora_targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, net)
    parameters = dict(net.named_parameters())
    for name in whole:
        if name in parameters:  # the weight of a layer with an update has been renamed, and stays frozen
            parameters[name].requires_grad_()


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge low-rank updates in a state dict: W + B A replaces W, B and A."""
    weights = {key.replace(BASE, "."): value for key, value in state.items() if ".lora_" not in key}
    for name, a in state.items():
        layer, separator, _ = name.partition(".lora_A.")
        if separator:
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + state[name.replace("lora_A", "lora_B")] @ a
    return weights


def merged(net: Backbone) -> Backbone:
    """Return a network with merged low-rank updates and the same outputs; the network itself if it has none."""
    if not has_updates(net):
        return net
    with skip_init():
        ordinary = create(**net.config)
    ordinary.load_state_dict(plain(net.state_dict()), assign=True)
    return ordinary.train(net.training).requires_grad_(False)


def has_updates(net: Backbone) -> bool:
    """Whether a network has low-rank updates."""
    return any(".lora_A." in key for key in net.state_dict())


def trained_tensors(state: Mapping[str, Tensor], whole: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors of a state dict that the source of low-rank updates does not have.

    Args:
        state: state dict of a network with low-rank updates.
        whole: names, without the updates, of tensors that are trained in full or differ from the source.
    """
    names = set(whole)
    return {key: value for key, value in state.items() if ".lora_" in key or key.replace(BASE, ".") in names}
