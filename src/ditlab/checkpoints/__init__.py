"""Foreign checkpoints in and out. `load` recognises a model by its content, `convert` writes it in another layout."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ditlab.autoencoders import KL, Autoencoder
from ditlab.autoencoders.io import load_autoencoder, save_autoencoder
from ditlab.checkpoints import diffusers
from ditlab.checkpoints.native import load_folder
from ditlab.checkpoints.published import from_official, to_official
from ditlab.conditioning import ClassLabels
from ditlab.core.errors import InputError, lookup
from ditlab.core.hub import fetch
from ditlab.core.weights import CONFIG, newest_checkpoint, pick_weights, read_file, read_json
from ditlab.inference.pipeline import Pipeline

__all__ = ["LAYOUTS", "convert", "load", "load_autoencoder", "save_autoencoder"]


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    weights: str = "ema",
    sit: bool | None = None,
    autoencoder: str | Path | Autoencoder | None = None,
    **overrides: Any,
) -> Pipeline:
    """Load a model, whoever wrote it.

    Reads a model or run folder of ditlab, a published checkpoint of DiT, SiT, U-DiT, U-ViT or Skip-DiT (.pt or
    safetensors, bare or with `model` and `ema`), and a diffusers folder of DiT (a pipeline with `transformer/`, or the
    transformer alone).

    Args:
        path: file or folder, or the id of a hub repository such as "facebook/DiT-XL-2-256".
        device: where to put the weights.
        weights: "ema", or "model" for the raw weights of a training checkpoint.
        sit: the checkpoint is SiT's. None: as its recorded settings say; a bare state dict does not tell and is DiT's.
        autoencoder: the autoencoder of a model of latents, for files that come without it: anything that
            `load_autoencoder` reads. None: the model's own.
        overrides: arguments of `ditlab.create` that a foreign file cannot tell: heads=, size=, classes=.

    Raises:
        InputError: nothing there, a format that is not known, or a damaged file.
    """
    path = fetch(path)
    if path.is_file():
        pipe = _load_file(path, weights, sit, overrides)
    elif (folder := diffusers_transformer(path)) is not None:
        tensors, settings = diffusers.read_transformer(folder)
        pipe = from_official(tensors, str(folder), **settings | overrides)
        pipe.conditioner = ClassLabels(pipe.net.classes, _class_names(path, pipe.net.classes))
        if autoencoder is None and (path / "vae" / CONFIG).is_file():
            autoencoder = path / "vae"
    else:
        if overrides:
            raise InputError(f"{', '.join(overrides)} cannot be changed: {path} says itself what it is")
        pipe = load_folder(path, weights, load)
    if autoencoder is not None:
        own = autoencoder if isinstance(autoencoder, Autoencoder) else load_autoencoder(autoencoder)
        pipe = replace(pipe, autoencoder=own)
    pipe.net.to(device)
    pipe.autoencoder.to(device)
    return pipe


def _load_file(path: Path, weights: str, sit: bool | None, overrides: dict[str, Any]) -> Pipeline:
    content = read_file(path)
    tensors = pick_weights(content, weights, path)
    if sit is None:
        sit = hasattr(content.get("args"), "path_type")  # SiT's training settings; DiT has no such word
    return from_official(tensors, str(path), sit=sit, **overrides)


def diffusers_transformer(path: Path) -> Path | None:
    """The folder with the transformer, if this is a diffusers folder."""
    if (path / "transformer" / CONFIG).is_file():
        return path / "transformer"
    file = path / CONFIG
    is_theirs = (
        file.is_file() and newest_checkpoint(path) is None and '"_class_name"' in file.read_text("utf-8", "replace")
    )
    return path if is_theirs else None


def _class_names(path: Path, count: int) -> list[str]:
    """The names in `model_index.json`, if it has one for every class."""
    file = path / "model_index.json"
    names = read_json(file).get("id2label") if file.is_file() else None
    if not isinstance(names, dict):
        return []
    return [str(names[str(i)]) for i in range(count)] if all(str(i) in names for i in range(count)) else []


def convert(pipe: Pipeline, target: str | Path, layout: str) -> Path:
    """Write a model in a layout of `LAYOUTS`, under a temporary name first, so that nothing is left half written.

    Raises:
        InputError: the target exists, or the layout cannot hold this model.
    """
    target = Path(target)
    write = lookup(LAYOUTS, layout, "layout")
    if target.exists():
        raise InputError(f"{target} exists; give another path")
    draft = target.with_name(f".{target.name}.part")
    _remove(draft)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(pipe, draft, target.name)
        os.replace(draft, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; free some space or give another path") from error
    finally:
        _remove(draft)
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_official(pipe: Pipeline, target: Path, name: str) -> None:
    torch.save(to_official(pipe), target)


def _write_diffusers(pipe: Pipeline, target: Path, name: str) -> None:
    """A folder for `DiTPipeline.from_pretrained`; without vae/ where the model has no KL autoencoder."""
    config = diffusers.transformer_config(pipe.net.config)
    tensors = diffusers.to_diffusers(to_official(pipe))
    transformer, scheduler = target / "transformer", target / "scheduler"
    transformer.mkdir(parents=True)
    scheduler.mkdir()
    save_file(tensors, transformer / diffusers.WEIGHTS)
    write_json(transformer / CONFIG, config)
    write_json(scheduler / "scheduler_config.json", diffusers.SCHEDULER)
    write_json(target / "model_index.json", diffusers.model_index(pipe.classes))
    if isinstance(pipe.autoencoder, KL):
        save_autoencoder(pipe.autoencoder, target / "vae", folded=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """An object as indented JSON."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


LAYOUTS: dict[str, Callable[[Pipeline, Path, str], Any]] = {
    "ditlab": lambda pipe, target, name: pipe.save(target, name),
    "official": _write_official,
    "diffusers": _write_diffusers,
}
