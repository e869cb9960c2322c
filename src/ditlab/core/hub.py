"""Local paths and repositories of the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError, nearest_path
from ditlab.core.formats import reason
from ditlab.core.spelling import expand


def fetch(path: str | Path) -> Path:
    """Return a readable local path: `path` itself, or a downloaded copy of the hub repository "owner/name".

    Raises:
        InputError: the user may not read the path, or the repository cannot be downloaded.
    """
    path = expand(str(path))
    if is_hub_id(path):
        try:
            return _download(path)
        except InputError as error:
            similar = nearest_path(path, "")  # "rusn/demo" has the form of a hub id too
            raise InputError(f"{error}; {similar}" if similar else str(error)) from error
    local = Path(path)
    try:
        readable = not local.exists() or os.access(local, os.R_OK | os.X_OK if local.is_dir() else os.R_OK)
    except PermissionError:
        readable = False
    if not readable:
        raise InputError(f"you have no permission to read {path}; change its permissions (chmod u+rX)")
    return local


def is_hub_id(text: str) -> bool:
    """Whether a text has the form "owner/name" and is no local path."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]*\w", text) is not None and not Path(text).parent.exists()


def is_there(path: str) -> bool:
    """Whether a path exists, or a text has the form of a hub repository."""
    return Path(expand(path)).exists() or is_hub_id(path)


def _download(name: str) -> Path:
    hub = hub_library()
    try:
        return Path(hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # the library raises many types of error: no network, no such repository, no access
        raise InputError(
            f"{name} is not a local path and cannot be downloaded from the hub ({reason(error)}); download its "
            f"*.json and *.safetensors files on another machine and give their folder"
        ) from error


def hub_library() -> Any:
    """Import the module huggingface_hub.

    Raises:
        InputError: it is not installed; the message gives the command that installs it.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise InputError("the hub needs huggingface_hub; pip install 'ditlab[hub]'") from None
    return huggingface_hub
