"""Shared error handling for the run folders of models and autoencoders."""

from collections.abc import Iterable
from pathlib import Path

from ditlab.core.errors import InputError


def refuse_other_run(folder: Path, differing: Iterable[str]) -> None:
    """Reject a run folder that was started with other settings.

    Args:
        folder: the run folder.
        differing: a description of each setting that differs.

    Raises:
        InputError: some settings differ.
    """
    if words := "; ".join(differing):
        raise InputError(f"{folder} holds another run ({words}); give the same recipe to resume it, or another folder")
