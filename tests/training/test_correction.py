"""The correction of a student's images, against a distribution whose velocity field is known."""

from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_pipeline

from ditlab.config.reader import parse_recipe
from ditlab.core.types import Condition, Prediction
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import Linear
from ditlab.training.losses import make_context
from ditlab.training.rng import EPS, Randomness, RunRandomness
from ditlab.training.teacher import Teacher

BATCH, STEPS = 64, 200
SIZES = {"classes": 0, "size": 2, "patch": 2, "depth": 1}
SLOW = Linear(clock_rate=10.0)
MEAN, DEVIATION = 0.8, 0.4  # of the data, a Gaussian in every pixel


class Exact:
    """A teacher that knows the velocity field of the data."""

    built_in = False
    pipe = SimpleNamespace(model=tiny_pipeline(**SIZES, objective=Objective(SLOW)), objective=Objective(SLOW))

    def predict(self, x, t, condition, scale):
        t = t.reshape(-1, 1, 1, 1).to(x)
        away, variance = x - (1 - t) * MEAN, ((1 - t) * DEVIATION) ** 2 + t**2
        return Prediction(MEAN + (1 - t) * DEVIATION**2 / variance * away, t / variance * away)


@pytest.mark.slow
def test_the_correction_moves_the_images_to_the_distribution_of_the_teacher(monkeypatch):
    monkeypatch.setattr(Teacher, "of", lambda run: Exact())
    pipe = tiny_pipeline(**SIZES, objective=FlowMap(SLOW), inputs=("interval",))
    run = make_context(pipe, parse_recipe({"train": {"objective": "correction"}}))
    pipe.net.train().requires_grad_(True)
    groups = [
        {"params": list(pipe.net.parameters()), "lr": 2e-3},
        {"params": list(run.trained.parameters()), "lr": 1e-2},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    condition, ones = Condition(label=torch.zeros(BATCH, dtype=torch.long)), torch.ones(BATCH, dtype=torch.float64)

    def images(randomness):
        noise = randomness.noise(EPS)(torch.empty(BATCH, 1, 2, 2))
        return run.objective.images(run, noise, condition, ones)

    def distance():
        """Wasserstein-1 distance of pixels to the data."""
        with torch.no_grad():
            sets = [images(Randomness(RunRandomness(1), BATCH * i, 0, BATCH, BATCH)) for i in range(8)]
        values = torch.cat(sets).flatten().double().sort().values
        levels = (torch.arange(len(values), dtype=torch.float64) + 0.5) / len(values)
        return (values - (MEAN + DEVIATION * torch.special.ndtri(levels))).abs().mean().item()

    assert distance() > 0.9
    for step in range(STEPS):
        randomness = Randomness(RunRandomness(0), BATCH * step, 0, BATCH, BATCH)
        times = pipe.objective.draw_times(BATCH, randomness.of_batch())
        losses = run.objective.differences(run, images(randomness), condition, ones, times, randomness)
        sum(loss.mean() for loss in losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distance() < 0.2
