"""Read models from ditlab's model and run folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditlab.autoencoders.io import read_part
from ditlab.backbones import create
from ditlab.backbones.lora import plain
from ditlab.conditioning import ClassLabels, Conditioner, create_conditioner
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init
from ditlab.core.registry import check_imported, imported_parts_only
from ditlab.core.weights import (
    ADAPTER,
    AVERAGED,
    CONDITIONER,
    CONFIG,
    RAW,
    WEIGHTS,
    fit,
    newest_checkpoint,
    read_config,
    read_tensors,
    read_weights,
    state_hash,
)
from ditlab.diffusion.objective import read_objective
from ditlab.inference.pipeline import Pipeline


@imported_parts_only()
def load_folder(path: Path, weights: str = "ema", load_source: "Callable[[str], Pipeline] | None" = None) -> Pipeline:
    """Load a model that ditlab saved, or the newest checkpoint of a training run.

    Args:
        path: a model folder or a run folder.
        weights: "ema", or "model" for the raw weights of a training checkpoint.
        load_source: loads the source model of low-rank updates that were saved separately.

    Raises:
        InputError: the path holds no model, or a file is incomplete or does not fit its config.
    """
    folder = newest_checkpoint(path) or path
    config = read_config(folder)
    try:
        backbone = dict(config.pop("backbone"))
        size = tuple(backbone.pop("size"))
        if origin := backbone.pop("class", None):
            check_imported(origin, f'network "{backbone["name"]}" is {origin}, which')
        objective = read_objective(config.pop("objective"))
        with skip_init():
            net = create(**backbone, size=size)
        conditioner = read_conditioner(folder, net.classes, config.pop("classes"), config.pop("conditioner", None))
        del config["autoencoder"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG} is not a complete ditlab config ({error!r}); save the model again"
        ) from error
    apart, ema = (folder / ADAPTER).exists(), weights == "ema"
    tensors = read_tensors(folder / ((ADAPTER if apart else WEIGHTS) if ema else RAW))
    if apart and (ema or not (folder / AVERAGED).exists()):  # earlier versions saved all raw weights
        tensors = lora_source(config["lora"], folder, load_source or _load_own).net.state_dict() | tensors
    net.load_state_dict(fit(plain(tensors), net.state_dict(), str(folder)), assign=True)
    return Pipeline(
        net.eval(),
        objective,
        read_part(folder),
        config={k: v for k, v in config.items() if k not in ("format", "version")},
        conditioner=conditioner,
    )


def lora_source(description: dict[str, Any], folder: Path, load_source: "Callable[[str], Pipeline]") -> Pipeline:
    """Load the source of low-rank updates that were saved separately.

    Args:
        description: the entry "lora" of the config: the path of the source, and the hash of its weights.
        folder: the folder with the updates, for messages.
        load_source: loads a model.

    Raises:
        InputError: the source cannot be loaded, or has other weights than in training.
    """
    path = description["source"]
    try:
        source = load_source(path)
    except InputError as error:
        raise InputError(f"{folder} holds low-rank updates of {path}, which cannot be loaded: {error}") from error
    if description.get("hash") not in (None, state_hash(source.net)):  # earlier versions saved no hash
        raise InputError(
            f"{folder} holds low-rank updates of {path}, whose weights have changed since; restore the earlier model"
        )
    return source


def read_conditioner(folder: Path, classes: int, names: list[str], description: dict[str, Any] | None) -> Conditioner:
    """Load the conditioner of a saved model.

    Args:
        folder: the model folder.
        classes, names: class count and class names of a class-conditional network.
        description: the config of the conditioner; None is class labels.

    Raises:
        InputError: the kind is not registered, or weights are missing.
    """
    if description is None:
        return ClassLabels(classes, names)
    conditioner = create_conditioner(**description)
    if expected := conditioner.state_dict():
        conditioner.load_state_dict(read_weights(folder / CONDITIONER, expected))
    return conditioner


def _load_own(path: str) -> Pipeline:
    return load_folder(Path(path))
