"""Precomputed adaLN modulation: shift, scale and gate of every block, computed before sampling begins.

They are functions of timestep and label alone, and all timesteps of a schedule are known beforehand. So one matrix
product per layer serves every step, and each step only looks up rows. In adaLN-Zero these layers hold a third of the
blocks' weights, which would otherwise be read again at each step.
"""

import torch
from torch import Tensor, nn

from ditlab.backbones import Backbone

LARGEST = 256 * 2**20  # bytes of tables; a thousand labels at hundreds of steps of a large network are not worth it


class Rows(nn.Module):
    """Replaces an embedder: the index of an input among these sorted values, times a stride."""

    def __init__(self, values: Tensor, stride: int) -> None:
        super().__init__()
        self.values, self.stride = values, stride

    def forward(self, value: Tensor) -> Tensor:
        return torch.searchsorted(self.values, value.contiguous()) * self.stride  # (B,)


class Table(nn.Module):
    """Replaces a modulation: its output for every row."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, row: Tensor) -> Tensor:
        return self.rows[row]  # (..., D) for rows (...)


@torch.no_grad()
def tabulated(net: Backbone, clock: Tensor, labels: Tensor) -> Backbone:
    """A network that computes the same for these timesteps and labels, and only these; it shares all other weights.

    Args:
        net: the network; it is returned itself if it has no modulations, or if the tables would be too large.
        clock: the timesteps that will be used, as the timestep embedder takes them, (T,).
        labels: all labels that will be used, the null class included, (L,).
    """
    clock, labels = torch.unique(clock.to(net.device)), torch.unique(labels.to(net.device))
    modulations, embedders = net.modulations(), net.embedders()
    outputs = sum(each.outputs for each in modulations)
    if outputs == 0 or len(clock) * len(labels) * outputs * net.dtype.itemsize > LARGEST:
        return net
    vectors = net.conditioning(clock.repeat_interleave(len(labels)), labels.repeat(len(clock)))
    parts: dict[nn.Module, nn.Module] = {each.layer: Table(each.layer(vectors[each.vector])) for each in modulations}
    parts |= {layer: Rows(clock, len(labels)) for layer in embedders.timestep}
    parts |= {layer: Rows(labels, 1) for layer in embedders.label}
    return net.with_parts(parts)
