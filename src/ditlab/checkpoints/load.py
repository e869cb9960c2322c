"""Load a model of any layout, which is recognized by its content."""

import copy
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch

from ditlab.autoencoders import Autoencoder
from ditlab.autoencoders.io import load_autoencoder
from ditlab.checkpoints import diffusers
from ditlab.checkpoints.diffusers_text import text_conditioner
from ditlab.checkpoints.native import load_folder
from ditlab.checkpoints.published import FIRST_STAGE, LATENTS, from_official
from ditlab.conditioning import ClassLabels
from ditlab.config.options import model_options
from ditlab.config.sampling import GUIDANCE_ORIGIN
from ditlab.core.device import as_dtype, pick_device
from ditlab.core.errors import InputError, nearest
from ditlab.core.hub import fetch, with_revision
from ditlab.core.sizes import read_text
from ditlab.core.weights import CONFIG, newest_checkpoint, pick_weights, read_file, read_json
from ditlab.inference.pipeline import Pipeline


def load(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    guidance_device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    weights: str = "ema",
    sit: bool | None = None,
    autoencoder: str | Path | Autoencoder | None = None,
    base: str | Path | None = None,
    **overrides: Any,
) -> Pipeline:
    """Load a model of any supported layout.

    Supported are ditlab's model and run folders; published checkpoints of the families with `marks` and of SiT (.pt or
    safetensors: a state dict, or a training checkpoint with `model` and `ema`); and diffusers folders of DiT, PixArt,
    Stable Diffusion 3 and Flux.1 (a pipeline with `transformer/`, or the transformer alone).

    Args:
        path: file or folder, or the id of a hub repository such as "facebook/DiT-XL-2-256".
        device: device of the weights; "auto" is the accelerator, or the CPU if the machine has none.
        guidance_device: a second device, with a copy of the weights that evaluates the null condition of guidance while
            the first device evaluates the condition. None evaluates both in one batch.
        dtype: "float32" (the default) or "bfloat16", also as torch.dtype: precision of the network. To sample fast,
            use `Pipeline.prepared`, which also chooses the precision.
        revision: branch, tag or commit of a hub repository; "owner/name@revision" as path is the same.
        token: access token for a private hub repository (default: that of `hf auth login`).
        cache_dir: folder for downloads from the hub (default: that of huggingface_hub).
        weights: "ema", or "model" for the raw weights of a training checkpoint.
        sit: whether this is a SiT checkpoint. None decides by the settings in a training checkpoint; a state dict has
            no settings and is read as DiT, with a note in `config`. Checkpoints of REPA are recognized by their keys.
        autoencoder: the autoencoder of a latent-space model whose file does not contain one: an `Autoencoder`, or
            anything that `load_autoencoder` reads. None is the autoencoder of the model.
        base: the model from which low-rank updates that were saved separately were trained; None is the place where it
            was in training. Another model is refused.
        overrides: arguments of `ditlab.create` that an external file does not contain: heads=, size=, classes=, exits=.

    Raises:
        InputError: the path does not exist, its layout is unknown, a file is damaged, or the device cannot be used.
    """
    check_names(overrides)
    given = {"weights": weights if weights != "ema" else None, "sit": sit} | overrides
    given |= _places(autoencoder=autoencoder, base=base)
    options = {name: value for name, value in given.items() if value is not None}
    place, precision = pick_device(device), as_dtype(dtype)
    path = with_revision(path, revision)
    source, path = path, fetch(path, token, cache_dir)
    pipe, own = _read(path, weights, sit, base, overrides, whole=autoencoder is None)
    autoencoder = own if autoencoder is None else autoencoder
    if autoencoder is not None:
        loaded = autoencoder if isinstance(autoencoder, Autoencoder) else load_autoencoder(autoencoder)
        pipe = replace(pipe, autoencoder=loaded)
    pipe.loaded_from = {"source": str(source)} | ({"load_options": options} if options else {})
    if precision is not None:
        pipe.net.to(precision)
    return with_second(pipe.to(place), guidance_device)


def check_names(overrides: Iterable[str]) -> None:
    """Check that no option of a network is a misspelled argument of `load`.

    Raises:
        InputError: one is.
    """
    own = [name for name, argument in signature(load).parameters.items() if argument.kind is Parameter.KEYWORD_ONLY]
    for name in overrides:
        if name not in {option.name for option in model_options()} and (line := nearest(name, own)).startswith("did"):
            raise InputError(f'load has no argument "{name}"; {line}')


def with_second(pipe: Pipeline, device: str | torch.device | None) -> Pipeline:
    """Give a model a second device for guidance, and return it.

    Raises:
        InputError: the model has no second evaluation, or the device cannot be used.
    """
    if device is None:
        return pipe
    if not pipe.conditional or pipe.objective.built_in is not None:
        reason = "has its guidance built in" if pipe.conditional else "is unconditional"
        raise InputError(f"guidance_device is {device}, but this model {reason}; leave it out")
    place = pick_device(device)
    pipe.second = replace(pipe, net=copy.deepcopy(pipe.net).to(place))
    return pipe


def _read(
    path: Path, weights: str, sit: bool | None, base: str | Path | None, overrides: dict[str, Any], *, whole: bool
) -> tuple[Pipeline, Path | None]:
    """Read a model on the CPU, with `whole` also the autoencoder in a file of weights.

    Returns:
        The model, and the folder of an autoencoder that lies beside it.
    """
    if base is not None and (path.is_file() or diffusers_transformer(path) is not None):
        raise InputError(f"{path} contains all its weights and needs no base; leave it out")
    if path.is_file():
        pipe = _load_file(path, weights, sit, overrides, whole)
    elif sit is not None:
        raise InputError(f"{path} is a folder, which states the objective of its model; leave sit out")
    elif (folder := diffusers_transformer(path)) is not None:
        pipe = _load_diffusers(path, folder, overrides)
        if (path / "vae" / CONFIG).is_file():
            return pipe, path / "vae"
    else:
        if overrides:
            raise InputError(f"{path} contains {', '.join(overrides)}, which cannot be changed; leave it out")
        pipe = load_folder(path, weights, partial(load, device="cpu"), base)
    return pipe, None


def _places(**given: Any) -> dict[str, str]:
    """Return the paths and hub ids among some arguments, as text."""
    return {name: str(value) for name, value in given.items() if isinstance(value, str | Path)}


def _load_diffusers(path: Path, folder: Path, overrides: dict[str, Any]) -> Pipeline:
    """Load the transformer in `folder` of the diffusers folder `path`."""
    tensors, settings = diffusers.read_transformer(folder)
    pipe = from_official(tensors, str(folder), **settings | overrides)
    if pipe.net.text:
        pipe.conditioner = text_conditioner(path, pipe.net)
    else:
        pipe.conditioner = ClassLabels(pipe.net.classes, _class_names(path, pipe.net.classes))
    name = pipe.net.diffusers_class or "DiTTransformer2DModel"
    if "sample" in pipe.config and name in diffusers.PIPELINES:  # their defaults differ from those of the scripts
        origin, sampling = diffusers.PIPELINES[name]
        pipe.config |= {"sample": sampling, GUIDANCE_ORIGIN: origin}
    if "sample" in pipe.config:
        pipe.config["sample"] = diffusers.with_schedule(pipe.config["sample"], path)
    return pipe


def _load_file(path: Path, weights: str, sit: bool | None, overrides: dict[str, Any], whole: bool) -> Pipeline:
    """Load a file of weights; with `whole` also the autoencoder, if the file has one."""
    content = read_file(path)
    tensors = pick_weights(content, weights, path)
    pipe = from_official(tensors, str(path), sit=sit, trained=content.get("args"), **overrides)
    constants = LATENTS.get(pipe.net.config["name"].split("-")[0])
    if whole and constants is not None and any(key.startswith(FIRST_STAGE) for key in tensors):
        pipe = replace(pipe, autoencoder=load_autoencoder(path, scale=constants["scale"], shift=constants["shift"]))
    return pipe


def diffusers_transformer(path: Path) -> Path | None:
    """Return the folder with the transformer of a diffusers folder; None for other folders."""
    if (path / "transformer" / CONFIG).is_file():
        return path / "transformer"
    file = path / CONFIG
    if not file.is_file() or newest_checkpoint(path) is not None:
        return None
    with suppress(ValueError):  # `read_config` reports what is wrong
        return path if '"_class_name"' in read_text(file) else None
    return None


def _class_names(path: Path, count: int) -> list[str]:
    """Read the class names in `model_index.json`; none if it does not have a name for every class."""
    file = path / "model_index.json"
    names = read_json(file).get("id2label") if file.is_file() else None
    if not isinstance(names, dict):
        return []
    return [str(names[str(i)]) for i in range(count)] if all(str(i) in names for i in range(count)) else []
