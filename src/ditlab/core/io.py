"""Atomic writes, manifests that detect damaged files, and locks that stop two processes from writing to one folder."""

import errno
import hashlib
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from glob import escape
from io import FileIO
from pathlib import Path

from ditlab.core.errors import InputError
from ditlab.core.formats import read_object, reason
from ditlab.core.spelling import LONGEST

LOCK, PART = ".lock", ".part"
ASIDE = f".old{PART}"  # suffix of a folder that is being replaced
AGAIN = "free some space and run the same command again"  # remedy of work that resumes
WINDOWS = os.name == "nt"  # it neither replaces nor removes a file that any process has open
WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds to wait for such a process, which often just reads the file
TRIES = 100  # attempts to lock a file that other processes replace at the same time
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no more can be written
NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EISDIR)  # not a failing disk


@contextmanager
def writing(what: object, remedy: str = "free some space or give another path") -> Iterator[None]:
    """Report that the enclosed block cannot write something, for example because the disk is full.

    Args:
        what: the file or folder, for the message.
        remedy: what to do, for the message.

    Raises:
        InputError: the block has failed with an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {what}: {reason(error)}; {remedy}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces it when the block ends and is removed if the block fails.

    The block writes a file or a folder there. A process that reads `path` during the block, or after a crash or a power
    cut, gets the old or the new content, never a mixture. The parent folder is created.
    """
    make_folder(path.parent)
    path = path.resolve() if path.is_symlink() else path  # the link stays, and its target is replaced
    draft = path.with_name(f".{short(path.name)}.{os.getpid()}-{threading.get_ident()}{PART}")
    remove(draft)
    try:
        with named(path):
            yield draft
            sync(draft)  # before the new name can be on the disk
            move(draft, path)
    finally:
        with suppress(OSError):
            remove(draft)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the path that is written to the error of a full disk, which does not name it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in FULL:
            error.filename = str(path)
        raise


def move(draft: Path, path: Path) -> None:
    """Rename a file or folder to `path`, which it replaces, and wait until the new name is on the disk."""
    if not (draft.is_dir() and path.is_dir()):
        patiently(lambda: os.replace(draft, path))
        sync_folder(path.parent)
        return
    aside = draft.with_name(f"{draft.name.removesuffix(PART)}{ASIDE}")  # only an empty folder can be replaced
    patiently(lambda: os.replace(path, aside))
    try:
        patiently(lambda: os.replace(draft, path))
    except BaseException:
        os.replace(aside, path)
        raise
    sync_folder(path.parent)
    shutil.rmtree(aside)


def patiently(change: Callable[[], None]) -> None:
    """Rename or remove something; on Windows, try again for a moment if another process has a file open."""
    for seconds in WAITS if WINDOWS else ():
        try:
            return change()
        except PermissionError:
            time.sleep(seconds)
    return change()


def discard(path: Path) -> None:
    """Remove a file or folder that is no longer needed, if it exists; on Windows it stays while a process has it open.

    Raises:
        OSError: it cannot be removed for another reason.
    """
    try:
        patiently(lambda: remove(path))
    except PermissionError:
        if not WINDOWS:
            raise


def make_folder(folder: Path) -> None:
    """Create a folder and its parents where they do not exist, and wait until their names are on the disk."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in created:
        sync_folder(path.parent)


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that it contains, is on the disk, so that a power cut cannot lose it.

    Raises:
        OSError: the disk failed.
    """
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
        sync_folder(path)
        return
    with path.open("r+b" if WINDOWS else "rb") as opened:  # Windows needs permission to write, others do not
        flush_to_disk(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that: Windows cannot."""
    if WINDOWS:
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            flush_to_disk(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def flush_to_disk(descriptor: int) -> None:
    """Wait until an open file is on the disk, and not only in the disk's own memory (as `os.fsync` does on macOS)."""
    if sys.platform == "darwin":
        import fcntl

        with suppress(OSError):  # a network disk does not have it
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


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
        make_folder(folder)
    file = folder / (f"{LOCK}-{rank}" if rank else LOCK)
    opened = locked(file)
    try:
        yield
    finally:
        if opened is not None:
            release(file, opened)
        with suppress(OSError):  # folders that stayed empty are removed again
            for path in created:
                path.rmdir()


def locked(file: Path) -> FileIO | None:
    """Open a file and lock it until it is closed; returns None where locking is not possible.

    The file names this process. Its first byte is what is locked on Windows, where others cannot read it, so that the
    name comes after it.

    Raises:
        InputError: another process holds the lock.
    """
    for _ in range(TRIES):
        try:
            opened = file.open("a+b", buffering=0)
        except OSError:
            return None
        try:
            mine = lock(opened)
        except OSError:
            opened.close()
            return None
        if not mine:
            with opened:
                opened.seek(1)
                holder = opened.read().decode(errors="replace").strip() or "another process"
            raise InputError(
                f"{file.parent} is in use by {holder}; wait until it ends, stop it, or choose another folder"
            )
        if WINDOWS or same_file(file, opened):  # Windows does not replace a file that is open
            opened.truncate(0)
            with suppress(OSError):  # a full disk; what is written next reports it
                opened.write(f" process {os.getpid()} on {socket.gethostname()}".encode())
            return opened
        opened.close()  # another process removed or replaced the file in between
    return None


def lock(opened: FileIO, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed; returns whether it is locked, or another process holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    from filelock import lock_descriptor  # here, because every command imports this file

    return lock_descriptor(opened.fileno(), blocking=wait)


def release(file: Path, opened: FileIO) -> None:
    """Release a lock and remove its file."""
    if not WINDOWS:
        with suppress(OSError):
            file.unlink()  # before it is released, so that no other process has locked it in between
    opened.close()
    if WINDOWS:
        with suppress(OSError):
            file.unlink()  # only now, because an open file cannot be removed; it stays if another process has it


def in_use(folder: Path) -> bool | None:
    """Whether a process holds the lock of a folder (see `held`); None on file systems without locks."""
    try:
        with (folder / LOCK).open("rb", buffering=0) as opened:
            return not lock(opened)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def same_file(file: Path, opened: FileIO) -> bool:
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
    """Try to lock `file` during the block; yields whether this process holds the lock, or could hold none anyway.

    Args:
        file: created if it does not exist, and not removed.
        wait: wait until another process releases the lock.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as opened:
        try:
            mine = lock(opened, wait=wait)
        except OSError:  # the file system has no locks, so that a process works alone
            mine = True
        yield mine


def hash_file(file: Path) -> str:
    """SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


MANIFEST = "manifest.json"


def entry_of(file: Path) -> dict[str, int | str]:
    """The entry of a file in a manifest: its size and SHA-256."""
    return {"bytes": file.stat().st_size, "sha256": hash_file(file)}


def write_manifest(folder: Path, pattern: str = "*", known: Mapping[str, dict[str, int | str]] | None = None) -> None:
    """Write the size and SHA-256 of files of a folder to its manifest.

    Args:
        folder: the folder.
        pattern: which files, by their names.
        known: entries of files in folders of the folder, by their relative paths.
    """
    files = sorted(file for file in folder.glob(pattern) if file.is_file())
    entries = {file.name: entry_of(file) for file in files} | dict(known or {})
    replace_text(folder / MANIFEST, json.dumps(entries, indent=2) + "\n")


def damage(
    folder: Path, *, hashes: bool = False, only: str | None = None, share: tuple[int, int] = (0, 1)
) -> str | None:
    """Describe what is wrong with a folder that has a manifest; None if it is intact or has no manifest.

    Args:
        folder: the folder with the manifest.
        hashes: compare the hashes of the files too, not only their sizes.
        only: name of the only file that is checked, or a pattern such as "raw/*"; by default all files of the manifest
            are checked.
        share: (i, n) compares the hashes of every n-th file only, beginning with file i.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        expected = read_object(folder / MANIFEST)
        for i, (name, entry) in enumerate(expected.items()):
            if only is not None and not fnmatchcase(name, only):
                continue
            file = folder / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != entry["bytes"]:
                return f"{name} has {file.stat().st_size:,} bytes instead of {entry['bytes']:,}"
            if hashes and i % share[1] == share[0] and hash_file(file) != entry["sha256"]:
                return f"the content of {name} has changed since it was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        name = Path(error.filename).name if isinstance(error, OSError) and error.filename else MANIFEST
        return f"{name} cannot be read ({type(error).__name__})"
    return None
