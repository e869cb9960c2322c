"""A look inside a network while it draws: what its patches attend to, and how much its blocks change between steps.

Blocks that hardly change from one step to the next are those whose output can be reused (`inference.optimize.reuse`).
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

LARGEST = 1024  # patches whose attention is told one by one; finer grids are averaged down to it


@dataclass(frozen=True)
class Attention:
    """What the patches of a picture attend to, averaged over the heads."""

    height: int
    width: int
    weights: Tensor  # (height * width queries, height * width keys), each row of which has 1 in all with other tokens


class Inside:
    """Watches the first network call of each step; `begin` the step, then run the call within `around()`."""

    def __init__(self, net: Backbone, attention: int | None = None) -> None:
        """Nothing seen yet.

        Args:
            net: the network.
            attention: number of the self-attention, in the order of the call, whose weights shall be kept.
        """
        self.net, self.wanted = net, attention
        self.step, self.seen = 0, -1
        self.attentions = 0  # of a call
        self.attention: Attention | None = None  # of the last step
        self.changes: list[list[float | None]] = []  # between a step and the one before, of each block
        self.outputs: dict[int, Tensor] = {}
        self.before: dict[int, Tensor] = {}

    @contextmanager
    def around(self) -> Iterator[None]:
        """Watch what runs in this context, unless the step was seen."""
        if self.seen == self.step:
            yield
            return
        self.seen = self.step
        self.before, self.outputs = self.outputs, {}
        blocks = self.net.repeated
        hooks = [block.register_forward_hook(partial(self._keep, i)) for i, block in enumerate(blocks)]
        spy = Spy(self.wanted)
        try:
            with spy:
                yield
        finally:
            for hook in hooks:
                hook.remove()
        self.attentions = spy.count
        if spy.weights is not None:
            self.attention = as_grid(spy.weights, self.net)
        if self.before:
            self.changes.append([self._change(i) for i in range(len(blocks))])

    def _keep(self, i: int, block: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self.outputs[i] = output[:1].float()  # the first picture, with its label

    def _change(self, i: int) -> float | None:
        """Relative to the output itself; None for a block that was left out at one of the two steps."""
        if i not in self.before or i not in self.outputs:
            return None
        now, then = self.outputs[i], self.before[i]
        return float((now - then).norm() / now.norm().clamp(min=1e-12))


class Spy(TorchFunctionMode):
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
    """Softmax of the products, averaged over pictures and heads: (N, N) for (..., N, d)."""
    factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    products = q.float() @ k.float().transpose(-1, -2) * factor
    return products.softmax(-1).flatten(0, -3).mean(0)


def as_grid(found: Tensor, net: Backbone) -> Attention | None:
    """The rows and columns of patches, on a grid of the picture's shape; None where there is no such grid."""
    grid = net.grid_of(len(found))
    if grid is None or len(grid) != 2:
        return None
    h, w = grid
    found = found[net.extras : net.extras + h * w, net.extras : net.extras + h * w]
    while h * w > LARGEST and h % 2 == w % 2 == 0:
        found = 4 * halved(halved(found, h, w).T, h, w).T  # the four keys of a place are added up
        h, w = h // 2, w // 2
    return Attention(h, w, found)


def halved(values: Tensor, h: int, w: int) -> Tensor:
    """Rows (h w, K) averaged over 2x2 places."""
    grid = values.T.reshape(-1, 1, h, w)
    return F.avg_pool2d(grid, 2).flatten(1).T
