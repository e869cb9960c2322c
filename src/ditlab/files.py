"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
