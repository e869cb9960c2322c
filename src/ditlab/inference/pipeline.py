"""The main class of ditlab, `Pipeline`: a model with network, objective, autoencoder and conditioner.

    pipe = ditlab.load("runs/digits")
    pipe([3, "7"], seeds=[0, 1]).images

A saved model is a folder with `model.safetensors` (the weights of the network) and `config.json` (everything else).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ditlab.autoencoders import Autoencoder, Pixel
from ditlab.backbones import Backbone
from ditlab.conditioning import ClassLabels, Conditioner
from ditlab.config.sampling import outdated, preset_options
from ditlab.core.device import as_dtype, usable_device
from ditlab.core.errors import InputError
from ditlab.core.spelling import expand
from ditlab.core.types import Label
from ditlab.core.units import counted
from ditlab.core.values import EIGHT_BITS, PixelValues
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM, process_name
from ditlab.inference import saving
from ditlab.inference.adapters import add_adapter
from ditlab.inference.base import BasePipeline
from ditlab.inference.card import OLD_LICENSE
from ditlab.inference.hub import push
from ditlab.inference.output import Output as Output
from ditlab.inference.prepared import PreparedPipeline, prepare


@dataclass(init=False, repr=False)
class Pipeline(BasePipeline):
    """A trained model, which can generate, and can be saved, uploaded, exported and prepared for inference."""

    net: Backbone
    objective: Objective
    autoencoder: Autoencoder
    conditioner: Conditioner
    config: dict[str, Any]
    """Facts about the training: `recipe`, `images_seen`; and `sample`, the default sampling settings."""
    loader: ClassVar["Callable[..., Pipeline] | None"] = None
    """`ditlab.load`, which the package `checkpoints` sets, because this package may not import it."""

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
        """Combine the parts of a model.

        Args:
            net: the network.
            objective: the objective that it was trained with.
            autoencoder: the autoencoder of its latents (default: pixels).
            classes: class names of a class-conditional network.
            config: facts about the training, and default sampling settings.
            conditioner: encodes labels or prompts (default: class labels with these names).

        Raises:
            InputError: the parts do not fit together.
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
                f"this autoencoder has latents of {counted(channels, 'channel')} and the network takes "
                f"{self.net.channels}; give the autoencoder that the model was trained with"
            )

    def __repr__(self) -> str:
        name, shape = self.net.config.get("name", type(self.net).__name__), "x".join(map(str, self.shape))
        process = process_name(self.objective.process)
        return f"Pipeline({name}, {shape}, {self.objective.target} on {process}, {self.device})"

    @property
    def model(self) -> Self:  # type: ignore[override]
        """This model; a prepared pipeline returns the model that it was made from."""
        return self

    @property
    def classes(self) -> list[str]:
        """Class names; empty for other kinds of conditions."""
        return self.conditioner.names if isinstance(self.conditioner, ClassLabels) else []

    @classes.setter
    def classes(self, names: Sequence[str]) -> None:
        self.conditioner = ClassLabels(self.net.classes, names)

    @property
    def values(self) -> PixelValues:
        """What the numbers of the images are: their type, their range, and the channels that PNG files show.

        To show other channels, assign `pipe.values.showing((4, 3, 2), channels)`.
        """
        return super().values

    @values.setter
    def values(self, values: PixelValues) -> None:
        self.config.pop("values", None)
        if values != EIGHT_BITS:
            self.config["values"] = values.describe()

    def to(
        self, device: torch.device | torch.dtype | str | None = None, dtype: torch.dtype | str | None = None
    ) -> Self:
        """Move network and autoencoder to a device, and change the precision of the network; returns the same pipeline.

        Args:
            device: the device; None leaves the model where it is. A torch.dtype here is the precision.
            dtype: "float32" or "bfloat16", also as torch.dtype; None leaves the precision as it is.

        Raises:
            InputError: the device does not exist or cannot be used, or another precision.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device if dtype is None else dtype
        precision = as_dtype(dtype)
        if device is not None:
            device = usable_device(device)
            self.net.to(device)
            self.autoencoder.to(device)
        if precision is not None:
            for pipe in (self, self.second):
                if pipe is not None:
                    pipe.net.to(precision)
        return self

    def prepared(self, precision: str = "auto") -> PreparedPipeline:
        """Prepare this model for fast inference on this machine: merge layers, cast weights, and pack them for the CPU.

        Args:
            precision: "float32", "bfloat16", "int8", "float8" (CUDA only), or "auto". "auto" is the precision in which
                matrix products of this network's width are fastest, measured once per machine; int8 only on a CPU, and
                if it changes the output in a trial call by at most 2 %. Images are float32 outside the network.

        Raises:
            InputError: an unknown precision, or one for which the device has no instructions.
        """
        ready = prepare(self, precision)
        ready.second = None if self.second is None else self.second.model.prepared(ready.net.precision)
        return ready

    def fused(self) -> PreparedPipeline:
        """Return this model with merged layers for inference (see `Backbone.fused`), in the same precision."""
        ready = PreparedPipeline(self, self.net.fused())
        ready.second = None if self.second is None else self.second.model.fused()
        return ready

    def with_adapter(self, place: str | Path, scale: float = 1.0) -> Self:
        """Return this model with low-rank updates (LoRA) in the layout of peft; this one stays as it is.

        Call it on the result to add several adapters.

        Args:
            place: a folder with `adapter_config.json` and `adapter_model.safetensors`, or a hub id.
            scale: factor of the updates; 0 changes nothing, and 1 is the strength of the training.

        Raises:
            InputError: the folder holds no adapter, or one of another network or kind.
        """
        net = copy.deepcopy(self.net)
        add_adapter(net, place, scale)
        changed = replace(self, net=net)
        changed.second = None if self.second is None else self.second.model.with_adapter(place, scale)
        return changed

    def labels(self, labels: Sequence[Label]) -> Tensor | None:
        """The class indices of labels, the class count for None. An old name: use `conditioner.encode`."""
        outdated("Pipeline.labels", "Pipeline.conditioner.encode", 3)
        return self.conditioner.encode(labels).label

    def preset(self, name: str) -> dict[str, Any]:
        """The settings of a preset for this model. An old name: give `preset=`, or use `resolve`."""
        outdated("Pipeline.preset", "Pipeline.resolve", 3)
        return preset_options(name, chain=isinstance(self.objective.process, DDPM)).given()

    def save(self, folder: str | Path, name: str | None = None, *, overwrite: bool = False) -> Path:
        """Write the model as a folder, completely or not at all, and return its path.

        The folder has `model.safetensors`, `config.json` and a model card (`README.md`), and if the autoencoder has
        weights, `autoencoder.safetensors`.

        Args:
            folder: created if it does not exist.
            name: name of the model on the card (default: name of the folder).
            overwrite: replace an earlier model in the folder.

        Raises:
            InputError: the folder holds other files or, without `overwrite`, a model; or it cannot be written.
        """
        return saving.save(self, Path(expand(str(folder))), name, overwrite=overwrite)

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """The same as `save`, under the name that other libraries give it.

        Args:
            folder: created if it does not exist.
            overwrite: replace an earlier model in the folder.
        """
        return self.save(folder, overwrite=overwrite)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "Pipeline":
        """The same as `ditlab.load`, under the name that other libraries give it.

        Args:
            path: a local path, or the id of a hub repository.
            options: arguments of `ditlab.load`: revision, token, cache_dir, device and others. `torch_dtype` is
                another name of `dtype`.
        """
        if "torch_dtype" in options:
            if "dtype" in options:
                raise InputError("torch_dtype and dtype are the same setting; give dtype")
            options["dtype"] = options.pop("torch_dtype")
        if cls.loader is None:
            raise InputError("import ditlab.checkpoints before Pipeline.from_pretrained, or use ditlab.load")
        return cls.loader(path, **options)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        license: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        **old: str | None,
    ) -> str:
        """Upload the model folder to a hub repository such as "me/otters"; returns its URL.

        Needs `pip install 'ditlab[hub]'` and a token. The model card gets tags, and the model and data set of the hub
        that the model was trained from.

        Args:
            repository: OWNER/NAME; created if it does not exist.
            private: create a private repository.
            license: license of the model, for the model card.
            revision: branch to upload to; created if it does not exist (default: main).
            token: access token (default: that of `hf auth login`).
            old: the license under the spelling of version 0.1.

        Raises:
            InputError: an unknown argument, or huggingface_hub is not installed.
        """
        if set(old) - {OLD_LICENSE}:
            raise InputError(
                f"push_to_hub has no argument {', '.join(old)}; it takes private, license, revision and token"
            )
        if old:
            if license is not None:
                raise InputError(f"{OLD_LICENSE} and license are the same setting; give license")
            outdated(OLD_LICENSE, "license", 3)
        chosen = license or old.get(OLD_LICENSE)
        return push(self, repository, private=private, license=chosen, revision=revision, token=token)

    def identity(self) -> dict[str, Any]:
        """Return everything that the images depend on: architecture, objective, autoencoder, and hashes of weights."""
        return saving.identity(self)

    def describe(self) -> dict[str, Any]:
        """Return the content of `config.json`."""
        return saving.describe(self)
