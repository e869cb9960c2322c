"""ditlab: train, sample and compare diffusion transformers.

The public names are loaded when they are first used, so that `import ditlab` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ditlab.backbones import create as create
    from ditlab.errors import InputError as InputError
    from ditlab.evaluation.protocol import evaluate as evaluate
    from ditlab.interop import load as load
    from ditlab.pipeline import Pipeline as Pipeline
    from ditlab.training import train as train
    from ditlab.types import between as between

_HOMES = {
    "create": "ditlab.backbones",
    "evaluate": "ditlab.evaluation.protocol",
    "load": "ditlab.interop",
    "Pipeline": "ditlab.pipeline",
    "train": "ditlab.training",
    "InputError": "ditlab.errors",
    "between": "ditlab.types",
}
_PARTS = ("autoencoders", "backbones", "data", "diffusion", "evaluation", "interop", "samplers", "training")

__all__ = ["InputError", "Pipeline", "__version__", "between", "create", "evaluate", "load", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _PARTS:
        return import_module(f"ditlab.{name}")
    raise AttributeError(f"module 'ditlab' has no attribute {name!r}")
