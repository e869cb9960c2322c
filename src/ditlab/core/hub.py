"""Paths and hub repositories."""

import os
import re
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError


def fetch(path: str | Path) -> Path:
    """A path that can be read: the path itself, or a copy of the hub repository "owner/name".

    Raises:
        InputError: a path without permission, or a repository that cannot be fetched.
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
            f"{name} is no path here and cannot be fetched from the hub ({reason}); download its *.json and "
            f"*.safetensors files elsewhere and give the folder"
        ) from error


def hub_library() -> Any:
    """The huggingface_hub module.

    Raises:
        InputError: it is not installed; the line says how to install it.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("the hub needs huggingface_hub; pip install 'ditlab[hub]'") from None
    return huggingface_hub
