"""Modulations worked out before sampling begins.

Shift, scale and gate of a block are functions of time and label alone, and a sampler knows all its times beforehand. So
one matrix product per layer serves every step; the loop only looks rows up. In adaLN-Zero these layers hold a third of
the blocks' weights, which would otherwise be read again at each step.
"""

from typing import cast

import torch
from torch import Tensor, nn

from ditlab.backbones import Backbone

MODULATION = "adaLN_modulation"
LARGEST = 256 * 2**20  # bytes of tables; a thousand labels at hundreds of steps of a large network are not worth it


class Rows(nn.Module):
    """In the place of an embedder: which of these values it is, times a stride."""

    def __init__(self, values: Tensor, stride: int) -> None:
        super().__init__()
        self.values, self.stride = values, stride

    def forward(self, value: Tensor) -> Tensor:
        return torch.searchsorted(self.values, value.contiguous()) * self.stride  # (B,)


class Table(nn.Module):
    """In the place of a modulation: its output for every row."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, row: Tensor) -> Tensor:
        return self.rows[row]  # (..., D) for rows (...)


@torch.no_grad()
def tabulated(net: Backbone, clock: Tensor, labels: Tensor) -> Backbone:
    """A network that computes the same at these times, for these labels, and only there; it shares all other weights.

    Args:
        net: the network; itself where it has no modulations, or where the tables would be too large.
        clock: what the timestep embedder will be fed, (T,).
        labels: all that will be asked for, the null label too, (L,).
    """
    clock, labels = torch.unique(clock.to(net.device)), torch.unique(labels.to(net.device))
    outputs = sum(last_linear(each).out_features for name, each in net.named_modules() if name.endswith(MODULATION))
    if outputs == 0 or len(clock) * len(labels) * outputs * net.dtype.itemsize > LARGEST:
        return net
    every = net.conditioning(clock.repeat_interleave(len(labels)), labels.repeat(len(clock)))
    of_width = {condition.shape[1]: condition for condition in every}
    parts: dict[nn.Module, nn.Module] = {}
    for name, module in net.named_modules():
        if name.endswith(MODULATION):
            parts[module] = Table(module(of_width[last_linear(module).in_features]))
        elif name.rpartition(".")[2] == "t_embedder":
            parts[module] = Rows(clock, len(labels))
        elif name.rpartition(".")[2] == "y_embedder":
            parts[module] = Rows(labels, 1)
    return net.with_parts(parts)


def last_linear(modulation: nn.Module) -> nn.Linear:
    """The layer behind the activation; it may be in the wrap of low-rank updates, which has its sizes too."""
    *_, layer = modulation.children()
    return cast(nn.Linear, layer)
