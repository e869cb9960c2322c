"""What run folders of models and of autoencoders have in common: one owner, one run, files that are whole."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ditlab.core.errors import InputError


@contextmanager
def writing(what: str, kept: str = "") -> Iterator[None]:
    """Around the writing of a file of a run: a full disk is reported in one line.

    Args:
        what: the file, in words.
        kept: what is still there, in words.

    Raises:
        InputError: the file could not be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        hint = f"{kept}; " if kept else ""
        raise InputError(
            f"cannot write {what}: {reason}; {hint}free some space and run the same command again"
        ) from error


def refuse_other_run(folder: Path, differing: Iterable[str]) -> None:
    """Refuse to resume a folder under other settings.

    Args:
        folder: of the run.
        differing: the settings that differ, in words.

    Raises:
        InputError: there are some.
    """
    if words := "; ".join(differing):
        raise InputError(f"{folder} holds another run ({words}); give the same recipe to resume it, or another folder")


def say_difference(key: str, before: object, now: object) -> str:
    """One setting that differs, in words."""
    return f"{key} is {before} there, {now} here"
