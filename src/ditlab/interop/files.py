"""Tensors from files that others wrote: recognised by content, never executed.

A file is read as safetensors or as a torch pickle with `weights_only=True`, memory-mapped where the format allows,
so that converting a model needs little more memory than the model.
"""

import argparse
import json
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditlab.errors import InputError
from ditlab.pipeline import hub_library

WRAPPERS = ("_orig_mod.", "module.")  # torch.compile, DistributedDataParallel


def fetch(path: str | Path) -> Path:
    """A path that can be read: the path itself, or a copy of the hub repository "owner/name".

    Raises:
        InputError: a path without permission, or a repository that cannot be had.
    """
    if is_hub_id(str(path)):
        return _download(str(path))
    path = Path(path)
    try:
        readable = not path.exists() or os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)
    except PermissionError:
        readable = False
    if not readable:
        raise InputError(f"{path} may not be read by this user; change its permissions (chmod u+rX)")
    return path


def is_hub_id(text: str) -> bool:
    """ "owner/name", unless there is such a path here."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]*\w", text) is not None and not Path(text).parent.exists()


def _download(name: str) -> Path:
    hub = hub_library()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # no network, no such repository, no access: the library has many kinds
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} is no path here and could not be fetched from the hub ({reason}); download its *.json and "
            f"*.safetensors files elsewhere and give the folder"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an `InputError` with its path."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing; give a model's folder, with all its files") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}; download the whole folder again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object; download the whole folder again")
    return content


def read_file(path: Path) -> dict[str, Any]:
    """The content of a weights file: a state dict, or a training checkpoint with several.

    Raises:
        InputError: not a weights file, truncated, or a pickle that asks for code to be run.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if not start:
        raise InputError(f"{path} is empty (0 bytes); download or copy it again")
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return _read_pickle(path, zipped=start[:2] == b"PK")
    if start[8:9] == b"{":
        return _read_safetensors(path)
    raise InputError(f"{path} is neither a safetensors file nor a torch checkpoint; give one of these")


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); download or copy it again") from error


def _read_pickle(path: Path, zipped: bool) -> dict[str, Any]:
    try:
        # Official checkpoints keep their command line in a Namespace, which holds plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, weights_only=True, map_location="cpu", mmap=zipped)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        wants = f"asks to load {asked[1]}" if asked else "is not a plain checkpoint"
        raise InputError(f"{path} {wants}; refused, nothing of it was run: only files of tensors are read") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is truncated or damaged ({reason}); download or copy it again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict; give a checkpoint")
    return content


def pick_weights(content: dict[str, Any], weights: str, path: Path) -> dict[str, Tensor]:
    """The state dict of a file: the file itself, or its "ema" or "model" part; wrappers' prefixes are stripped."""
    parts = [name for name in ("ema", "model") if isinstance(content.get(name), Mapping)]
    if parts:
        if weights not in parts:
            raise InputError(f'{path} has no "{weights}" weights; choose weights={" or ".join(parts)}')
        content = content[weights]
    tensors = {strip(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InputError(f"{path} holds no tensors; give a checkpoint")
    return tensors


def strip(key: str) -> str:
    """A key without the prefixes of wrappers."""
    for wrapper in WRAPPERS:
        key = key.replace(wrapper, "")
    return key
