"""What objectives and training aids may use of a run."""

from collections.abc import Callable
from dataclasses import dataclass, field

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
from ditlab.training.ema import EMA
from ditlab.training.objectives import TrainingObjective
from ditlab.training.rng import POSTERIOR, Randomness


@dataclass
class TrainingContext:
    """A run, as its objective and its aids see it."""

    pipe: Pipeline  # the model: network, process and target, autoencoder, conditioner
    recipe: Recipe
    net: Backbone  # the network that is trained
    network: Callable[..., Tensor]  # the same, or what spreads it over processes: call this one with gradients
    objective: TrainingObjective
    aids: tuple[Aid, ...] = ()
    ema: EMA | None = field(default=None)  # the average of the weights; None while a step is only timed
    trained: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    """Further modules that are trained with the network and saved in checkpoints, but are no part of the model, such as
    a projector: an objective or aid adds its own in `setup`, on `device`."""

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
        """Where the network is."""
        return self.net.device

    def latents(self, batch: Batch, randomness: Randomness) -> Tensor:
        """The data x0 (B, C, ...) float32 of a batch, on the device; without gradients."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            images = batch.x.to(self.device)
            moments = images if batch.encoded else self.autoencoder.encode(images)  # a latent cache has them
            return self.autoencoder.latents(moments, randomness.noise(POSTERIOR))

    def condition(self, batch: Batch, randomness: Randomness, generator: torch.Generator) -> Condition:
        """The conditions of a batch on the device, some replaced by "no condition" as the recipe's dropout says.

        Args:
            batch: B images.
            randomness: theirs.
            generator: of the whole batch; one value is taken for each of its images.
        """
        dropped = torch.rand(randomness.batch, generator=generator) < self.settings.label_dropout
        return self.pipe.conditioner.drop(batch.condition, randomness.part(dropped)).to(self.device)

    def trace(self, randomness: Randomness) -> Trace:
        """What the aids need from a forward pass of these images."""
        trace = Trace([tap for aid in self.aids for tap in aid.taps])
        for aid in self.aids:
            aid.prepare(self, trace, randomness)
        return trace

    def further_losses(self, forward: Regression, trace: Trace) -> dict[str, Tensor]:
        """The losses (B,) of the aids, and those that the network itself proposed, by name.

        Raises:
            InputError: two losses of one name, or one that is not a tensor (B,).
        """
        losses: dict[str, Tensor] = {}
        for part in (*(aid.losses(self, forward, trace) for aid in self.aids), trace.losses):
            check_losses(part, len(forward.x))
            if twice := losses.keys() & part.keys():
                raise InputError(f'two training aids have a loss "{min(twice)}"; rename one of them')
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
