"""The spatial spectrum of the outputs of the blocks: how much of their energy lies in low frequencies.

Result: `low_frequencies`, the share of the energy at up to a quarter of a cycle per position (half of the highest
frequency of the grid) in each direction, without the mean over the grid; a mean over blocks, evaluations and images.
Tian et al., "U-DiTs: Downsample Tokens in U-Shaped Diffusion Transformers" (NeurIPS 2024) explain the benefit of
down-sampled tokens by features of low frequencies. `low_frequencies_8` is that of the blocks on a grid of 8 positions a
side, `low_frequencies_block_0` that of the first block.
"""

from collections import defaultdict
from math import isqrt
from statistics import fmean

import torch
from rich.console import Console
from torch import Tensor

from ditlab.config.evaluation import Evaluation
from ditlab.core.errors import InputError
from ditlab.inference.pipeline import Pipeline
from ditlab.study.measures.base import Measure, kept
from ditlab.study.measures.blocks import check, watch_blocks

LOW = 0.25  # cycles per position
SMALLEST = 4  # positions a side of a grid that has frequencies between


def as_grid(output: Tensor) -> Tensor | None:
    """The output of a block as (B, C, H, W); None for grids of fewer than four positions a side.

    Tokens (B, N, D) of a square grid may follow tokens without a place, such as those of timestep and label.
    """
    if output.ndim == 3:
        side = isqrt(output.shape[1])
        output = output[:, output.shape[1] - side * side :].reshape(len(output), side, side, -1)
    if output.ndim != 4:
        return None
    grid = output.movedim(-1, 1) if output.shape[1] == output.shape[2] else output
    return grid if min(grid.shape[-2:]) >= SMALLEST else None


def low_share(grid: Tensor) -> float:
    """The share of the energy of (B, C, H, W) in low frequencies, mean over the images."""
    energy = torch.fft.fft2(grid).abs().square().sum(1)  # (B, H, W)
    energy[:, 0, 0] = 0
    vertical, horizontal = (torch.fft.fftfreq(side, device=grid.device).abs() for side in grid.shape[-2:])
    low = (vertical[:, None] <= LOW) & (horizontal <= LOW)
    return float((energy[:, low].sum(1) / energy.sum((1, 2)).clamp_min(1e-30)).mean())


def spectrum(pipe: Pipeline, settings: Evaluation, console: Console) -> dict[str, float]:
    """The means over all blocks, over those of each size of the grid, and of each block.

    Raises:
        InputError: no block has a grid of four or more positions a side.
    """
    shares: dict[tuple[int, int], list[float]] = defaultdict(list)

    def add(number: int, output: Tensor) -> None:
        if (grid := as_grid(output)) is not None:
            shares[number, grid.shape[-1]].append(low_share(grid))

    watch_blocks(pipe, settings, add, lambda: None)
    if not shares:
        raise InputError(
            f"no block of {pipe.net.config['name']} has a grid of {SMALLEST} or more positions a side; "
            "give smaller patches or larger images"
        )
    of_block = {key: fmean(values) for key, values in sorted(shares.items())}
    sides = sorted({side for _, side in of_block}, reverse=True)
    levels = {side: fmean(value for (_, other), value in of_block.items() if other == side) for side in sides}
    return (
        {"low_frequencies": fmean(of_block.values())}
        | {f"low_frequencies_{side}": value for side, value in levels.items()}
        | {f"low_frequencies_block_{number}": value for (number, _), value in of_block.items()}
    )


SPECTRUM = Measure(kept("spectrum", spectrum), {"low_frequencies": "higher"}, check)
