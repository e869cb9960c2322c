"""Reading models and runs from ditlab's own folders."""

from collections.abc import Callable
from pathlib import Path

from ditlab.autoencoders.io import read_part
from ditlab.backbones import create
from ditlab.backbones.lora import plain
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init
from ditlab.core.weights import (
    ADAPTER,
    CONFIG,
    WEIGHTS,
    fit,
    newest_checkpoint,
    read_config,
    read_tensors,
)
from ditlab.diffusion.objective import read_objective
from ditlab.inference.pipeline import Pipeline


def load_folder(path: Path, weights: str = "ema", load_source: "Callable[[str], Pipeline] | None" = None) -> Pipeline:
    """Load a model that ditlab saved, or the newest checkpoint of a training run.

    Args:
        path: a model folder or a run folder.
        weights: "ema", or "model" for the raw weights of a training checkpoint.
        load_source: loads the model that low-rank updates belong to, if they were saved separately.

    Raises:
        InputError: a path with nothing to read, or a file that is incomplete or does not fit its config.
    """
    folder = newest_checkpoint(path) or path
    config = read_config(folder)
    try:
        backbone = dict(config.pop("backbone"))
        size = tuple(backbone.pop("size"))
        objective = read_objective(config.pop("objective"))
        classes = config.pop("classes")
        with skip_init():
            net = create(**backbone, size=size)
        del config["autoencoder"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG} is not a complete ditlab config ({error!r}); save the model again"
        ) from error
    if weights == "ema" and (folder / ADAPTER).exists():
        source = (load_source or _load_own)(config["lora"]["source"]).net.state_dict()
        tensors = source | read_tensors(folder / ADAPTER)
    else:
        tensors = read_tensors(folder / (WEIGHTS if weights == "ema" else "raw.safetensors"))
    net.load_state_dict(fit(plain(tensors), net.state_dict(), str(folder)), assign=True)
    return Pipeline(
        net.eval(),
        objective,
        read_part(folder),
        classes,
        {k: v for k, v in config.items() if k not in ("format", "version")},
    )


def _load_own(path: str) -> Pipeline:
    return load_folder(Path(path))
