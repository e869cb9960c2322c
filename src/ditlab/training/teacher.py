"""The teacher of a distillation: a trained model whose predictions and images a student learns."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditlab.autoencoders import Latent
from ditlab.autoencoders.io import fingerprint
from ditlab.checkpoints import load
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Prediction
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.guidance import cfg
from ditlab.diffusion.process import per_image
from ditlab.diffusion.samplers import SAMPLERS
from ditlab.inference.extras import encoded_pair
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.prepared import PreparedPipeline

if TYPE_CHECKING:
    from ditlab.training.context import TrainingContext

SAMPLER = "ab2"  # deterministic, one evaluation for each step; with few steps its images are better than those of ab4


@dataclass(frozen=True)
class Teacher:
    """A trained model, prepared for inference, with the guidance settings that it was saved with."""

    pipe: PreparedPipeline
    interval: tuple[float, float]  # times between which guidance acts
    channels: int | None  # number of first channels that are guided; None is all

    @classmethod
    def of(cls, run: "TrainingContext") -> "Teacher":
        """Load the teacher of a run, and check that it fits the student.

        Raises:
            InputError: there is none, or it generates something else than the student.
        """
        place = run.recipe.distill.teacher or run.settings.init_from
        if not place:
            raise InputError(
                f'train.objective is "{run.settings.objective}", which needs a teacher; set train.init_from or '
                "distill.teacher"
            )
        pipe = load(place, device=run.device)
        check_teacher(pipe, place, run.pipe)
        plan = pipe.resolve()
        prepared = pipe.prepared(run.settings.precision)
        prepared.net.eval().requires_grad_(False)
        interval = run.recipe.distill.guidance_interval or plan.interval
        return cls(prepared, interval, plan.options.guidance_channels)

    @property
    def built_in(self) -> bool:
        """Whether the teacher has its guidance built in, so that it needs one evaluation for it."""
        return self.pipe.objective.built_in is not None

    @torch.no_grad()
    def predict(self, x: Tensor, t: Tensor, condition: Condition, scale: Tensor) -> Prediction:
        """Predict x0 and eps (B, C, ...) with guidance.

        Args:
            x: x_t (B, C, ...).
            t: times (B,).
            condition: B rows.
            scale: guidance scale (B,) of each image.
        """
        net, objective = self.pipe.net, self.pipe.objective
        if self.built_in or bool((scale == 1).all()):
            scaled = objective.at_guidance(float(scale[0])) if self.built_in else objective
            return scaled.denoiser(net)(x, t, t, condition)
        null = self.pipe.null(len(x))
        joint = objective.denoiser(net)(torch.cat([x, x]), torch.cat([t, t]), torch.cat([t, t]), condition.joined(null))
        low, high = self.interval
        weight = per_image(torch.where((t >= low) & (t <= high), scale.to(t), 1.0), x)

        def guided(values: Tensor) -> Tensor:
            good, bad = values.chunk(2)
            count = good.shape[1] if self.channels is None else self.channels
            return torch.cat([torch.lerp(bad, good, weight)[:, :count], good[:, count:]], dim=1)

        return Prediction(guided(joint.x0), guided(joint.eps))

    @torch.no_grad()
    def states(self, noise: Tensor, condition: Condition, scale: float, times: Tensor, parts: int) -> Tensor:
        """Generate images, and return their states at some times of the trajectory, (n + 1, B, C, ...) float32.

        Args:
            noise: Gaussian noise (B, C, ...).
            condition: B rows.
            scale: guidance scale.
            times: the decreasing times (n + 1,) of the states.
            parts: steps that the teacher takes between two of them.
        """
        objective, net = self.pipe.objective.at_guidance(scale), self.pipe.net
        denoiser = objective.denoiser(net)
        outer = 1.0 if self.built_in else scale
        text, null = encoded_pair(net, condition, self.pipe.null(len(condition)), outer)
        denoise = cfg(denoiser, text, null, outer, self.interval, self.channels)
        schedule = refined(times, parts)
        deviation = float(torch.hypot(objective.process.alpha(times[0]), objective.process.sigma(times[0])))
        states = [noise * deviation]
        with torch.autocast(noise.device.type, enabled=False):
            for step in SAMPLERS[SAMPLER](denoise, objective.process, states[0], schedule, torch.zeros_like):
                if (step.i + 1) % parts == 0:
                    states.append(step.x)
        return torch.stack(states)


def refined(times: Tensor, parts: int) -> Tensor:
    """Divide each interval of decreasing times (n + 1,) into equal parts: (n parts + 1,)."""
    pieces = [torch.linspace(float(t), float(s), parts + 1, dtype=torch.float64)[:-1] for t, s in pairwise(times)]
    return torch.cat([*pieces, times[-1:]])


def check_teacher(teacher: Pipeline, place: str, student: Pipeline) -> None:
    """Check that a student can learn from a teacher.

    Raises:
        InputError: the teacher is a flow map, or generates something else than the student.
    """
    if isinstance(teacher.objective, FlowMap):
        raise InputError(f"{place} is a flow map already; give the model that it was distilled from")
    same_latents = [
        fingerprint(pipe.autoencoder) if isinstance(pipe.autoencoder, Latent) else pipe.autoencoder.config
        for pipe in (teacher, student)
    ]
    if teacher.shape != student.shape or same_latents[0] != same_latents[1]:
        here, there = (shown(pipe.shape) for pipe in (student, teacher))
        raise InputError(
            f"{place} generates {there} in another latent space than the student ({here}); give a teacher with the "
            "autoencoder and the size of the data"
        )
    if teacher.conditioner.config != student.conditioner.config:
        raise InputError(f"{place} has other classes, or another condition, than the student; give another teacher")
    if teacher.objective.process != student.objective.process:
        raise InputError(f"{place} has another diffusion process than the student; leave process and target out")


def shown(shape: Sequence[int]) -> str:
    """A shape in the form "4x32x32"."""
    return "x".join(map(str, shape))
