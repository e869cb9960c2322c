"""A model as a folder: weights, configuration and model card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from ditlab.core.version import __version__
from ditlab.core.weights import AUTOENCODER, CONFIG, WEIGHTS, state_hash
from ditlab.diffusion.process import process_name
from ditlab.inference.card import model_card

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline


def save(pipe: "Pipeline", folder: Path, name: str | None) -> Path:
    """Write a model folder, see `Pipeline.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(pipe.net.state_dict()), folder / WEIGHTS)
    if tensors := dict(pipe.autoencoder.state_dict()):
        save_file(tensors, folder / AUTOENCODER)
    description = describe(pipe)
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(description, name or folder.name), encoding="utf-8")
    return folder


def describe(pipe: "Pipeline") -> dict[str, Any]:
    """The content of `config.json`."""
    objective = asdict(pipe.objective)
    process = {"name": process_name(pipe.objective.process), **asdict(pipe.objective.process)}  # type: ignore[call-overload]
    return {
        "format": "ditlab",
        "version": __version__,
        "backbone": pipe.net.config,
        "objective": objective | {"process": process},
        "autoencoder": pipe.autoencoder.config,
        "classes": pipe.classes,
        **pipe.config,
    }


def identity(pipe: "Pipeline") -> dict[str, Any]:
    """Everything that decides the images of a model: its description, and hashes of its weights."""
    description = describe(pipe)
    return {
        "backbone": description["backbone"],
        "weights_hash": state_hash(pipe.net),
        "objective": description["objective"],
        "autoencoder": description["autoencoder"],
        "autoencoder_hash": state_hash(pipe.autoencoder),
        "images_seen": pipe.config.get("images_seen"),
    }
