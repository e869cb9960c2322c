"""Atomic files, manifests that show damage, and locks that keep two processes out of one folder."""

import hashlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ditlab.core.errors import InputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK, PART = ".lock", ".part"
TRIES = 100  # to lock a file that other processes keep replacing


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path beside `file`, renamed to it when the block ends and removed if the block fails.

    A process that reads during the block, or after a crash, finds the old content or the new one, never a mixture. The
    folder is created.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}-{threading.get_ident()}{PART}")
    try:
        yield draft
        os.replace(draft, file)
    finally:
        with suppress(OSError):
            draft.unlink()


def replace_text(file: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(file) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def held(folder: Path, rank: int = 0) -> Iterator[None]:
    """Hold a lock on a folder, so that no other process does the same work there. The folder is created.

    The operating system releases the lock when the process ends, however it ends. Nothing is locked where the file
    system has no locks or the folder cannot be written to.

    Args:
        folder: where the work is written.
        rank: number of this process among those that share the work; each rank has a lock of its own.

    Raises:
        InputError: another process works in the folder.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / (f"{LOCK}-{rank}" if rank else LOCK)
    opened = locked(file)
    try:
        yield
    finally:
        if opened is not None:
            with suppress(OSError):
                file.unlink()  # before it is released, so that no other process has locked it in between
            opened.close()
        with suppress(OSError):  # folders that stayed empty are removed again
            for path in created:
                path.rmdir()


def locked(file: Path) -> IO[str] | None:
    """The file, opened and locked until it is closed; None where locking is not possible."""
    if fcntl is None:
        return None
    for _ in range(TRIES):
        try:
            opened = file.open("a+", encoding="utf-8")
        except OSError:
            return None
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            opened.seek(0)
            who = opened.read().strip() or "another process"
            opened.close()
            raise InputError(
                f"{file.parent} is in use by {who}; wait until it ends, stop it, or choose another folder"
            ) from None
        except OSError:
            opened.close()
            return None
        if same_file(file, opened):
            opened.truncate(0)
            opened.write(f"process {os.getpid()} on {socket.gethostname()}")
            opened.flush()
            return opened
        opened.close()  # another process removed or replaced the file in between
    return None


def in_use(folder: Path) -> bool | None:
    """Whether a process holds a folder (`held`); None where that cannot be determined, as on a file system without
    locks."""
    if fcntl is None:
        return None
    try:
        with (folder / LOCK).open(encoding="utf-8") as opened:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError) as error:
        return isinstance(error, BlockingIOError)
    except OSError:
        return None
    return False


def same_file(file: Path, opened: IO[str]) -> bool:
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(file.stat(), os.fstat(opened.fileno()))
    except OSError:
        return False


def is_vacant(folder: Path) -> bool:
    """Whether the folder does not exist, or holds only locks and temporary files that a killed process left."""
    if not folder.exists():
        return True
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    return all(name.startswith(LOCK) or (name[0] == "." and name.endswith(PART)) for name in names)


@contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to lock `file` for the duration of the block; yields whether this process got the lock.

    Args:
        file: created if it does not exist, and not removed.
        wait: wait until another process releases the lock.
    """
    if fcntl is None:  # not on Windows, where a process works alone
        yield True
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Record size and SHA-256 of all files of a folder, after forcing them to the disk."""
    entries = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as opened:
            entries[file.name] = {
                "bytes": file.stat().st_size,
                "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
            }
            os.fsync(opened.fileno())
    replace_text(folder / MANIFEST, json.dumps(entries, indent=2) + "\n")


def damage(folder: Path, *, hashes: bool = False) -> str | None:
    """What is wrong with a folder that has a manifest; None if it is intact or has no manifest.

    Args:
        folder: the folder with the manifest.
        hashes: also hash the content of all files, instead of comparing sizes only.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in expected.items():
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes instead of {entry['bytes']:,}"
            with file.open("rb") as opened:
                if hashes and hashlib.file_digest(opened, "sha256").hexdigest() != entry["sha256"]:
                    return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({type(error).__name__})"
    return None
