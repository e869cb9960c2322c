"""Write a model in another layout."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ditlab.autoencoders import KL
from ditlab.autoencoders.io import save_autoencoder
from ditlab.checkpoints import diffusers
from ditlab.checkpoints.published import in_file_precision, to_official
from ditlab.checkpoints.to_peft import write_peft
from ditlab.core.errors import InputError, lookup
from ditlab.core.io import replace_text, replacing, writing
from ditlab.core.spelling import expand
from ditlab.core.weights import CONFIG, write_pickle, write_tensors
from ditlab.inference import saving
from ditlab.inference.finite import check_weights
from ditlab.inference.pipeline import Pipeline


def convert(pipe: Pipeline, target: str | Path, layout: str) -> Path:
    """Write a model in another layout, and return its path. If writing fails, no partial file remains.

    Args:
        pipe: the model.
        target: file or folder to write; must not exist.
        layout: a name in `LAYOUTS`: "ditlab", "official", "diffusers", or "peft" (the low-rank updates of a run).

    Raises:
        InputError: the target exists, the weights are not finite, or the layout does not support this model.
    """
    target = Path(expand(str(target)))
    write = lookup(LAYOUTS, layout, "layout")
    if target.exists():
        raise InputError(f"{target} exists; give another path")
    check_weights(pipe)
    with writing(target), replacing(target) as draft:
        write(pipe, draft, target.name)
    return target


def _write_official(pipe: Pipeline, target: Path, name: str) -> None:
    tensors = in_file_precision(pipe, to_official(pipe))
    if name.endswith(".safetensors"):
        write_tensors({key: value.contiguous() for key, value in tensors.items()}, target)
    else:
        write_pickle(tensors, target)


def _write_diffusers(pipe: Pipeline, target: Path, name: str) -> None:
    """Write a folder for `DiTPipeline.from_pretrained`; it has no vae/ if the model has no KL autoencoder.

    Of other families it has no text encoders and no model_index.json: give its parts to the pipeline of the source.
    """
    if pipe.net.diffusers_class:
        tensors, config = pipe.net.to_diffusers(to_official(pipe), pipe.net.config)
        if scheduler := diffusers.scheduler_of(pipe.net):
            write_scheduler(target, scheduler)
    else:
        config = diffusers.transformer_config(pipe.net.config)
        diffusers.check_pipeline(pipe)
        tensors = diffusers.to_diffusers(to_official(pipe))
        write_scheduler(target, diffusers.SCHEDULER)
        write_json(target / "model_index.json", diffusers.model_index(pipe.classes))
    write_transformer(target, in_file_precision(pipe, tensors), config)
    if isinstance(pipe.autoencoder, KL):
        save_autoencoder(pipe.autoencoder, target / "vae", folded=not pipe.net.diffusers_class)


def write_scheduler(target: Path, content: dict[str, Any]) -> None:
    """Write the folder `scheduler` of a diffusers folder."""
    (target / "scheduler").mkdir(parents=True)
    write_json(target / "scheduler" / "scheduler_config.json", content)


def write_transformer(target: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write the folder `transformer` of a diffusers folder."""
    transformer = target / "transformer"
    transformer.mkdir(parents=True)
    write_tensors(tensors, transformer / diffusers.WEIGHTS)
    write_json(transformer / CONFIG, config)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as indented JSON."""
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


LAYOUTS: dict[str, Callable[[Pipeline, Path, str], Any]] = {
    "ditlab": saving.write_whole,
    "official": _write_official,
    "diffusers": _write_diffusers,
    "peft": write_peft,
}
