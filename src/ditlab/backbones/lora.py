"""Low-rank adaptation (Hu et al. 2021) of attention and modulation, through peft.

W becomes W + B A with A and B of rank r; W stays frozen. Class embeddings, the head and all weights that the source
does not have are trained in full. The result is saved merged, as an ordinary model, or as the trained tensors alone and
the path of the source.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones import Backbone, create
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init


def peft_library() -> Any:
    """peft, or the error that says how to install it."""
    try:
        import peft
    except ImportError:
        raise InputError("train.lora needs peft; pip install 'ditlab[lora]'") from None
    return peft


def add_lora(net: Backbone, rank: int, whole: Iterable[str], seed: int) -> None:
    """Freeze the network and add a low-rank update to every layer of `net.lora_targets`.

    Args:
        net: changed in place; its output stays the same, because B starts at zero.
        rank: rank of the updates.
        whole: names of parameters that are trained in full.
        seed: determines A.
    """
    peft = peft_library()
    settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(net.lora_targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, net)
    parameters = dict(net.named_parameters())
    for name in whole:
        if name in parameters:  # a layer with an update has another name now, and stays frozen
            parameters[name].requires_grad_()


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an ordinary network: W + B A under the name of W."""
    weights = {key.replace(".base_layer.", "."): value for key, value in state.items() if ".lora_" not in key}
    for name, a in state.items():
        layer, found, _ = name.partition(".lora_A.")
        if found:
            weights[f"{layer}.weight"] = weights[f"{layer}.weight"] + state[name.replace("lora_A", "lora_B")] @ a
    return weights


def merged(net: Backbone) -> Backbone:
    """An ordinary network that computes the same; the network itself if it has no updates."""
    state = net.state_dict()
    if not any(".lora_A." in key for key in state):
        return net
    with skip_init():
        again = create(**net.config)
    again.load_state_dict(plain(state), assign=True)
    return again.train(net.training).requires_grad_(False)


def trained_tensors(net: Backbone, whole: Iterable[str]) -> dict[str, Tensor]:
    """The updates, and the other weights that do not come from the source."""
    state = net.state_dict()
    return {name: value for name, value in state.items() if ".lora_" in name or name in set(whole)}
