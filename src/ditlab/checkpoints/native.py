"""Read models from ditlab's model and run folders."""

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from ditlab.autoencoders.io import read_part
from ditlab.backbones import Backbone, create
from ditlab.backbones.lora import plain
from ditlab.conditioning import ClassLabels, Conditioner, create_conditioner
from ditlab.config.sampling import Sample
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.hub import is_there
from ditlab.core.model_files import read_checkpoint_parts, read_model
from ditlab.core.modules import sizes, skip_init
from ditlab.core.registry import check_imported, imported_parts_only
from ditlab.core.spelling import absolute
from ditlab.core.values import PixelValues
from ditlab.core.weights import (
    ADAPTER,
    AVERAGED,
    BASE,
    CONDITIONER,
    CONFIG,
    RAW,
    RAW_PARTS,
    fit,
    newest_checkpoint,
    read_config,
    read_tensors,
    read_weights,
    state_hash,
)
from ditlab.diffusion.parametrizations import read_objective
from ditlab.inference.pipeline import Pipeline

LARGEST_INPUT = 2**26  # numbers of one input of a network that is read from a file: 4096x4096 with 4 channels
LONGEST = 100  # entries of an option of a network that has fewer weights
LOADING: ContextVar[tuple[Path, ...]] = ContextVar("LOADING", default=())
"""The folders with low-rank updates that are being loaded, each the source of the one before it."""
DEEPEST = 16


class ChainError(InputError):
    """Models with low-rank updates of each other, without an end."""


@imported_parts_only()
def load_folder(
    path: Path,
    weights: str = "ema",
    load_source: "Callable[[str], Pipeline] | None" = None,
    base: str | Path | None = None,
) -> Pipeline:
    """Load a model that ditlab saved, or the newest checkpoint of a training run.

    Args:
        path: a model folder or a run folder.
        weights: "ema", or "model" for the raw weights of a training checkpoint.
        load_source: loads the source model of low-rank updates that were saved separately.
        base: present place of that model; None is the place where it was in training.

    Raises:
        InputError: the path holds no model, a file is incomplete or does not fit its config, or the source model is
            missing or another one.
    """
    folder = newest_checkpoint(path) or path
    config = read_config(folder)
    complete = partial(interpreting, folder / CONFIG, "save the model again", "is not a complete ditlab config")
    with complete():
        backbone = dict(config.pop("backbone"))
        if origin := backbone.pop("class", None):
            check_imported(origin, f'network "{backbone["name"]}" is {origin}, which')
        objective = read_objective(config.pop("objective"))
    tensors = read_network(folder, config, weights, load_source or _load_own, base)
    with complete():
        net = create_sized(backbone, tensors, folder / CONFIG)
        conditioner = read_conditioner(folder, net.classes, config.pop("classes"), config.pop("conditioner", None))
        del config["autoencoder"]
        PixelValues.read(config.get("values"))
        Sample.read(config.get("sample", {}))
    net.load_state_dict(fit(tensors, net.state_dict(), str(folder)), assign=True)
    return Pipeline(
        net.eval(),
        objective,
        read_part(folder),
        config={k: v for k, v in config.items() if k not in ("format", "version")},
        conditioner=conditioner,
    )


def read_network(
    folder: Path,
    config: dict[str, Any],
    weights: str,
    load_source: "Callable[[str], Pipeline]",
    base: str | Path | None,
) -> dict[str, Tensor]:
    """The weights of a network, into which low-rank updates are merged; also those that were saved separately.

    Raises:
        InputError: a file is missing or damaged, or the source model is missing or another one.
    """
    apart, ema = (folder / ADAPTER).exists(), weights == "ema"
    if base is not None and not apart:
        raise InputError(f"{folder} contains all its weights and needs no base; leave it out")
    if apart:
        tensors = read_tensors(folder / (ADAPTER if ema else RAW))
    elif ema:
        tensors = read_model(folder)
    else:
        parts = folder / RAW_PARTS
        tensors = read_checkpoint_parts(parts) if parts.is_dir() else read_tensors(folder / RAW)
    if apart and (ema or not (folder / AVERAGED).exists()):  # earlier versions saved all raw weights
        tensors = read_base(folder, config, base, load_source) | tensors
    with interpreting(folder, "save the model again", "holds incomplete low-rank updates"):
        return plain(tensors)


def create_sized(backbone: dict[str, Any], tensors: dict[str, Tensor], file: Path) -> Backbone:
    """Create the network of a configuration, which is not believed before it is compared with the weights.

    Args:
        backbone: the arguments of `create`.
        tensors: the weights.
        file: the file of the configuration, for messages.

    Raises:
        InputError: the network would be much larger than its weights.
        KeyError, TypeError: the configuration is incomplete.
    """
    size = tuple(backbone["size"])
    for key, value in backbone.items():
        if isinstance(value, list | dict) and len(value) > max(LONGEST, len(tensors)):
            raise InputError(f"{file} has {len(value):,} entries in {key}, and {len(tensors):,} weights; restore it")
    if (numbers := prod(size) * backbone["channels"]) > LARGEST_INPUT:  # convolutions have the same weights at any size
        raise InputError(
            f"{file} has {sizes(backbone)}: an input of {numbers:,} numbers; at most {LARGEST_INPUT:,} are supported"
        )
    with skip_init(tensors, f"{file} with {sizes(backbone)}"):
        return create(**backbone | {"size": size})


def read_base(
    folder: Path, config: dict[str, Any], base: str | Path | None, load_source: "Callable[[str], Pipeline]"
) -> dict[str, Tensor]:
    """The weights of the model that low-rank updates change; its present place is recorded in the config.

    Raises:
        InputError: the model does not exist, cannot be loaded, or has other weights than in training.
    """
    recorded = config["lora"]["source"]
    if base is None and not is_there(recorded):
        raise InputError(
            f"{folder} holds low-rank updates of the model {recorded}, which does not exist; "
            "give its present place: base=, or train.init_from to resume training"
        )
    place = str(recorded if base is None else base)
    earlier = LOADING.get()
    if folder.resolve() in earlier:
        raise ChainError(
            f"{folder} holds low-rank updates of a model that is made from {folder} itself; give the model from which "
            "it was trained (base=)"
        )
    if len(earlier) == DEEPEST:
        raise ChainError(f"{earlier[0]} is made of more than {DEEPEST} models with low-rank updates; save it merged")
    token = LOADING.set((*earlier, folder.resolve()))
    try:
        net = load_source(place).net
    except ChainError:
        raise
    except InputError as error:
        raise InputError(f"{folder} holds low-rank updates of {place}, which cannot be loaded: {error}") from error
    finally:
        LOADING.reset(token)
    expected = config.get(BASE)  # earlier versions did not record it
    if expected is not None and (actual := state_hash(net)) != expected:
        raise InputError(
            f"{place} is not the model from which {folder} was trained: its weights have the hash {actual}, "
            f"not {expected}; give that model"
        )
    config["lora"] = config["lora"] | {"source": absolute(place)}
    return net.state_dict()


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
