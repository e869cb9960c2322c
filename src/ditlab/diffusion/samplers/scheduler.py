"""Schedulers of diffusers as samplers: `pipe(3, sampler=DPMSolverMultistepScheduler())`.

A scheduler has its own noise levels and scales. Each of its levels is converted to the time of the process with the
same log-SNR, so that every scheduler works with every process and prediction target.
"""

import inspect
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from ditlab.core.errors import InputError
from ditlab.core.types import Denoise, Noise, Prediction, Step
from ditlab.diffusion.process import Process

SCALES = {  # class -> how its states are scaled; those that call the network once per step and have been tested
    "FlowMatchEulerDiscreteScheduler": "flow",
    "DDIMScheduler": "chain",
    "DDPMScheduler": "chain",
    "DPMSolverMultistepScheduler": "preserving",
    "UniPCMultistepScheduler": "preserving",
    "DEISMultistepScheduler": "preserving",
    "EulerDiscreteScheduler": "exploding",
    "EulerAncestralDiscreteScheduler": "exploding",
}


def is_scheduler(value: object) -> bool:
    """Whether a value has the interface of a scheduler of diffusers."""
    return hasattr(value, "set_timesteps") and hasattr(value, "step")


class SchedulerSampler:
    """A scheduler of diffusers with the interface of a sampler.

    Args:
        scheduler: the scheduler, which is copied.

    Raises:
        InputError: a class in place of a scheduler, one that is not supported, or a learned variance.
    """

    def __init__(self, scheduler: Any) -> None:
        if isinstance(scheduler, type):
            raise InputError(
                f"sampler is the class {scheduler.__name__}; give a scheduler, such as {scheduler.__name__}()"
            )
        self.scheduler, self.__name__ = deepcopy(scheduler), type(scheduler).__name__
        if self.__name__ not in SCALES:
            raise InputError(f"scheduler {self.__name__} is not supported; choose from: {', '.join(SCALES)}")
        if str(scheduler.config.get("variance_type", "")).startswith("learned"):
            raise InputError(f"{self.__name__} expects a learned variance; use the sampler ddpm")

    def check(self, explicit: Iterable[str], *, from_noise: bool) -> None:
        """Check that other sampling settings fit a scheduler.

        Args:
            explicit: names of the settings that were given.
            from_noise: whether there is no image to start from.

        Raises:
            InputError: there is another schedule, or an image to start from.
        """
        if names := {"schedule", "shift"} & set(explicit):
            raise InputError(f"{self.__name__} has its own timesteps; leave {min(names)} out")
        if not from_noise:
            raise InputError(f"{self.__name__} starts from noise only; use a sampler of ditlab for image-to-image")

    def times(self, process: Process, steps: int) -> Tensor:
        """Return the times (steps + 1,) of the process, from noise to 0, that have the noise levels of the scheduler.

        Raises:
            InputError: the scheduler does not accept the number of steps.
        """
        if steps < 1:
            raise InputError(f"steps is {steps}; give 1 or more")
        try:
            self.scheduler.set_timesteps(steps)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.__name__} with {steps} steps: {error}") from None
        data, noise = self.levels().unbind()
        return torch.cat([process.time_of(data.log() - noise.log()), torch.zeros(1, dtype=torch.float64)])

    def levels(self) -> Tensor:
        """Return the weights (2, steps) of data and noise in the states of the scheduler, float64."""
        scheduler = self.scheduler
        scale = "flow" if scheduler.config.get("use_flow_sigmas") else SCALES[self.__name__]
        if scale == "chain":
            kept = scheduler.alphas_cumprod.double()[scheduler.timesteps.cpu()]
            return torch.stack([kept.sqrt(), (1 - kept).sqrt()])
        sigmas = scheduler.sigmas.double().cpu()[: len(scheduler.timesteps)]
        if scale == "flow":
            return torch.stack([1 - sigmas, sigmas])
        pairs = torch.stack([torch.ones_like(sigmas), sigmas])
        return pairs if scale == "exploding" else pairs / torch.linalg.vector_norm(pairs, dim=0)

    def __call__(self, denoise: Denoise, process: Process, x: Tensor, schedule: Tensor, noise: Noise) -> Iterator[Step]:
        """Run the scheduler with the predictions of a model at the times that `times` returned."""
        scheduler = deepcopy(self.scheduler)
        scheduler.set_timesteps(len(schedule) - 1, device=x.device)
        options: dict[str, Any] = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            options["generator"] = [generator(row) for row in noise(x.new_empty(len(x), 1)).cpu()]
        own = torch.stack([process.alpha(schedule), process.sigma(schedule)])
        levels = torch.cat([self.levels(), torch.tensor([[1.0], [0.0]], dtype=torch.float64)], dim=1)
        # States of both have the same log-SNR, and so differ by a factor.
        factors = (torch.linalg.vector_norm(levels, dim=0) / torch.linalg.vector_norm(own, dim=0)).tolist()
        state = x * factors[0]
        for i, timestep in enumerate(scheduler.timesteps):
            prediction = denoise(state / factors[i], schedule[i], schedule[i + 1])
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(state, timestep)  # some warn if it is not called
            output = self.output(prediction, levels[:, i])
            state = scheduler.step(output, timestep, state, return_dict=False, **options)[0]
            yield Step(i, float(schedule[i + 1]), state / factors[i + 1], prediction.x0)

    def output(self, prediction: Prediction, level: Tensor) -> Tensor:
        """Return what the scheduler expects from a network, at a level of (data, noise)."""
        kind = self.scheduler.config.get("prediction_type", "flow_prediction")
        if kind == "epsilon":
            return prediction.eps
        if kind == "sample":
            return prediction.x0
        if kind == "v_prediction":
            data, noise = (level / torch.linalg.vector_norm(level)).tolist()
            return data * prediction.eps - noise * prediction.x0
        if kind != "flow_prediction":
            raise InputError(f'{self.__name__} expects the prediction "{kind}", which is not supported')
        return prediction.eps - prediction.x0


def generator(row: Tensor) -> torch.Generator:
    """Return a generator on the CPU for the noise of one image, from a random number (1,) of the image."""
    return torch.Generator().manual_seed(int(row.view(torch.int32)) & 0x7FFFFFFF)
