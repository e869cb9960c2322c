"""The cost of a network: parameters, multiply-accumulates, tokens and bytes, counted without allocating weights."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ditlab.backbones import Backbone


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass of the network for one image, with merged layers (see `Backbone.fused`)."""

    parameters: int  # after merging, as papers count them
    parameters_unfused: int  # before merging, as they are trained and saved
    gmacs: float  # 1e9 multiply-accumulates, which papers report as "Gflops"
    average_gmacs: float  # the same, averaged over uniform timesteps: less with early exit, or a budget below 1
    gflops: float  # 1e9 floating-point operations, twice as many
    tokens: int  # length of the longest sequence
    weight_bytes: int  # size of the saved float32 weights


def counted_flops(net: Backbone, inputs: tuple[Any, ...]) -> int:
    """Count the floating-point operations of a forward pass with these inputs."""
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}  # torch does not count it
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter, torch.no_grad():
        net(*inputs)
    return counter.get_total_flops()


def attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Count the operations of attention from the shapes of its inputs."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def measure(make: Callable[[], Backbone]) -> Cost:
    """Measure the cost of the network that `make` creates; no weights are allocated."""
    with torch.device("meta"):
        net = make().eval()
        inputs = net.example(1)
    fused = net.fused()
    exits, fused.exits = fused.exits, ()
    flops = counted_flops(fused, inputs)
    early: dict[float, int] = {}
    for share in exits:
        fused.exits = (share,)
        early[share] = early[share] if share in early else counted_flops(fused, inputs)
    merged, saved = (sum(parameter.numel() for parameter in network.parameters()) for network in (fused, net))
    average = mean([early[share] for share in exits] or [flops]) / 2e9 - (1 - net.budget) * net.dynamic_macs / 1e9
    return Cost(merged, saved, flops / 2e9, average, flops / 1e9, net.tokens, 4 * saved)
