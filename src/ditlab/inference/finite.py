"""Checks that what a model generates can be decoded, and is finite; other values would become black pixels."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditlab.autoencoders import Absent
from ditlab.core.errors import InputError
from ditlab.core.types import Seed, Step
from ditlab.core.values import check_finite

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline


def finite_steps(steps: Iterator[Step], pipe: "BasePipeline", seeds: Sequence[Seed]) -> Iterator[Step]:
    """Yield all steps, and check after the last one that the images are finite.

    Args:
        steps: the steps of a sampler.
        pipe: the model, for the message.
        seeds: the seed of each image.

    Raises:
        InputError: an image is not finite.
    """
    flags = []
    for step in steps:
        flags.append(step.x.isfinite().flatten(1).all(1))  # read at the end, because that waits for the device
        yield step
    finite = torch.stack(flags).cpu()  # (steps, B)
    if finite[-1].all():
        return
    image = int((~finite[-1]).nonzero()[0])
    first = int((~finite[:, image]).nonzero()[0]) + 1
    raise InputError(
        f"{name_of(pipe)}: the image of seed {seeds[image]} is not finite from step {first} of {len(flags)}; "
        f"{remedy(pipe)}"
    )


def check_weights(pipe: "BasePipeline") -> None:
    """Check the weights of a model before it is written for others, or measured.

    Raises:
        InputError: they are not finite.
    """
    if problem := bad_weights(pipe):
        raise InputError(f"{name_of(pipe)}: {problem}")


def bad_weights(pipe: "BasePipeline") -> str:
    """Which weights are not finite, and what to do; empty if all are finite."""
    weights = pipe.model.net.state_dict() | {
        f"autoencoder.{name}": value for name, value in pipe.model.autoencoder.state_dict().items()
    }
    name = next((name for name, value in weights.items() if not value.isfinite().all()), None)
    return f"its weights {name} are not finite: use another checkpoint" if name else ""


def check_latents(pipe: "BasePipeline", x0: Tensor) -> None:
    """Check latents before they are decoded.

    Raises:
        InputError: they are not finite.
    """
    check_finite(x0, lambda i: f"{name_of(pipe)}: the latents of image {i} are not finite; {remedy(pipe)}")


def name_of(pipe: "BasePipeline") -> str:
    """The name of the network of a model."""
    return str(pipe.model.net.config.get("name", type(pipe.model.net).__name__))


def remedy(pipe: "BasePipeline") -> str:
    """What to do about images that are not finite."""
    if problem := bad_weights(pipe):
        return problem
    if pipe.net.precision != "float32":
        return "use float32"
    return "use other sampling settings, such as less guidance, or train the model further"


def check_autoencoder(pipe: "BasePipeline") -> None:
    """Check that a model can decode its latents.

    Raises:
        InputError: the model has no autoencoder.
    """
    if isinstance(pipe.autoencoder, Absent):
        raise InputError('this model has no autoencoder; load it with autoencoder=, or use output_type="latent"')
