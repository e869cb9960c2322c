"""Precomputed adaLN modulation: shift, scale and gate of every block are computed before sampling begins.

They depend on timestep and label only, and all timesteps of a schedule are known before sampling. One matrix product
per layer therefore computes them for all steps, and each step looks up rows. In adaLN-Zero these layers have a third of
the weights of the blocks, which would otherwise be read in every step.
"""

import torch
from torch import Tensor, nn

from ditlab.backbones import Backbone

LARGEST = 256 * 2**20  # largest size of all tables in bytes; larger tables cost more time than they save


class Rows(nn.Module):
    """Replaces an embedder: returns the index of its input among sorted values (K,), or rows (K, n), times a stride."""

    def __init__(self, values: Tensor, stride: int) -> None:
        super().__init__()
        self.values, self.stride = values, stride

    def forward(self, value: Tensor) -> Tensor:
        if self.values.ndim > 1:
            return (value[:, None] == self.values).all(-1).int().argmax(1) * self.stride  # (B,)
        return torch.searchsorted(self.values, value.contiguous()) * self.stride  # (B,)


class Table(nn.Module):
    """Replaces a modulation: returns its precomputed output for a row index."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, row: Tensor) -> Tensor:
        return self.rows[row]  # (..., D) for rows (...)


@torch.no_grad()
def tabulated(net: Backbone, clock: Tensor, labels: Tensor) -> Backbone:
    """Return a network with precomputed modulation, which can be used with these timesteps and labels only.

    It shares all other weights with the given network.

    Args:
        net: the network; returned unchanged if it has no modulations, or if the tables would be too large.
        clock: timestep inputs (T,) that will be used; (T, 1 + n) with n further inputs of the network.
        labels: labels (L,) that will be used, including the null class.
    """
    clock, labels = torch.unique(clock.to(net.device), dim=0), torch.unique(labels.to(net.device))
    modulations, embedders = net.modulations(), net.embedders()
    outputs = sum(modulation.outputs for modulation in modulations)
    if outputs == 0 or len(clock) * len(labels) * outputs * net.dtype.itemsize > LARGEST:
        return net
    vectors = net.conditioning(clock.repeat_interleave(len(labels), dim=0), labels.repeat(len(clock)))
    parts: dict[nn.Module, nn.Module] = {
        modulation.layer: Table(modulation.layer(vectors[modulation.vector])) for modulation in modulations
    }
    parts |= {layer: Rows(clock, len(labels)) for layer in embedders.timestep}
    parts |= {layer: Rows(labels, 1) for layer in embedders.label}
    return net.with_parts(parts)
