"""Muon, against PyTorch's, which is in bfloat16 and for matrices only."""

import pytest
import torch
from torch import nn

from ditlab.training import muon
from ditlab.training.muon import Muon, orthogonalized


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96)])
def test_steps_equal_those_of_pytorch_but_for_rounding(shape, half, monkeypatch):
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: half)
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    steps = (
        (ours, Muon([ours], 0.01, 0.1)),
        (theirs, torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")),
    )
    for _ in range(5):
        gradient = torch.randn(shape)
        for parameter, optimizer in steps:
            parameter.grad = gradient.clone()
            optimizer.step()
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm()


def test_singular_values_are_near_one():
    torch.manual_seed(0)
    update = orthogonalized(torch.randn(48, 16) * torch.logspace(-2, 0, 16))
    values = torch.linalg.svdvals(update) / (0.2 * 48**0.5)
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_kernel_is_a_matrix_of_its_rows():
    torch.manual_seed(0)
    kernel = torch.randn(8, 4, 3, 3)
    assert torch.equal(orthogonalized(kernel), orthogonalized(kernel.flatten(1)).view_as(kernel))
    still = nn.Parameter(kernel.clone())
    Muon([still], 0.1, 0.1).step()  # without a gradient
    assert torch.equal(still, kernel)


def test_the_iteration_on_the_square_matrix_gives_the_same():
    torch.manual_seed(0)
    matrix = torch.randn(32, 96) * torch.logspace(-3, 0, 32)[:, None]
    exact = muon.iterated((matrix / matrix.norm()).double())
    assert (muon.iterated_on_square(matrix / matrix.norm()) - exact).norm() < 1e-4 * exact.norm()


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("rank", [1, 5])
def test_updates_of_few_directions_do_not_grow(rank, half, monkeypatch):
    monkeypatch.setattr(muon, "has_bfloat16", lambda _: half)
    torch.manual_seed(0)
    matrix = torch.randn(64, rank) @ torch.randn(rank, 576)
    values = torch.linalg.svdvals(orthogonalized(matrix)) / (0.2 * 576**0.5)
    assert values[:rank].min() > 0.6
    assert values.max() < 1.3
