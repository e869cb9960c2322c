# mypy: disable-error-code="no-untyped-call,attr-defined,misc"
"""Open this model folder with diffusers; ditlab must be installed.

    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
    pipe("cat", num_inference_steps=20).images

ditlab writes this file as `pipeline.py` into every model folder. ditlab itself does not run it.
"""

from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ditlab.checkpoints import Pipeline, load


class DitlabPipeline(DiffusionPipeline):
    """A model of ditlab with the interface of a pipeline of diffusers.

    Args:
        weights_hash: hash of the network's weights, from `model_index.json`.
    """

    def __init__(self, weights_hash: str = "") -> None:
        super().__init__()
        self.register_to_config(weights_hash=weights_hash)

    @cached_property
    def model(self) -> Pipeline:
        """The model of ditlab, which is loaded when it is first used.

        Raises:
            ValueError: the weights are not those of the folder or revision that was opened.
        """
        pipe = load(self.name_or_path, device="cpu")
        if (expected := self.config.weights_hash) and (actual := pipe.identity()["weights_hash"]) != expected:
            raise ValueError(
                f"{self.name_or_path} holds weights with the hash {actual}, and {expected} was opened; for another "
                "revision than main, download it and give its folder"
            )
        return pipe

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    def to(self, device: torch.device | str) -> "DitlabPipeline":
        """Move the model to a device. For another precision, use `pipe.model.prepared`."""
        self.model.to(device)
        return self

    def __call__(self, labels: Any = None, *, return_dict: bool = True, **options: Any) -> Any:
        """Generate images; the arguments are those of a pipeline of ditlab, or the names of diffusers for them.

        Args:
            labels: class names or prompts.
            return_dict: return an output with `images`, and for clips `videos`; otherwise a tuple with the images.
            options: num_inference_steps, guidance_scale, generator, negative_prompt and others.
        """
        out = self.model(labels, **options)
        return out if return_dict else (out.images,)

    def save_pretrained(self, folder: str, **options: Any) -> None:
        """Save the model as a folder of ditlab.

        Args:
            folder: created if it does not exist.
            options: `overwrite=True` replaces an earlier model.
        """
        self.model.save_pretrained(folder, **options)
