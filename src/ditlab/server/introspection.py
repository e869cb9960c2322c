"""Record what a network computes while it generates: attention maps, and changes of block outputs between steps.

Blocks that change little from one step to the next are those whose output can be cached (`inference.optimize.reuse`).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ditlab.backbones import Backbone

MOST_PATCHES = 1024  # finer grids of patches are averaged down to this number


@dataclass(frozen=True)
class Attention:
    """The attention weights between the patches of an image, averaged over the heads."""

    height: int
    width: int
    weights: Tensor  # (height * width queries, height * width keys); with other tokens, each row sums to 1


class Inspector:
    """Records the first network call of each step: make the calls within `watching()`, and call `next_step` between."""

    def __init__(self, net: Backbone, attention: int | None = None) -> None:
        """An inspector that has not recorded anything.

        Args:
            net: the network.
            attention: index of the self-attention, in the order of the call, of which the weights are kept.
        """
        self.net, self.wanted = net, attention
        last = getattr(net, "final_layer", None)  # is compiled like a block, and is none
        self.blocks = [block for block in net.repeated if block is not last]
        self.recorded = False  # whether the first call of this step has been made
        self.attentions = 0  # in a network call
        self.attention: Attention | None = None  # of this step
        self.changes: list[list[float | None]] = []  # of each block, between each step and the step before
        self.outputs: dict[int, Tensor] = {}
        self.before: dict[int, Tensor] = {}

    def next_step(self) -> None:
        """Record the next network call."""
        self.recorded, self.attention = False, None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record a network call that is made in this context, if it is the first one of the step."""
        if self.recorded:
            yield
            return
        self.recorded = True
        self.before, self.outputs = self.outputs, {}
        hooks = [block.register_forward_hook(partial(self._keep, i)) for i, block in enumerate(self.blocks)]
        recorder = AttentionRecorder(self.wanted)
        try:
            with recorder:
                yield
        finally:
            for hook in hooks:
                hook.remove()
        self.attentions = recorder.count
        if recorder.weights is not None:
            self.attention = as_grid(recorder.weights, self.net)
        if self.before:
            self.changes.append([self._change(i) for i in range(len(self.blocks))])

    def _keep(self, i: int, block: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.outputs[i] = output[:1].float()  # the first image, with its condition

    def _change(self, i: int) -> float | None:
        """Relative change of a block's output since the last step; None if the block was skipped at one of the two."""
        if i not in self.before or i not in self.outputs:
            return None
        now, then = self.outputs[i], self.before[i]
        return float((now - then).norm() / now.norm().clamp(min=1e-12))


class AttentionRecorder(TorchFunctionMode):
    """Counts self-attentions, and keeps the weights of one of them."""

    def __init__(self, wanted: int | None) -> None:
        super().__init__()
        self.wanted, self.count = wanted, 0
        self.weights: Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            q, k = args[:2] if len(args) > 1 else (kwargs["query"], kwargs["key"])
            if q.shape[-2] == k.shape[-2]:
                if self.count == self.wanted:
                    self.weights = weights(q[:1], k[:1], kwargs.get("scale"))
                self.count += 1
        return func(*args, **kwargs)


def weights(q: Tensor, k: Tensor, scale: float | None) -> Tensor:
    """Attention weights (N, N) of queries and keys (..., N, d), averaged over images and heads."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    products = q.float() @ k.float().transpose(-1, -2) * factor
    return products.softmax(-1).flatten(0, -3).mean(0)


def as_grid(values: Tensor, net: Backbone) -> Attention | None:
    """Select the weights between patches and arrange them on the patch grid; None if the tokens form no 2-D grid."""
    grid = net.grid_of(len(values))
    if grid is None or len(grid) != 2:
        return None
    h, w = grid
    values = values[net.extras : net.extras + h * w, net.extras : net.extras + h * w]
    while h * w > MOST_PATCHES and h % 2 == w % 2 == 0:
        values = 4 * halved(halved(values, h, w).T, h, w).T  # the weights of the four keys are added
        h, w = h // 2, w // 2
    return Attention(h, w, values)


def halved(values: Tensor, h: int, w: int) -> Tensor:
    """Average rows (h w, K) over 2x2 patches; returns (h w / 4, K)."""
    grid = values.T.reshape(-1, 1, h, w)
    return F.avg_pool2d(grid, 2).flatten(1).T
