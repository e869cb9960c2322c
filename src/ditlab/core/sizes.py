"""Bounds on the memory that files take: what a small file claims is checked before memory is allocated for it."""

import errno
import zipfile
from pathlib import Path

from ditlab.core.errors import InputError

GROWTH, SPARE = 16, 2**28  # a file may become 16 times its size in memory, and 256 MiB in any case
TEXT = 2**26  # bytes of a JSON or TOML file; as Python objects they take up to 24 times as much
SPECIAL = "not a regular file, such as a pipe or a device"


def most_bytes(stored: int) -> int:
    """The bytes that a file of `stored` bytes may take in memory."""
    return GROWTH * stored + SPARE


def is_special(file: Path) -> bool:
    """Whether a path is a pipe or a device, which may never end."""
    return not file.is_file() and not file.is_dir() and file.exists()


def check_regular(file: Path) -> None:
    """Check that a path is no pipe or device; it may not exist, or be a folder.

    Raises:
        InputError: it is.
    """
    if is_special(file):
        raise InputError(f"{file} is {SPECIAL}; give a file")


def read_text(file: Path) -> str:
    """The text of a JSON or TOML file.

    Raises:
        OSError: it cannot be read, or is a pipe or a device.
        ValueError: it is no text, or is too large.
    """
    if is_special(file):
        raise OSError(errno.EINVAL, SPECIAL, str(file))
    if (size := file.stat().st_size) > TEXT:
        raise ValueError(f"it has {size:,} bytes, and at most {TEXT:,} are read")
    return file.read_text(encoding="utf-8")


def check_archive(file: Path) -> None:
    """Check what the directory of a zip file (.npz, .pt) says about the size of its content.

    Raises:
        InputError: the file is much smaller than its content.
        OSError, zipfile.BadZipFile: the file cannot be read.
    """
    with zipfile.ZipFile(file) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    size = file.stat().st_size
    if claimed > most_bytes(size):
        raise InputError(
            f"{file} has {size:,} bytes, which become {claimed:,} when they are decompressed; at most "
            f"{most_bytes(size):,} are read: write it again without compression"
        )
