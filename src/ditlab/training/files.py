"""Shared error handling for the run folders of models and autoencoders."""

from collections.abc import Iterable
from pathlib import Path

from ditlab.core.errors import InputError


def refuse_other_run(folder: Path, differing: Iterable[str], url: str = "") -> None:
    """Reject a run folder that was started with other settings.

    Args:
        folder: the run folder.
        differing: a description of each setting that differs.
        url: the store from which the run was fetched into this folder; empty if it was not.

    Raises:
        InputError: some settings differ.
    """
    if words := "; ".join(differing):
        place, other = (url, "address and folder") if url else (folder, "folder")
        raise InputError(f"{place} holds another run ({words}); give the same recipe to resume it, or another {other}")
