"""ditlab: train, sample and compare diffusion transformers.

The public names are loaded when they are first used, so that `import ditlab` costs nothing.
"""

import sys
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ditlab.core.version import __version__

if TYPE_CHECKING:
    from ditlab.auto import train_folder as train_folder
    from ditlab.backbones import create as create
    from ditlab.checkpoints import load as load
    from ditlab.config.sections import Recipe as Recipe
    from ditlab.core.errors import InputError as InputError
    from ditlab.core.types import Condition as Condition
    from ditlab.core.types import between as between
    from ditlab.evaluation.protocols import evaluate as evaluate
    from ditlab.inference.pipeline import Pipeline as Pipeline
    from ditlab.inference.rollout import rollout as rollout
    from ditlab.training import distill as distill
    from ditlab.training import train as train

_HOMES = {
    "Condition": "ditlab.core.types",
    "InputError": "ditlab.core.errors",
    "Pipeline": "ditlab.checkpoints",
    "Recipe": "ditlab.config.sections",
    "between": "ditlab.core.types",
    "create": "ditlab.backbones",
    "distill": "ditlab.training",
    "evaluate": "ditlab.evaluation.protocols",
    "load": "ditlab.checkpoints",
    "rollout": "ditlab.inference.rollout",
    "train": "ditlab.training",
    "train_folder": "ditlab.auto",
}
_PARTS = {
    "interop": "ditlab.checkpoints",  # until the next release
    "samplers": "ditlab.diffusion.samplers",
} | {
    name: f"ditlab.{name}"
    for name in (
        "autoencoders",
        "backbones",
        "checkpoints",
        "conditioning",
        "data",
        "diffusion",
        "evaluation",
        "inference",
        "training",
    )
}
_KINDS = (
    "aid",
    "autoencoder",
    "backbone",
    "conditioner",
    "dataset",
    "encoder",
    "features",
    "metric",
    "objective",
    "parametrization",
    "process",
    "sampler",
    "schedule",
    "target",
    "time",
    "tracker",
    "weight",
)

__all__ = ["__version__", *_HOMES, *(f"register_{kind}" for kind in _KINDS)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _PARTS:
        return import_module(_PARTS[name])
    kind = name.removeprefix("register_")
    if name != kind and kind in _KINDS:
        return partial(import_module("ditlab.core.registry").register, kind)
    # With name and object Python itself proposes the nearest name.
    raise AttributeError(f"module 'ditlab' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*__all__, *_PARTS})
