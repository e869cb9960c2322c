"""Shared error handling for the run folders of models and autoencoders."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ditlab.core.errors import InputError
from ditlab.core.formats import reason


@contextmanager
def writing(what: str, kept: str = "") -> Iterator[None]:
    """Report errors of the enclosed block, which writes a file, as one-line InputErrors.

    Args:
        what: the file, for the message.
        kept: what remains of earlier work, for the message.

    Raises:
        InputError: the file could not be written, for example because the disk is full.
    """
    try:
        yield
    except OSError as error:
        hint = f"{kept}; " if kept else ""
        raise InputError(
            f"cannot write {what}: {reason(error)}; {hint}free some space and run the same command again"
        ) from error


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
