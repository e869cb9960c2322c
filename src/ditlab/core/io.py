"""Files that are written whole or not at all, folders that tell whether they still are, and who works in a folder."""

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
TRIES = 100  # after which a file that is always another one is no lock


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside this one that takes its place when the block ends, and is removed if it fails.

    Whoever reads meanwhile, or after a crash, finds the file as it was or as it is meant to be. The folder is made.
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
    """Keep others who would do the same work out of a folder, which is made.

    The operating system gives the lock back when the process ends, however it ends. Where the file system knows no
    locks, or the folder cannot be written to, nothing is held.

    Args:
        folder: where the work is written.
        rank: number of this process among those that share the work; each keeps out its like.

    Raises:
        InputError: another process is at work there.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / (f"{LOCK}-{rank}" if rank else LOCK)
    opened = locked(file)
    try:
        yield
    finally:
        if opened is not None:
            with suppress(OSError):
                file.unlink()  # before it is given back, so that nobody has locked it meanwhile
            opened.close()
        with suppress(OSError):  # where nothing came of it, nothing is left
            for each in made:
                each.rmdir()


def locked(file: Path) -> IO[str] | None:
    """The file, opened and locked until it is closed; None where that cannot be."""
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
                f"{file.parent} is in use by {who}; wait for its end, stop it, or give another --out"
            ) from None
        except OSError:
            opened.close()
            return None
        if same_file(file, opened):
            opened.truncate(0)
            opened.write(f"process {os.getpid()} on {socket.gethostname()}")
            opened.flush()
            return opened
        opened.close()  # its holder took it away in between
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
    """Whether what is open is still what is there under this name."""
    try:
        return os.path.samestat(file.stat(), os.fstat(opened.fileno()))
    except OSError:
        return False


def is_vacant(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but the locks and drafts that a killed process leaves."""
    if not folder.exists():
        return True
    names = [each.name for each in folder.iterdir()] if folder.is_dir() else [folder.name]
    return all(name.startswith(LOCK) or (name[0] == "." and name.endswith(PART)) for name in names)


@contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether what this file stands for is this process's alone until the block ends; it ends with the process too.

    Args:
        file: made if it is not there, and left.
        wait: until whoever has it lets go.
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
    """Write down size and SHA-256 of all files of a folder, once they are on the disk."""
    found = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb") as opened:
            found[file.name] = {
                "bytes": file.stat().st_size,
                "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
            }
            os.fsync(opened.fileno())
    replace_text(folder / MANIFEST, json.dumps(found, indent=2) + "\n")


def damage(folder: Path, *, hashes: bool = False) -> str | None:
    """What is wrong with a folder that has a manifest; None for one that is whole, or has none.

    Args:
        folder: where.
        hashes: read all files, not only their sizes.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        expected = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, told in expected.items():
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != told["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes instead of {told['bytes']:,}"
            with file.open("rb") as opened:
                if hashes and hashlib.file_digest(opened, "sha256").hexdigest() != told["sha256"]:
                    return f"{name} is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({type(error).__name__})"
    return None
