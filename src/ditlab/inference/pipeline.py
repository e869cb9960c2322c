"""A model as people use it: network + objective + autoencoder + conditioner, in one folder.

    pipe = ditlab.load("runs/digits")
    pipe([3, "7"], seeds=[0, 1]).images

A saved model is a folder with `model.safetensors` (the weights) and `config.json` (everything else).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ditlab.autoencoders import Autoencoder, Pixel
from ditlab.backbones import Backbone
from ditlab.conditioning import ClassLabels, Conditioner
from ditlab.config.sampling import outdated, preset_options
from ditlab.core.errors import InputError
from ditlab.core.types import Label
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, process_name
from ditlab.inference import saving
from ditlab.inference.base import BasePipeline
from ditlab.inference.card import OLD_LICENSE
from ditlab.inference.hub import push
from ditlab.inference.output import Output as Output
from ditlab.inference.prepared import PreparedPipeline, prepare


@dataclass(init=False, repr=False)
class Pipeline(BasePipeline):
    """A trained model: it generates, and it can be saved, uploaded, exported and prepared for inference."""

    net: Backbone
    objective: Objective
    autoencoder: Autoencoder
    conditioner: Conditioner
    config: dict[str, Any]
    """Where the model comes from: `recipe`, `images_seen`; `sample` holds the defaults of sampling."""

    def __init__(
        self,
        net: Backbone,
        objective: Objective,
        autoencoder: Autoencoder | None = None,
        classes: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        *,
        conditioner: Conditioner | None = None,
    ) -> None:
        """A model from its parts.

        Args:
            net, objective: the network, and how it was trained.
            autoencoder: the autoencoder of its latents (default: pixels).
            classes: names of the classes of a class-conditional network.
            config: where the model comes from.
            conditioner: turns labels or prompts into conditions (default: class labels with these names).

        Raises:
            InputError: parts that do not fit together.
        """
        self.net, self.objective = net, objective
        self.autoencoder = Pixel() if autoencoder is None else autoencoder
        self.conditioner = ClassLabels(net.classes, classes) if conditioner is None else conditioner
        self.config = {} if config is None else config
        if self.net.learn_variance != self.objective.learn_variance:
            raise InputError(
                f"learn_variance is {self.net.learn_variance} in the network and {self.objective.learn_variance} "
                "in the objective; make them equal"
            )
        channels = self.autoencoder.latent_channels
        if channels not in (None, self.net.channels):
            raise InputError(
                f"this autoencoder has latents of {channels} channels and the network takes {self.net.channels}; "
                "give the autoencoder that the model was trained with"
            )

    def __repr__(self) -> str:
        name, shape = self.net.config.get("name", type(self.net).__name__), "x".join(map(str, self.shape))
        process = process_name(self.objective.process)
        return f"Pipeline({name}, {shape}, {self.objective.target} on {process}, {self.device})"

    @property
    def model(self) -> Self:  # type: ignore[override]
        """This model; a prepared pipeline has the model that it was made from here."""
        return self

    @property
    def classes(self) -> list[str]:
        """Names of the classes; none for another kind of condition."""
        return self.conditioner.names if isinstance(self.conditioner, ClassLabels) else []

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        self.conditioner = ClassLabels(self.net.classes, names)

    def to(self, device: torch.device | str) -> Self:
        """Move network and autoencoder to a device; returns the same pipeline."""
        self.net.to(device)
        self.autoencoder.to(device)
        return self

    def prepared(self, precision: str = "auto") -> PreparedPipeline:
        """This model for inference on this machine: its layers merged, cast once, and packed for its CPU.

        Args:
            precision: "float32", "bfloat16", or "auto" for the one in which matrix products of this network's width
                are faster here, which is timed once for each machine. Images are float32 outside the network.

        Raises:
            InputError: another precision.
        """
        return prepare(self, precision)

    def fused(self) -> PreparedPipeline:
        """This model with its layers merged for inference, see `Backbone.fused`; in its own precision, not packed."""
        return PreparedPipeline(self, self.net.fused())

    def labels(self, labels: Sequence[Label]) -> Tensor | None:
        """The class indices of labels, the class count for None. An old name: use `conditioner.encode`."""
        outdated("Pipeline.labels", "Pipeline.conditioner.encode", 3)
        return self.conditioner.encode(labels).label

    def preset(self, name: str) -> dict[str, Any]:
        """The settings of a preset for this model. An old name: give `preset=`, or use `resolve`."""
        outdated("Pipeline.preset", "Pipeline.resolve", 3)
        return preset_options(name, chain=isinstance(self.objective.process, DDPM)).given()

    def save(self, folder: str | Path, name: str | None = None) -> Path:
        """Write `model.safetensors`, `config.json` and a model card; an existing model in the folder is replaced.
        An autoencoder with weights goes into `autoencoder.safetensors`.

        Args:
            folder: made if it does not exist.
            name: the model's name on the card (default: the folder's name).
        """
        return saving.save(self, Path(folder), name)

    def push_to_hub(
        self, repository: str, *, private: bool = False, license: str | None = None, **old: str | None
    ) -> str:
        """Upload the model folder to a hub repository such as "me/otters"; returns its address.

        Needs `pip install 'ditlab[hub]'` and a token (`hf auth login`).

        Args:
            repository: OWNER/NAME; made if it does not exist.
            private: make it private.
            license: the license that the model card states.
            old: the spelling of version 0.1.
        """
        if set(old) - {OLD_LICENSE}:
            raise InputError(f"push_to_hub has no argument {', '.join(old)}; it takes private and license")
        if old:
            if license is not None:
                raise InputError(f"{OLD_LICENSE} and license are the same setting; give license")
            outdated(OLD_LICENSE, "license", 3)
        return push(self, repository, private=private, license=license or old.get(OLD_LICENSE))

    def identity(self) -> dict[str, Any]:
        """Everything that decides the images: architecture, objective, autoencoder, and hashes of weights."""
        return saving.identity(self)

    def describe(self) -> dict[str, Any]:
        """The content of `config.json`."""
        return saving.describe(self)
