"""A pipeline that is prepared for inference: it generates, and the model that it was made from is `model`."""

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ditlab.backbones import Backbone
from ditlab.core.errors import InputError
from ditlab.inference.base import BasePipeline
from ditlab.inference.optimize.packing import packed
from ditlab.inference.optimize.precision import PRECISIONS, quick_precision

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline


@dataclass(init=False, repr=False)
class PreparedPipeline(BasePipeline):
    """A network that was merged, cast or packed for inference, with everything else of its model.

    It cannot be saved, exported, uploaded or described: all of these belong to `model`, whose weights and
    configuration stay those that were trained.
    """

    model: "Pipeline"
    net: Backbone

    def __init__(self, model: "Pipeline", net: Backbone) -> None:
        """Put a network into the place of the model's.

        Args:
            model: what this is made from.
            net: computes the same as the model's network, perhaps in another precision.
        """
        self.model, self.net = model, net
        self.objective, self.autoencoder, self.conditioner = model.objective, model.autoencoder, model.conditioner
        self.config = model.config

    def __repr__(self) -> str:
        return f"PreparedPipeline({str(self.dtype).removeprefix('torch.')} of {self.model!r})"

    def prepared(self, precision: str = "auto") -> "PreparedPipeline":
        """The model prepared again, perhaps in another precision."""
        return self.model.prepared(precision)


def prepare(model: "Pipeline", precision: str) -> PreparedPipeline:
    """The model with its layers merged, cast once, and packed for its CPU; see `Pipeline.prepared`."""
    if precision == "auto":
        precision = quick_precision(model.net.matrix_width, model.net.device)
    elif precision not in PRECISIONS:
        raise InputError(f'unknown precision "{precision}"; choose from: auto, {", ".join(PRECISIONS)}')
    dtype = getattr(torch, precision)
    net = model.net.fused()
    if dtype is not net.dtype:
        net = copy.deepcopy(net).to(dtype)
    return PreparedPipeline(model, packed(net))
