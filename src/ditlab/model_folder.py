"""What lies in the folder of a model or of a run: weights, checkpoints, the config."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ditlab.errors import InputError
from ditlab.files import damage

WEIGHTS, AUTOENCODER, CONFIG = "model.safetensors", "autoencoder.safetensors", "config.json"
ADAPTER = "adapter.safetensors"  # low-rank updates that were kept apart from their source


def state_hash(net: torch.nn.Module) -> str:
    """The first 16 digits of the SHA-256 of all weights, by name."""
    return weights_digest(net).hexdigest()[:16]


def weights_digest(net: torch.nn.Module, begin: bytes = b"") -> "hashlib._Hash":
    """SHA-256 of these bytes and all weights, by name."""
    digest = hashlib.sha256(begin)
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint folder of a run that is whole, as far as sizes tell, or None where there is none.

    One that is not is named in a warning.
    """
    for folder in reversed(checkpoints(run)):
        wrong = damage(folder)
        if wrong is None:
            return folder
        warnings.warn(f"{folder} is damaged and left aside: {wrong}", stacklevel=2)
    return None


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, the newest last."""
    return sorted(path for path in (run / "checkpoints").glob("*") if path.name.isdigit())


def read_weights(file: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a safetensors file; every one must be used and every weight filled, in the right shape."""
    return fit(read_tensors(file), expected, str(file))


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file that ditlab wrote."""
    try:
        return load_file(file)
    except FileNotFoundError:
        raise InputError(f"no weights at {file}; give a model folder or a run folder with a checkpoint") from None
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is truncated or not a safetensors file ({error}); restore it, "
            "or remove its checkpoint to use the one before"
        ) from error


def fit(tensors: dict[str, Tensor], expected: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors, once every one is used and every weight filled in its shape; the first few misfits otherwise."""
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unused {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} is {list(tensors[key].shape)}, not {list(value.shape)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    if problems:
        raise InputError(f"{source} does not fit its network: {'; '.join(problems[:4])} ({len(problems)} in all)")
    return tensors


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a model's `config.json`."""
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no model at {folder}; give a model folder (with {CONFIG}) or a run folder") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {error}; restore it from a copy") from error
    if not isinstance(config, dict) or config.get("format") != "ditlab":
        raise InputError(f"{file} was not written by ditlab; give a ditlab model or run folder")
    return config
