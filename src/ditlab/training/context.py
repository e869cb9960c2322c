"""The context that objectives and training aids receive: the model, the recipe, and operations on batches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ditlab.autoencoders import Autoencoder
from ditlab.backbones import Backbone
from ditlab.config.sections import Recipe, Train
from ditlab.core.errors import InputError
from ditlab.core.types import Batch, Condition, Trace
from ditlab.diffusion.objective import Regression
from ditlab.inference.pipeline import Pipeline
from ditlab.training.aids import Aid
from ditlab.training.captions import CaptionConditions
from ditlab.training.ema import EMA
from ditlab.training.given import given_frames
from ditlab.training.objectives import TrainingObjective
from ditlab.training.rng import POSTERIOR, Randomness


@dataclass
class TrainingContext:
    """The parts of a training run that its objective and its aids can use."""

    pipe: Pipeline  # the model: network, process and target, autoencoder, conditioner
    recipe: Recipe
    net: Backbone  # the network that is trained
    network: Callable[..., Tensor]  # call this one for gradients: `net`, or DDP around it
    objective: TrainingObjective
    aids: tuple[Aid, ...] = ()
    ema: EMA | None = field(default=None)  # the average of the weights; None when a step is only timed
    several_sizes: bool = False  # whether the images of the data have several sizes
    features: Mapping[str, Any] = field(default_factory=dict)  # `Dataset.image_features` of the data
    batch: Batch | None = None  # the images whose losses are computed at present
    captions: CaptionConditions | None = None  # the conditions of captions; None if batches have their conditions
    trained: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """Further modules, such as a projector, that are trained with the network and saved in checkpoints, but are not
    part of the model. Objectives and aids add them in `setup`, on `device`."""

    @property
    def settings(self) -> Train:
        """The recipe's [train] section."""
        return self.recipe.train

    @property
    def autoencoder(self) -> Autoencoder:
        """The autoencoder of the latents."""
        return self.pipe.autoencoder

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.net.device

    def latents(self, batch: Batch, randomness: Randomness) -> Tensor:
        """The clean latents x0 (B, C, ...) float32 of a batch, on the device and without gradients.

        Args:
            batch: B images, or their moments from a latent cache.
            randomness: the randomness of these images, from which the posterior is sampled.
        """
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            images = batch.x.to(self.device)
            moments = images if batch.encoded else self.autoencoder.encode(images)
            return self.autoencoder.latents(moments, randomness.noise(POSTERIOR))

    def condition(self, batch: Batch, randomness: Randomness, generator: torch.Generator) -> Condition:
        """The conditions of a batch on the device, randomly dropped with the probability `train.label_dropout`.

        What each of several text encoders has computed is dropped with its probability in `train.encoder_dropout`.

        Some frames of clips are given, with the probabilities `train.given_first` and so on.

        Args:
            batch: B images.
            randomness: the randomness of these images.
            generator: generator of the whole batch, from which one value is sampled for each image of it.
        """
        dropped = torch.rand(randomness.batch, generator=generator) < self.settings.label_dropout
        condition = batch.condition
        if self.captions is not None:
            assert batch.index is not None
            condition = self.captions.condition(batch.index, randomness)
        condition = self.pipe.conditioner.drop(condition, randomness.part(dropped))
        lacking = {
            name: randomness.part(torch.rand(randomness.batch, generator=generator) < share)
            for name, share in sorted(self.settings.encoder_dropout.items())
        }
        condition = self.pipe.conditioner.drop_encoders(condition, lacking).to(self.device)
        if batch.x.ndim != 5:
            return condition
        given = given_frames(self.settings, randomness.batch, batch.x.shape[2], generator)
        return condition if given is None else condition.with_given(randomness.part(given).to(self.device))

    def trace(self, randomness: Randomness) -> Trace:
        """A trace with which a forward pass records the values that the aids need.

        Args:
            randomness: the randomness of the images.
        """
        trace = Trace([tap for aid in self.aids for tap in aid.taps])
        for aid in self.aids:
            aid.prepare(self, trace, randomness)
        return trace

    def further_losses(self, forward: Regression, trace: Trace) -> dict[str, Tensor]:
        """The losses (B,) of the aids and of the network itself, by name.

        Args:
            forward: the forward pass of the network.
            trace: the values that it recorded.

        Raises:
            InputError: two losses have the same name, or one is not a tensor (B,).
        """
        losses: dict[str, Tensor] = {}
        for part in (*(aid.losses(self, forward, trace) for aid in self.aids), trace.losses):
            check_losses(part, len(forward.x))
            if repeated := losses.keys() & part.keys():
                raise InputError(f'two training aids have a loss "{min(repeated)}"; rename one of them')
            losses |= part
        return losses


def check_losses(losses: object, count: int) -> None:
    """Refuse losses that are not one number for each image.

    Raises:
        InputError: what was returned instead.
    """
    if not isinstance(losses, dict):
        raise InputError(f"a training aid returned a {type(losses).__name__}; return a dictionary of losses by name")
    for name, value in losses.items():
        if not isinstance(value, Tensor) or value.shape != (count,):
            returned = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise InputError(
                f'the loss "{name}" of a training aid is {returned}; return a tensor ({count},), one '
                "number for each image"
            )
