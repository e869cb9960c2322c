"""The compute of a dynamic network, averaged over the network calls of a sampler."""

from typing import Any, NamedTuple

import torch
from torch import nn

from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.inference.base import BasePipeline

MOST = 20  # steps; a longer schedule is thinned out
COUNT = 2  # images
RECORDED = ("compute", "tokens")


class Compute(NamedTuple):
    """What a dynamic network computes on average, as shares of what a full forward pass computes."""

    share: float  # of the multiply-accumulates of the blocks
    tokens: float  # of the tokens in the MLPs
    calls: int  # number of network calls that were averaged


def sampled_compute(pipe: BasePipeline) -> Compute:
    """Generate images with the model's settings, and average what its dynamic network computes.

    Raises:
        InputError: the routers keep no token at all.
    """
    traces: list[Trace] = []

    def record(net: nn.Module, inputs: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        traces.append(Trace(RECORDED))
        return inputs, options | {"trace": traces[-1]}

    times = pipe.resolve().times
    chosen = torch.linspace(0, len(times) - 1, min(len(times), MOST + 1)).round().long()
    labels = [pipe.conditioner.value(i % pipe.net.classes) for i in range(COUNT)] if pipe.net.classes else None
    handle = pipe.net.register_forward_pre_hook(record, with_kwargs=True)
    try:
        for _ in pipe.steps(labels, seeds=range(COUNT), schedule=times[chosen]):
            pass
    finally:
        handle.remove()
    share, tokens = (float(torch.stack([trace.taps[name].mean() for trace in traces]).mean()) for name in RECORDED)
    if tokens == 0:
        raise InputError(
            f"the token routers of {pipe.net.config['name']} keep no token in any block, so that no MLP is computed; "
            "train the model longer, or with a larger model.budget"
        )
    return Compute(share, tokens, len(traces))
