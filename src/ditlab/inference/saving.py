"""Write a model as a folder with weights, configuration and model card."""

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.conditioning import ClassLabels
from ditlab.core.errors import InputError
from ditlab.core.io import MANIFEST, in_use, is_vacant, moved_aside, replace_text, replacing, write_manifest, writing
from ditlab.core.model_files import INDEX, write_model
from ditlab.core.version import __version__
from ditlab.core.weights import AUTOENCODER, CONDITIONER, CONFIG, WEIGHTS, read_config, state_hash, write_tensors
from ditlab.diffusion.parametrizations import describe_objective
from ditlab.inference.card import model_card

if TYPE_CHECKING:
    from ditlab.inference.pipeline import Pipeline


CARD = "README.md"
INDEX_OF_DIFFUSERS, CODE_FOR_DIFFUSERS = "model_index.json", "pipeline.py"
CODE = Path(__file__).parents[1] / "checkpoints" / "custom_pipeline.py"  # a copy of it is written into model folders
SEVERAL = "model-?????-of-?????.safetensors"  # the weights of a large model
FILES = {  # the files of a model folder
    *(WEIGHTS, SEVERAL, INDEX, AUTOENCODER, CONDITIONER, CONFIG, CARD, MANIFEST),
    *(INDEX_OF_DIFFUSERS, CODE_FOR_DIFFUSERS),
}


def save(pipe: "Pipeline", folder: Path, name: str | None, *, overwrite: bool) -> Path:
    """Write a model folder completely or not at all, see `Pipeline.save`."""
    check_free(folder, overwrite)
    with writing(folder), replacing(folder) as draft:
        write_whole(pipe, draft, name or folder.name)
    return folder


def check_free(folder: Path, overwrite: bool) -> None:
    """Check that a model may be saved in a folder: it is new or empty, or holds an earlier model and nothing else.

    Raises:
        InputError: the folder is in use, holds other files, or holds a model and `overwrite` is false.
    """
    with writing(folder):  # fails here if the name is too long
        if (aside := moved_aside(folder)) is not None:
            aside.rename(folder)
    if in_use(folder):
        raise InputError(f"{folder} is in use by another process; give another folder")
    if folder.resolve() == Path.cwd():
        raise InputError(f"{folder} is the current folder, which cannot be replaced; give a folder in it")
    if is_vacant(folder):
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    names = sorted(path.name for path in folder.iterdir())
    if others := [name for name in names if not any(fnmatchcase(name, pattern) for pattern in FILES)]:
        raise InputError(f"{folder} holds other files ({others[0]}), which would be lost; give another folder")
    read_config(folder)  # rejects folders that ditlab did not write
    if not overwrite:
        raise InputError(f"{folder} holds a model; give another folder, or set overwrite=True to replace the model")


def write_whole(pipe: "Pipeline", folder: Path, name: str) -> Path:
    """Write a model folder with a manifest of its weights, whose hashes are checked when the model is loaded.

    The manifest leaves out `config.json` and the model card, which users edit.
    """
    write(pipe, folder, name)
    write_for_diffusers(pipe, folder)
    write_manifest(folder, "*.safetensors")
    return folder


def write_for_diffusers(pipe: "Pipeline", folder: Path) -> None:
    """Write what `DiffusionPipeline.from_pretrained` needs to open the folder with ditlab."""
    index = {
        "_class_name": [Path(CODE_FOR_DIFFUSERS).stem, "DitlabPipeline"],
        "_diffusers_version": "0.35.0",  # the oldest that ditlab supports
        "weights_hash": state_hash(pipe.net),
    }
    replace_text(folder / INDEX_OF_DIFFUSERS, json.dumps(index, indent=2) + "\n")
    replace_text(folder / CODE_FOR_DIFFUSERS, CODE.read_text(encoding="utf-8"))


def write(pipe: "Pipeline", folder: Path, name: str) -> Path:
    """Write the files of a model into a folder, which is created."""
    write_model(pipe.net.state_dict(), folder)
    return write_others(pipe, folder, name)


def write_others(pipe: "Pipeline", folder: Path, name: str) -> Path:
    """Write the files of a model except the weights of its network."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, file in ((pipe.autoencoder, AUTOENCODER), (pipe.conditioner, CONDITIONER)):
        if tensors := dict(part.state_dict()):
            write_tensors(tensors, folder / file)
    description = describe(pipe)
    replace_text(folder / CONFIG, json.dumps(description, indent=2) + "\n")
    replace_text(folder / CARD, model_card(description, name, pipe.picture_shape[0]))
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
