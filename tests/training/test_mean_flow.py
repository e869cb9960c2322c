"""The objective mean-flow: derivatives against known ones, training from scratch, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from helpers import relative, tiny_pipeline
from rich.console import Console
from torch import nn

from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Condition
from ditlab.data import open_dataset
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.process import Linear
from ditlab.training import train
from ditlab.training.losses import batch_losses, make_context
from ditlab.training.objectives import OBJECTIVES
from ditlab.training.objectives.mean_flow import total_derivative

QUIET = Console(quiet=True)
RECIPE = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 2, "heads": 2},
    "diffusion": {"process": "linear", "process_options": {"clock_rate": 20.0}, "target": "velocity"},
    "optim": {"lr": 1e-2},
    "train": {"objective": "mean-flow", "images": 64, "batch": 32, "device": "cpu", "compile": "never"},
    "sample": {"sampler": "map", "steps": 1},
}
RECIPE["train"] |= {"log_every": 32, "save_every": 32, "precision": "float32"}


def changed(**sections):
    return {
        name: RECIPE[name] | sections.get(name, {}) for name in RECIPE.keys() | sections.keys() if name in RECIPE
    } | {name: section for name, section in sections.items() if name not in RECIPE}


class Known(nn.Module):
    """u(x, t, s) = t^2 x + 3 (t - s), from the timestep input 10 t and the interval times 0.01."""

    repeated = ()

    def forward(self, x, inputs, condition):
        t, interval = (inputs[:, i].reshape(-1, 1, 1, 1) for i in (0, 1))
        return (t / 10).square() * x + 300 * interval


def test_the_total_derivative_of_a_known_network():
    objective = FlowMap(Linear(clock_rate=10.0), steps=(1,), interval_rate=0.01)
    run = SimpleNamespace(net=Known(), pipe=SimpleNamespace(objective=objective))
    x = torch.randn(3, 1, 2, 2)
    t, s = torch.tensor([[1.0, 0.5, 0.7], [0.0, 0.2, 0.7]], dtype=torch.float64)
    scale = torch.ones(3)
    derivative = total_derivative(run, x, t, s, Condition(label=torch.zeros(3, dtype=torch.long)), scale)
    t = t.float().reshape(-1, 1, 1, 1)
    assert torch.allclose(derivative, t**2 * (t**2 * x) + 2 * t * x + 3, atol=1e-5)  # along the path, dx/dt = t^2 x


def test_the_loss_is_that_of_the_velocity_with_guidance_and_derivative():
    recipe = parse_recipe(changed(distill={"guidance": [1.5, 2.5], "guidance_interval": [0.0, 0.5]}))
    reading = OBJECTIVES["mean-flow"].reading(recipe)
    assert (reading.interval_rate, reading.steps) == (0.02, (1, 2, 3, 4, 5, 6, 7, 8))
    pipe = tiny_pipeline(classes=10, objective=reading, inputs=reading.inputs, patch=4)
    run = make_context(pipe, recipe)
    seen = []
    run.network = lambda x, inputs, condition: seen.append((x, inputs, condition)) or pipe.net(x, inputs, condition)
    images = open_dataset("digits").fetch(torch.arange(32))
    loss = batch_losses(run, images, 0, 0, torch.float32)
    (x, inputs, condition), t = seen[0], loss.times
    s, scale = t - inputs[:, 1].double() / 0.02, 1 / inputs[:, 2]
    assert ((t - s).abs() < 1e-6).sum() in range(8, 25)
    assert 1.5 <= scale.min() < 1.8 < 2.2 < scale.max() <= 2.5
    velocity = (x - images.x / 127.5 + 1) / t.float().reshape(-1, 1, 1, 1)  # (x_t - x0) / t
    with torch.no_grad():
        now = inputs * torch.tensor([1.0, 0.0, 1.0])
        path, null = (pipe.net(x, now, labels) for labels in (condition.label, torch.full_like(condition.label, 10)))
        guided = null + torch.where(t <= 0.5, scale, 1.0).float().reshape(-1, 1, 1, 1) * (velocity - null)
        step = 1e-2
        later, earlier = (
            pipe.net(
                x + sign * step * path, inputs + sign * step * torch.tensor([20.0, 0.02, 0.0]), condition.label
            ).double()
            for sign in (1, -1)
        )
        derivative = (later - earlier).float() / (2 * step)
        mean = pipe.net(x, inputs, condition.label) + (t - s).float().reshape(-1, 1, 1, 1) * derivative
    assert relative(loss.named["mean-flow"], (mean - guided).square().flatten(1).mean(1)) < 2e-3


@pytest.mark.slow
def test_a_model_from_scratch_generates_in_one_step_and_in_more(tmp_path):
    pipe = train(RECIPE, tmp_path / "run", console=QUIET)
    assert pipe.objective == FlowMap(Linear(clock_rate=20.0), steps=tuple(range(1, 9)), interval_rate=0.02)
    assert [pipe.resolve(steps=steps).evaluations for steps in (1, 4)] == [1, 4]
    one, four = (pipe([3], seeds=1, steps=steps, output_type="latent").images for steps in (1, 4))
    assert one.isfinite().all()
    assert not torch.equal(one, four)


class Opaque(torch.autograd.Function):
    """Returns its input; has no forward-mode derivative."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient


def test_what_it_refuses(tmp_path, monkeypatch):
    for given, line in (
        (
            changed(diffusion={"process_options": {}}),
            "the timestep input of the network rises to 1000, too fast for the derivative that mean-flow needs; set "
            "diffusion.process_options to { clock_rate = 20 } (up to 100 is possible)",
        ),
        (
            changed(diffusion={"target": "x0"}),
            'train.objective mean-flow needs diffusion.process "linear" and diffusion.target "velocity"',
        ),
        (
            changed(distill={"guidance": [2.0]}, train={"label_dropout": 0.0}, sample={"guidance": 2.0}),
            "train.objective mean-flow needs the null condition, but train.label_dropout is 0; set it to 0.1",
        ),
        (
            changed(distill={"steps": 2}),
            'distill.steps is 2, but train.objective is "mean-flow", which does not use it; remove it',
        ),
    ):
        with pytest.raises(InputError) as error:
            train(given, tmp_path / "run", console=QUIET)
        assert str(error.value) == line
    pipe = tiny_pipeline(
        classes=10, objective=OBJECTIVES["mean-flow"].reading(parse_recipe(RECIPE)), inputs=["interval"]
    )
    pipe.net.register_forward_pre_hook(lambda net, given: (Opaque.apply(given[0]), *given[1:]))
    with pytest.raises(InputError) as error:
        make_context(pipe, parse_recipe(RECIPE))
    assert str(error.value).startswith(
        "a layer of DiT-S/2 has no forward-mode derivative, which mean-flow needs; use another network, or distill a "
        "trained model ("
    )
