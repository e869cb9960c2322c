"""Recipes and settings; nothing here imports torch."""

from importlib import import_module
from typing import Any

_HOMES = {  # where the sections of recipes are, which version 0.1 had in this module
    "AutoencoderTraining": "sections",
    "Data": "sections",
    "Diffusion": "sections",
    "Evaluation": "evaluation",
    "Model": "sections",
    "Optim": "sections",
    "Parallel": "sections",
    "Preparation": "sections",
    "Recipe": "sections",
    "Sample": "sampling",
    "Train": "sections",
    "find_recipe": "reader",
    "parse_recipe": "reader",
    "read_toml": "reader",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"ditlab.config.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ditlab.config' has no attribute {name!r}")
