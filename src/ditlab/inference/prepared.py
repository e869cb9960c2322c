"""`PreparedPipeline`: a model with a network that is optimized for inference."""

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
    """A model whose network has been merged, cast or packed for inference.

    To save, export or upload, use its `model`, which has the weights and the configuration of the training.
    """

    model: "Pipeline"
    net: Backbone

    def __init__(self, model: "Pipeline", net: Backbone) -> None:
        """Combine a model with an optimized network.

        Args:
            model: the model.
            net: a network with the same outputs as the network of the model, possibly in another precision.
        """
        self.model, self.net = model, net
        self.objective, self.autoencoder, self.conditioner = model.objective, model.autoencoder, model.conditioner
        self.config = model.config

    def __repr__(self) -> str:
        return f"PreparedPipeline({str(self.dtype).removeprefix('torch.')} of {self.model!r})"

    def prepared(self, precision: str = "auto") -> "PreparedPipeline":
        """Prepare the model again, possibly in another precision."""
        return self.model.prepared(precision)


def prepare(model: "Pipeline", precision: str) -> PreparedPipeline:
    """Prepare a model for inference, see `Pipeline.prepared`."""
    if precision == "auto":
        precision = quick_precision(model.net.matrix_width, model.net.device)
    elif precision not in PRECISIONS:
        raise InputError(f'unknown precision "{precision}"; choose from: auto, {", ".join(PRECISIONS)}')
    dtype = getattr(torch, precision)
    net = model.net.fused()
    if dtype is not net.dtype:
        net = copy.deepcopy(net).to(dtype)
    return PreparedPipeline(model, packed(net))
