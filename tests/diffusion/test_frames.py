"""Given frames in training: what the network receives, and what the loss counts."""

import math

import pytest
import torch

from ditlab.core.types import Condition
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, Linear

GIVEN = torch.tensor([[True, False, False], [False, True, True]])
T = torch.tensor([0.3, 0.8], dtype=torch.float64)


def regression(objective, channels=2):
    """A forward pass with a network that returns random values, and what it received."""
    torch.manual_seed(0)
    x0, eps, output = torch.randn(2, 2, 3, 4, 4), torch.randn(2, 2, 3, 4, 4), torch.randn(2, channels, 3, 4, 4)
    received = []

    def net(x, timestep, condition):
        received.extend((x, timestep, condition))
        return output

    condition = Condition(label=torch.tensor([0, 1])).with_given(GIVEN)
    return x0, eps, output, objective.regress(net, x0, condition, T, eps), received


@pytest.mark.parametrize("clock", [{}, {"clock_rate": -1.0, "clock_start": 1.0}])
def test_given_frames_have_no_noise_and_the_timestep_of_the_data(clock):
    process = Linear(**clock)
    x0, eps, _, _, (x, timestep, condition) = regression(Objective(process))
    noisy = process.add_noise(x0, eps, T)
    for row in range(2):
        for frame in range(3):
            given = bool(GIVEN[row, frame])
            assert torch.equal(x[row, :, frame], (x0 if given else noisy)[row, :, frame])
            expected = process.clock(torch.tensor(0.0) if given else T[row])
            assert timestep[row, frame] == expected.float()
    assert torch.equal(condition.given, GIVEN)


def test_the_loss_counts_the_other_frames_only():
    x0, eps, output, forward, _ = regression(Objective())
    errors = (output - (eps - x0)).square()  # velocity on the linear process
    expected = torch.stack([errors[0, :, 1:].mean(), errors[1, :, 0].mean()])
    assert torch.allclose(Objective().terms(forward)["regression"], expected)
    assert torch.equal(forward.output[0, :, 0], forward.wanted[0, :, 0])  # aids see no error there either


def test_the_variational_bound_counts_the_other_frames_only():
    objective = Objective(DDPM(), "eps", learn_variance=True)
    *_, forward, _ = regression(objective, channels=4)
    terms = objective.terms(forward)
    alone = objective.terms(
        type(forward)(*(v[:, :, :1] if v.ndim == 5 else v for v in (forward.x0, forward.x, forward.t, forward.output)),
                      forward.wanted[:, :, :1], forward.variance[:, :, :1])
    )  # fmt: skip
    assert math.isclose(float(terms["variational"][1]), float(alone["variational"][1]), rel_tol=1e-5)
    assert math.isclose(float(terms["regression"][1]), float(alone["regression"][1]), rel_tol=1e-5)


def test_conditions_with_given_frames_are_joined_moved_and_interpolated():
    condition = Condition(label=torch.tensor([0, 1]))
    between = Condition(label=torch.tensor([0, 1]), other=condition, weight=torch.tensor([0.0, 0.5])).with_given(GIVEN)
    assert torch.equal(between.other.given, GIVEN)
    joined = between.joined(condition.with_given(~GIVEN))
    assert torch.equal(joined.given, torch.cat([GIVEN, ~GIVEN]))
    assert torch.equal(joined[2:].given, ~GIVEN)
    assert torch.equal(joined.other.given, torch.cat([GIVEN, ~GIVEN]))
