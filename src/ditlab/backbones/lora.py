"""Low-rank adaptation (Hu et al. 2021) of attention and modulation, through peft.

W becomes W + B A with A and B of rank r; W stays frozen. Label rows, the head and whatever was new to the source are
trained whole. The result is saved merged, as an ordinary model, or apart, as what was trained and the source's path.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ditlab.backbones import Backbone, create
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init


def peft_library() -> Any:
    """peft, or the line that says how to get it."""
    try:
        import peft
    except ImportError:
        raise InputError("train.lora needs peft; pip install 'ditlab[lora]'") from None
    return peft


def add_lora(net: Backbone, rank: int, whole: Iterable[str], seed: int) -> None:
    """Freeze the network and put a low-rank update beside every layer of `net.lora_targets`.

    Args:
        net: changed in place; its output stays what it was, since B starts at zero.
        rank: of the updates.
        whole: names of parameters that are trained as they are.
        seed: decides A.
    """
    peft = peft_library()
    settings = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(net.lora_targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(settings, net)
    parameters = dict(net.named_parameters())
    for name in whole:
        if name in parameters:  # a layer beside which there is an update now has another name, and stays frozen
            parameters[name].requires_grad_()


def plain(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an ordinary network: W + B A in the place of W, under its own name."""
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
    """The updates and what else does not come from the source."""
    state = net.state_dict()
    return {name: value for name, value in state.items() if ".lora_" in name or name in set(whole)}
