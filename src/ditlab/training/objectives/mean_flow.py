"""A flow map without a teacher: mean velocities follow from the derivative of the network along the path.

The mean velocity u(x_t, t, s) satisfies v = u + (t - s) du/dt, where v is the velocity at t, and du/dt is the total
derivative along the path at fixed s (Geng et al., "Mean Flows for One-step Generative Modeling", 2025, eq. 6). The
right side is regressed on eps - x0, with the derivative as a constant and the network's own velocity u(x_t, t, t) as
the direction of the path, so that the target does not depend on the network (Geng et al., "Improved Mean Flows", 2025).
"""

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditlab.backbones.inputs import RATE
from ditlab.config.sections import Recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.process import Linear, Process, per_image
from ditlab.inference.optimize.compilation import is_compiled
from ditlab.training.objectives.built_in import BuiltInGuidance, check_dropout, check_no_aids, guidance_range
from ditlab.training.rng import EPS, Randomness

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

COUNTS = tuple(range(1, 9))  # numbers of steps for which the model is made
SAME = 0.5  # share of the images that train the velocity itself, with s = t
FASTEST = 100.0  # timestep input per unit of time; at 1000, the derivative is 5 to 13 times as large as the velocity


class MeanFlow(BuiltInGuidance):
    """Trains steps of all lengths on data."""

    parametrization = FlowMap

    @classmethod
    def reading(cls, recipe: Recipe) -> FlowMap:
        plain = super().reading(recipe)
        assert isinstance(plain, FlowMap)
        return replace(plain, steps=COUNTS, interval_rate=clock_rate(plain.process) / RATE)

    def setup(self, run: "TrainingContext") -> None:
        super().setup(run)
        check_no_aids(run)
        check_process(run)
        if guidance_range(self.settings) != (1.0, 1.0):
            check_dropout(run)
        if run.recipe.parallel.sequence > 1:
            raise InputError(
                "the exchange of tokens has no forward-mode derivative, which mean-flow needs; omit parallel.sequence"
            )
        if run.recipe.parallel.shard != "none":
            raise InputError(
                "sharded weights have no forward-mode derivative, which mean-flow needs; omit parallel.shard"
            )
        if run.device.type != "meta":  # a network without weights, whose memory is predicted
            check_derivative(run)

    def losses(self, run: "TrainingContext", batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
        objective, generator = run.pipe.objective, randomness.of_batch()
        assert isinstance(objective, FlowMap)
        x0 = run.latents(batch, randomness)
        condition = run.condition(batch, randomness, generator)  # before the times: both take from the generator
        first, second = (randomness.part(objective.draw_times(randomness.batch, generator)) for _ in range(2))
        random = torch.rand(2, randomness.batch, generator=generator, dtype=torch.float64)
        same, scale = randomness.part(random[0]) < SAME, self.scales(randomness.part(random[1]))
        t = torch.maximum(first, second)
        s = torch.where(same, t, torch.minimum(first, second))
        randomness.times = t
        eps = randomness.noise(EPS)(x0)
        x = objective.process.add_noise(x0, eps, t)
        wanted = self.guided(run, eps - x0, x, t, scale)
        derivative = total_derivative(run, x, t, s, condition, scale)
        output = run.network(x, objective.timesteps_at(t, s, scale, x), condition)
        estimate = objective.split(output, x)[0] + per_image(t - s, x) * derivative
        return {"mean-flow": (estimate - wanted).square().flatten(1).mean(1)}

    @torch.no_grad()
    def guided(self, run: "TrainingContext", velocity: Tensor, x: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        """Extrapolate velocities eps - x0 (B, C, ...) from the network's velocity for the null condition."""
        if guidance_range(self.settings) == (1.0, 1.0):
            return velocity
        low, high = self.settings.guidance_interval or (0.0, 1.0)
        weight = torch.where((low <= t) & (t <= high), scale, 1.0)
        return torch.lerp(mean_velocity(run, x, t, t, run.pipe.null(len(x)), scale), velocity, per_image(weight, x))


def mean_velocity(
    run: "TrainingContext", x: Tensor, t: Tensor, s: Tensor, condition: Condition, scale: Tensor
) -> Tensor:
    """Compute the network's mean velocity (B, C, ...) at x (B, C, ...) from times t (B,) to s."""
    objective = run.pipe.objective
    assert isinstance(objective, FlowMap)
    return objective.split(run.net(x, objective.timesteps_at(t, s, scale, x), condition), x)[0]


@torch.no_grad()
def total_derivative(
    run: "TrainingContext", x: Tensor, t: Tensor, s: Tensor, condition: Condition, scale: Tensor
) -> Tensor:
    """Compute the derivative (B, C, ...) of the mean velocity by t, along the path at fixed s, in float32.

    Fused attention and compiled blocks have no forward-mode derivative.
    """
    eager = torch.compiler.set_stance("force_eager") if is_compiled(run.net) else nullcontext()
    with torch.autocast(x.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH), eager:
        path = mean_velocity(run, x, t, t, condition, scale)
        with forward_ad.dual_level():
            moving, time = (
                forward_ad.make_dual(value, rate)  # type: ignore[no-untyped-call]
                for value, rate in ((x, path), (t, torch.ones_like(t)))
            )
            output = mean_velocity(run, moving, time, s, condition, scale)
            tangent: Tensor | None = forward_ad.unpack_dual(output).tangent  # type: ignore[no-untyped-call]
    return torch.zeros_like(x) if tangent is None else tangent


def clock_rate(process: Process) -> float:
    """The change of the timestep input from data to noise, without its sign."""
    first, last = process.clock(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    return abs(last - first)


def check_process(run: "TrainingContext") -> None:
    """Check that the velocity is eps - x0, and that the derivative by the timestep input is of use.

    Raises:
        InputError: it is not.
    """
    objective = run.pipe.objective
    if not isinstance(objective.process, Linear) or objective.target != "velocity":
        raise InputError('train.objective mean-flow needs diffusion.process "linear" and diffusion.target "velocity"')
    if (rate := clock_rate(objective.process)) > FASTEST:
        raise InputError(
            f"the timestep input of the network rises to {rate:g}, too fast for the derivative that mean-flow needs; "
            f"set diffusion.process_options to {{ clock_rate = 20 }} (up to {FASTEST:g} is possible)"
        )


def check_derivative(run: "TrainingContext") -> None:
    """Check that the network has a forward-mode derivative.

    Raises:
        InputError: one of its layers has none.
    """
    x, _, condition = run.net.example(2, torch.Generator().manual_seed(0))
    t, s = torch.tensor([[0.9, 0.6], [0.3, 0.6]], dtype=torch.float64)
    try:
        derivative = total_derivative(run, x, t, s, condition, torch.ones_like(t))
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:150]
        raise InputError(
            f"a layer of {run.net.config['name']} has no forward-mode derivative, which mean-flow needs; use another "
            f"network, or distill a trained model ({reason})"
        ) from error
    assert derivative.shape == x.shape
