"""Files that are written whole or not at all, work that one process does at a time, and folders that tell whether they
are as they were written."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path beside this one that takes its place when the block ends, and is removed if it fails.

    Whoever reads meanwhile, or after a crash, finds the file as it was or as it is meant to be. The folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.part")
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
