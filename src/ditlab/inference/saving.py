"""Write a model as a folder with weights, configuration and model card."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from ditlab.conditioning import ClassLabels
from ditlab.core.version import __version__
from ditlab.core.weights import AUTOENCODER, CONDITIONER, CONFIG, WEIGHTS, state_hash
from ditlab.diffusion.objective import describe_objective
from ditlab.inference.card import model_card

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline


def save(pipe: "Pipeline", folder: Path, name: str | None) -> Path:
    """Write a model folder, see `Pipeline.save`."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(pipe.net.state_dict()), folder / WEIGHTS)
    for part, file in ((pipe.autoencoder, AUTOENCODER), (pipe.conditioner, CONDITIONER)):
        if tensors := dict(part.state_dict()):
            save_file(tensors, folder / file)
    description = describe(pipe)
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    card = model_card(description, name or folder.name, pipe.picture_shape[0])
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def describe(pipe: "Pipeline") -> dict[str, Any]:
    """Return the content of `config.json`."""
    return {
        "format": "ditlab",
        "version": __version__,
        "backbone": pipe.net.config | outside(type(pipe.net)),
        "objective": describe_objective(pipe.objective),
        "autoencoder": pipe.autoencoder.config,
        "classes": pipe.classes,
        **({} if isinstance(pipe.conditioner, ClassLabels) else {"conditioner": pipe.conditioner.config}),
        **pipe.config,
    }


def outside(kind: type) -> dict[str, str]:
    """Return the "package.module:Class" of a class from outside the package; loading names it if it is missing."""
    return {} if kind.__module__.partition(".")[0] == "ditlab" else {"class": f"{kind.__module__}:{kind.__qualname__}"}


def identity(pipe: "Pipeline") -> dict[str, Any]:
    """Return everything that the images of a model depend on: parts of its description, and hashes of its weights."""
    description = describe(pipe)
    return {
        "backbone": description["backbone"],
        "weights_hash": state_hash(pipe.net),
        "objective": description["objective"],
        "autoencoder": description["autoencoder"],
        "autoencoder_hash": state_hash(pipe.autoencoder),
        "images_seen": pipe.config.get("images_seen"),
        **({"values": pipe.config["values"]} if "values" in pipe.config else {}),
    }
