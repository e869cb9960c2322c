"""Atomic writes, manifests that detect damaged files, and locks that stop two processes from writing to one folder."""

import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import IO

from ditlab.core.errors import InputError
from ditlab.core.formats import read_object

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

LOCK, PART = ".lock", ".part"
ASIDE = f".old{PART}"  # suffix of a folder that is being replaced
LONGEST = 200  # bytes of a name to which the parts of a temporary name are added; file systems allow 255
TRIES = 100  # attempts to lock a file that other processes replace at the same time


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block ends and is removed if the block fails.

    The block writes a file or a folder there. A process that reads `path` during the block, or after a crash, gets the
    old or the new content, never a mixture. The parent folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.resolve() if path.is_symlink() else path  # the link stays, and its target is replaced
    draft = path.with_name(f".{short(path.name)}.{os.getpid()}-{threading.get_ident()}{PART}")
    remove(draft)
    try:
        yield draft
        move(draft, path)
    finally:
        with suppress(OSError):
            remove(draft)


def move(draft: Path, path: Path) -> None:
    """Rename a file or folder to `path`, which it replaces."""
    if not (draft.is_dir() and path.is_dir()):
        os.replace(draft, path)
        return
    aside = draft.with_name(f"{draft.name.removesuffix(PART)}{ASIDE}")  # only an empty folder can be replaced
    os.replace(path, aside)
    try:
        os.replace(draft, path)
    except BaseException:
        os.replace(aside, path)
        raise
    shutil.rmtree(aside)


def moved_aside(path: Path) -> Path | None:
    """The earlier folder of a process that was killed while it renamed the new one to `path`; None if there is none."""
    if path.exists():
        return None
    return next(iter(sorted(path.absolute().parent.glob(f".{escape(short(path.name))}.*{ASIDE}"))), None)


def short(name: str) -> str:
    """The name of a file or folder, or a hash of it if there is no place for more signs."""
    content = os.fsencode(name)
    return name if len(content) <= LONGEST else hashlib.sha256(content).hexdigest()


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replace_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8 atomically: readers see the old or the new content.

    Bytes of a path that are not UTF-8 become escapes such as \\udcff, which JSON reads back as the same path.
    """
    replace_bytes(file, text.encode(errors="backslashreplace"))


def replace_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old or the new content."""
    with replacing(file) as draft:
        draft.write_bytes(content)


@contextmanager
def held(folder: Path, rank: int = 0) -> Iterator[None]:
    """Hold a lock on a folder during the block, so that no other process does the same work there.

    The folder is created. The operating system releases the lock when the process ends, after a crash too. Nothing is
    locked where the file system has no locks or the folder cannot be written to.

    Args:
        folder: where the results are written.
        rank: number of this process among those that share the work; each rank has a separate lock.

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
    """Open a file and lock it until it is closed; returns None where locking is not possible.

    Raises:
        InputError: another process holds the lock.
    """
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
            holder = opened.read().strip() or "another process"
            opened.close()
            raise InputError(
                f"{file.parent} is in use by {holder}; wait until it ends, stop it, or choose another folder"
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
    """Whether a process holds the lock of a folder (see `held`); None on file systems without locks."""
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
    """Whether the path still refers to the open file."""
    try:
        return os.path.samestat(file.stat(), os.fstat(opened.fileno()))
    except OSError:
        return False


def is_vacant(folder: Path, *patterns: str) -> bool:
    """Whether a folder does not exist, or has nothing but locks and temporary files of a killed process.

    Args:
        folder: the folder.
        patterns: names of further files that do not count, such as "skipped*.csv".
    """
    if not folder.exists():
        return True
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    patterns += (f"{LOCK}*", f".*{PART}")
    return all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in names)


@contextmanager
def claimed(file: Path, *, wait: bool = False) -> Iterator[bool]:
    """Try to lock `file` during the block; yields whether this process holds the lock.

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


def write_manifest(folder: Path, pattern: str = "*") -> None:
    """Write the size and SHA-256 of files of a folder to its manifest, after flushing them to the disk.

    Args:
        folder: the folder.
        pattern: which files, by their names.
    """
    entries = {}
    for file in sorted(folder.glob(pattern)):
        with file.open("rb") as opened:
            entries[file.name] = {
                "bytes": file.stat().st_size,
                "sha256": hashlib.file_digest(opened, "sha256").hexdigest(),
            }
            os.fsync(opened.fileno())
    replace_text(folder / MANIFEST, json.dumps(entries, indent=2) + "\n")


def damage(folder: Path, *, hashes: bool = False, only: str | None = None) -> str | None:
    """Describe what is wrong with a folder that has a manifest; None if it is intact or has no manifest.

    Args:
        folder: the folder with the manifest.
        hashes: compare the hashes of the files too, not only their sizes.
        only: name of the only file that is checked; by default all files of the manifest are checked.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        expected = read_object(folder / MANIFEST)
        for name, entry in expected.items():
            if only not in (None, name):
                continue
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes instead of {entry['bytes']:,}"
            with file.open("rb") as opened:
                if hashes and hashlib.file_digest(opened, "sha256").hexdigest() != entry["sha256"]:
                    return f"the content of {name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({type(error).__name__})"
    return None
