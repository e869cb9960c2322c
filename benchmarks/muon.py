"""Time of a step of Muon in float32: wide matrices iterated on the square matrix, against the plain iteration.

    python benchmarks/muon.py [ROUNDS] [--threads 1]

Both sides run in turns, on the same random gradients; medians.
"""

from functools import partial

import torch
from cyclopts import run

import ditlab
from ditlab.inference.optimize.timing import interleaved
from ditlab.training import muon

NETWORKS = {"Hourglass-XS": (32, 3, 26), "DiT-S/2": (32, 4, 1000)}  # side, channels, classes


def main(rounds: int = 9, *, threads: int = 1) -> None:
    """Time all networks and print the table."""
    torch.set_num_threads(threads)
    muon.has_bfloat16 = lambda device: False  # in bfloat16 there is only the plain iteration
    limits = {"square": muon.WIDE, "plain": float("inf")}
    print("| network | iterated on the square | plain | ratio |\n|---|---|---|---|")
    for name, (size, channels, classes) in NETWORKS.items():
        net = ditlab.create(name, size=size, channels=channels, classes=classes)
        matrices = [parameter for group in net.parameter_groups() if group.muon for parameter in group.parameters]
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        optimizer = muon.Muon(matrices, lr=1e-3, weight_decay=0.0)
        seconds = interleaved({side: partial(step, optimizer, limit) for side, limit in limits.items()}, rounds)
        square, plain = seconds["square"], seconds["plain"]
        print(f"| {name} | {square:.4f} s | {plain:.4f} s | {square / plain:.2f} |")


def step(optimizer: muon.Muon, wide: float) -> None:
    """Take a step in which matrices of this ratio of sides, or wider, are iterated on the square."""
    muon.WIDE = wide
    optimizer.step()


if __name__ == "__main__":
    run(main)
