"""The objective: what a network is trained to predict, and how x0 and eps follow from its output.

A target is a pair (a, b): the network predicts a x0 + b eps. Together with x_t = alpha x0 + sigma eps this is a 2x2
system with determinant alpha b - sigma a. Its solution is x0 and eps, so that every sampler works with every target.
Where the determinant is small, errors of the network are amplified: eps does not determine x0 where alpha = 0.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.registry import Registry, described
from ditlab.core.types import Condition, Prediction, Trace
from ditlab.diffusion.frames import in_given, mean_error
from ditlab.diffusion.process import (
    DDPM,
    Linear,
    Process,
    per_image,
)
from ditlab.diffusion.times import TIMES
from ditlab.diffusion.variational import variational_bound

SAFE = 5e-3  # with a smaller determinant, errors of the network are amplified more than 200 times
Network = Callable[..., Tensor]
"""(x_t, timestep, condition) -> (B, C or 2 C, ...); `trace=` is passed only in training with a trace."""

TARGETS: Registry[Callable[[Process, Tensor], tuple[Tensor, Tensor]]] = Registry(
    "target",
    {
        "x0": lambda process, t: (torch.ones_like(t), torch.zeros_like(t)),
        "eps": lambda process, t: (torch.zeros_like(t), torch.ones_like(t)),
        "v": lambda process, t: (-process.sigma(t), process.alpha(t)),  # Salimans & Ho 2022
        "velocity": lambda process, t: (process.alpha_dot(t), process.sigma_dot(t)),  # d x_t / dt
    },
)

# Weight of the squared error in x0 as a function of SNR = (alpha / sigma)^2; None is the squared error in the target.
WEIGHTS: Registry[Callable[[Tensor], Tensor] | None] = Registry(
    "loss weight",
    {
        "one": None,
        "min-snr": lambda snr: snr.clamp(max=5.0),  # Hang et al. 2023, gamma = 5
        # The squared error in the velocity on the linear path, for any target; sigma is at least 0.05 (Li & He 2025).
        "velocity": lambda snr: (1 + snr.sqrt()).clamp(max=20.0).square(),
    },
)


@dataclass(frozen=True)
class Regression:
    """One forward pass in training: input, output and target. All tensors but `t` are float32."""

    x0: Tensor  # (B, C, ...)
    x: Tensor  # x_t
    t: Tensor  # (B,) float64 on the CPU
    output: Tensor  # (B, C, ...), the network's estimate of `wanted`
    wanted: Tensor  # (B, C, ...), the target
    variance: Tensor | None  # (B, C, ...), the second half of the output if the variance is learned
    given: Tensor | None = None  # (B, T) bool, given frames; `output` is `wanted` there


@dataclass(frozen=True)
class Objective:
    """How a network is trained, and how its output is interpreted.

    A training objective whose networks are read in another way (a flow map, say) has a subclass in
    `ditlab.diffusion.parametrizations` that overrides `timesteps` or `denoiser`.

    With `learn_variance` the network has twice the channels, and the loss is the hybrid loss of improved DDPM (Nichol &
    Dhariwal 2021): squared error plus the variational bound, which trains the variance only. `direction` is the weight
    of a training aid, see `ditlab.training.aids.direction`; it is not part of `losses`.
    """

    process: Process = field(default_factory=Linear)
    target: str = "velocity"
    time: str = "logit-normal"
    time_mean: float = 0.0
    time_scale: float = 1.0
    stratified: bool = True
    weight: str = "one"
    direction: float = 0.0
    learn_variance: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """Further inputs of the network beside the timestep, see `ditlab.backbones.inputs`."""
        return ()

    @property
    def built_in(self) -> tuple[float, float] | None:
        """Lowest and highest guidance scale that one evaluation of the network includes; None if guidance needs two."""
        return None

    @property
    def fixed_times(self) -> str:
        """Why the model can be evaluated at the times of `check_times` only; empty if a sampler may choose them."""
        return ""

    def __post_init__(self) -> None:
        target, time, weight = TARGETS.find(self.target), TIMES.find(self.time), WEIGHTS.find(self.weight)
        values = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        pair = attempted(f'target "{self.target}"', lambda: tuple(target(self.process, values)))
        if len(pair) != 2 or not all(is_like(values, part) for part in pair) or not self.determinant(values).any():
            raise InputError(
                f'the target "{self.target}" must return finite factors (a, b) of x0 and eps for times (B,) that '
                "determine both together with x_t"
            )
        times = attempted(f'time distribution "{self.time}"', lambda: time(values, self.time_mean, self.time_scale))
        if not is_like(values, times) or times.min() < 0 or times.max() > 1:
            raise InputError(f'the time distribution "{self.time}" must return times from 0 to 1 for quantiles (B,)')
        weights = values if weight is None else attempted(f'loss weight "{self.weight}"', lambda: weight(values))
        if not is_like(values, weights) or weights.min() < 0:
            raise InputError(f'the loss weight "{self.weight}" must return finite weights from 0 for ratios (B,)')
        if self.learn_variance and not isinstance(self.process, DDPM):
            raise InputError('learn_variance needs the process "ddpm": only its discrete steps have a variance')

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Sample training times (count,), float64 on the CPU; if stratified, one in each of `count` quantiles."""
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        if self.stratified:
            u = (torch.randperm(count, generator=generator) + u) / count
        u = u.clamp(1e-6, 1 - 1e-6)
        return self.process.snap(TIMES[self.time](u, self.time_mean, self.time_scale))

    def determinant(self, t: Tensor) -> Tensor:
        """Determinant alpha b - sigma a of the system from which x0 and eps are computed."""
        a, b = TARGETS[self.target](self.process, t)
        return self.process.alpha(t) * b - self.process.sigma(t) * a

    def last_time(self) -> float:
        """Latest time at which the output determines x0; samplers start there. It is 1 for most targets."""
        times = torch.linspace(0.5, 1.0, 1001, dtype=torch.float64)
        return float(times[self.determinant(times).abs() >= SAFE].max())

    def losses(
        self,
        net: Network,
        x0: Tensor,
        condition: Condition | Tensor,
        t: Tensor,
        eps: Tensor,
        trace: Trace | None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses (B,) float32 by name; their sum is minimized.

        Args: see `regress`.
        """
        return self.terms(self.regress(net, x0, condition, t, eps, trace))

    def regress(
        self,
        net: Network,
        x0: Tensor,
        condition: Condition | Tensor,
        t: Tensor,
        eps: Tensor,
        trace: Trace | None = None,
    ) -> Regression:
        """Compute the forward pass of a training step.

        Args:
            net: (x_t, timestep, condition) -> (B, C or 2 C, ...).
            x0, eps: data and noise (B, C, ...), float32.
            condition: B rows; dropped labels are already replaced by the null condition. Given frames have no noise.
            t: times (B,) from `draw_times`.
            trace: passed to the network, for training aids that need its intermediate values.
        """
        given = condition.given if isinstance(condition, Condition) else None
        x = in_given(given, x0, self.process.add_noise(x0, eps, t))
        tracing = {} if trace is None else {"trace": trace}
        clock = self.timesteps(t, t, x) if given is None else self.clock(t, x, given)
        output, variance = self.split(net(x, clock, condition, **tracing), x)
        a, b = (per_image(c, x) for c in TARGETS[self.target](self.process, t))
        wanted = a * x0 + b * eps
        return Regression(x0, x, t, in_given(given, wanted, output), wanted, variance, given)

    def terms(self, forward: Regression) -> dict[str, Tensor]:
        """Compute the losses (B,) float32 of a forward pass, by name."""
        t, output = forward.t, forward.output
        loss = mean_error((output - forward.wanted).square(), forward.given)
        weigh = WEIGHTS[self.weight]
        if weigh is not None:
            # An error of 1 in the target is an error of sigma / determinant in x0.
            sigma, alpha = self.process.sigma(t), self.process.alpha(t)
            in_x0 = (sigma / self.determinant(t).abs().clamp(min=SAFE)).square()
            loss = loss * (weigh((alpha / sigma).square()) * in_x0).to(loss)
        losses = {"regression": loss}
        if forward.variance is not None:
            estimate = self.predict(output.detach(), forward.x, t).x0
            mix = (forward.variance + 1) / 2
            bound = variational_bound(self.process, forward.x0, estimate, forward.x, t, mix)
            losses["variational"] = mean_error(bound, forward.given) / math.log(2)  # in bits
        return losses

    def loss(
        self,
        net: Network,
        x0: Tensor,
        condition: Condition | Tensor,
        t: Tensor,
        eps: Tensor,
        trace: Trace | None = None,
    ) -> Tensor:
        """Compute the sum of `losses`, (B,) float32."""
        return reduce(operator.add, self.losses(net, x0, condition, t, eps, trace).values())

    def clock(self, t: Tensor, x: Tensor, given: Tensor | None = None) -> Tensor:
        """Return the timestep input (B,) of the network for images x, float32 on their device.

        For clips with given frames (B, T) it is (B, T): theirs is that of the data.
        """
        clock = self.process.clock(t).float().to(x.device).expand(len(x))
        if given is None:
            return clock
        return torch.where(given, float(self.process.clock(torch.zeros((), dtype=torch.float64))), clock[:, None])

    def timesteps(self, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
        """Return what the network receives in place of the timestep: (B,), or (B, 1 + n) with n further `inputs`.

        Args:
            t: time () or (B,).
            s: next time () or (B,), to which the sampler moves.
            x: images (B, C, ...) at time t.
        """
        return self.clock(t, x)

    def at_guidance(self, scale: float) -> "Objective":
        """Return the objective of a model with `built_in` guidance that predicts with this scale."""
        return self

    def check_times(self, times: Tensor, sampler: str) -> None:
        """Check that the model can take the steps of a schedule (n + 1,) with a sampler; by default it can.

        Raises:
            InputError: it cannot.
        """

    def split(self, output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split the output of a network for x (B, C, ...) into the target, and the variance if it is learned; float32.

        Raises:
            InputError: an output of another shape, which would otherwise be broadcast.
        """
        wanted = (len(x), x.shape[1] * (2 if self.learn_variance else 1), *x.shape[2:])
        if not isinstance(output, Tensor) or output.shape != wanted:
            returned = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise InputError(f"the network returned {returned} for an input of {tuple(x.shape)}; it must be {wanted}")
        output = output.float()
        if not self.learn_variance:
            return output, None
        target, variance = output.chunk(2, dim=1)
        return target, variance

    def predict(self, output: Tensor, x: Tensor, t: Tensor) -> Prediction:
        """Compute x0 and eps from the predicted target and x_t, both (B, C, ...)."""
        a, b = TARGETS[self.target](self.process, t)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        det = alpha * b - sigma * a
        det = torch.where(det.abs() < 1e-9, torch.full_like(det, 1e-9), det)
        x0 = per_image(b / det, x) * x - per_image(sigma / det, x) * output
        eps = per_image(alpha / det, x) * output - per_image(a / det, x) * x
        return Prediction(x0, eps)

    def output(self, prediction: Prediction, t: Tensor) -> Tensor:
        """Compute the target (B, C, ...) that a prediction at time t corresponds to, the inverse of `predict`."""
        a, b = (per_image(c, prediction.x0) for c in TARGETS[self.target](self.process, t))
        return a * prediction.x0 + b * prediction.eps

    def denoiser(self, net: Network) -> "Denoiser":
        """Return a network as a function (x_t, t, s, condition) -> Prediction."""
        return Denoiser(self, net)


def attempted(what: str, call: Callable[[], Any]) -> Any:
    """The result of a function that may come from outside.

    Raises:
        InputError: it failed.
    """
    try:
        return call()
    except Exception as error:
        raise InputError(f"the {what} fails: {described(error)}") from error


def is_like(values: Tensor, result: Any) -> bool:
    """Whether a result is a tensor of finite numbers of the same shape."""
    return isinstance(result, Tensor) and result.shape == values.shape and bool(result.isfinite().all())


@dataclass(frozen=True)
class Denoiser:
    """A network and its objective as a function that predicts x0 and eps, float32 in any precision of the network."""

    objective: Objective
    net: Network

    def __call__(self, x: Tensor, t: Tensor, s: Tensor, condition: Condition) -> Prediction:
        """Predict x0 and eps (B, C, ...) from x_t at time t for a step to time s, () or (B,) each.

        For rows between two conditions, the network predicts for both and the predictions are interpolated.
        """
        if condition.other is None or condition.weight is None:
            return self.predict(x, t, condition, s)
        rows = condition.weight.nonzero()[:, 0]
        first = replace(condition, other=None, weight=None)
        t, s = (time if time.ndim == 0 else torch.cat([time, time[rows.to(time.device)]]) for time in (t, s))
        both = self.predict(torch.cat([x, x[rows]]), t, Condition.cat([first, condition.other[rows]]), s)
        weight = condition.weight[rows].reshape(-1, *[1] * (x.ndim - 1))

        def mix(values: Tensor) -> Tensor:
            first, second = values[: len(x)], values[len(x) :]
            return first.index_copy(0, rows, torch.lerp(first[rows], second, weight))

        variance = both.variance_mix
        return Prediction(mix(both.x0), mix(both.eps), None if variance is None else mix(variance))

    def predict(self, x: Tensor, t: Tensor, condition: Condition, s: Tensor | None = None) -> Prediction:
        """Predict x0 and eps at x_t for a step to time s (default: t), for a condition without interpolated rows."""
        given = condition.given if isinstance(condition, Condition) else None
        if given is None:
            clock = self.objective.timesteps(t, t if s is None else s, x)
        else:
            clock = self.objective.clock(t, x, given)
        output = self.net(x, clock, condition)
        target, variance = self.objective.split(output, x)
        prediction = self.objective.predict(target, x, t)
        if variance is None:
            return prediction
        return Prediction(prediction.x0, prediction.eps, (variance + 1) / 2)
