"""Local paths and repositories of the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

from ditlab.core.errors import InputError, nearest_path
from ditlab.core.formats import reason
from ditlab.core.spelling import expand

RUNS = "runs/"
FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".json", ".npz")  # a repository is no file


def fetch(path: str | Path, token: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Return a readable local path: `path` itself, or a downloaded copy of a hub repository.

    Args:
        path: a local path, or "owner/name", or "owner/name@revision" with a branch, tag or commit.
        token: access token for a private repository (default: that of `hf auth login`).
        cache_dir: folder for downloads (default: that of huggingface_hub).

    Raises:
        InputError: the user may not read the path, or the repository cannot be downloaded.
    """
    path = expand(str(path))
    if is_hub_id(path):
        try:
            return _download(path, token, cache_dir)
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


FETCHED = ["*.json", "*.safetensors", "*merges.txt", "*.model"]  # the last two are the vocabularies of text encoders


def is_hub_id(text: str) -> bool:
    """Whether a text has the form "owner/name" or "owner/name@revision", and is no local path.

    The folder in which runs are kept is local even if it does not exist yet, and so are files of weights.
    """
    return (
        not text.startswith(RUNS)
        and not text.endswith(FILES)
        and re.fullmatch(r"\w[\w.-]*/[\w.-]*\w(@[\w./-]+)?", text) is not None
        and not Path(text).parent.exists()
    )


def is_there(path: str) -> bool:
    """Whether a path exists, or a text has the form of a hub repository."""
    return Path(expand(path)).exists() or is_hub_id(path)


def with_revision(path: str | Path, revision: str | None) -> str | Path:
    """Return "owner/name@revision" for a hub repository, or the path itself without a revision.

    Raises:
        InputError: the path is a local one, or contains a revision already.
    """
    if revision is None:
        return path
    if not is_hub_id(str(path)) or "@" in str(path):
        raise InputError(f"{path} has no revisions; give revision with a hub repository such as owner/name")
    return f"{path}@{revision}"


def _download(path: str, token: str | None, cache_dir: str | Path | None) -> Path:
    name, _, revision = path.partition("@")
    try:
        hub = hub_library()
    except InputError as error:
        raise InputError(f"there is no local path {path}, and {error}") from None
    options = {"revision": revision, "token": token, "cache_dir": cache_dir and expand(str(cache_dir))}
    given = {key: value for key, value in options.items() if value}
    try:
        return Path(hub.snapshot_download(name, allow_patterns=FETCHED, **given))
    except Exception as error:  # the library raises many types of error: no network, no such repository, no access
        raise InputError(
            f"there is no local path {name}, and no such hub repository can be downloaded ({reason(error)}); give the "
            f"path of a model that exists, train it first, or download its {', '.join(FETCHED[:-1])} and {FETCHED[-1]} "
            "files on another machine and give their folder"
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
