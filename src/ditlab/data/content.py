"""Hashes that identify data and models by content, for evaluations and studies: names, sizes and times.

They do not depend on the place of the files or on its spelling.
"""

import hashlib
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ditlab.core.spelling import expand, nfc
from ditlab.data.identity import read_stamps
from ditlab.data.npz import array_names
from ditlab.data.sources import Source, Texts


def digest(lines: Iterable[str]) -> str:
    """The hash of some lines, 16 digits."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def images_identity(source: Source) -> str:
    """Hash of what a source lists: the name, label, size and time of each image, and its captions and numbers.

    Other files in the same folder do not matter. Hugging Face data sets have one number for all rows.
    """
    with ThreadPoolExecutor() as pool:
        stamps = read_stamps(source.stamp, source.labels.numpy(), pool)
    rows = zip(stamps.names, stamps.labels.tolist(), stamps.sizes.tolist(), stamps.times.tolist(), strict=True)
    lines = [repr(row) for row in rows] + [repr(source.classes)]
    for name, column in source.columns.items():
        if name != "label":
            lines.append(name)
            lines += _states(column.values)
    return digest(lines)


def _states(values: Tensor | Iterable[str]) -> list[str]:
    """A line for each value of a column; texts that are not in memory are not read."""
    if isinstance(values, Texts):
        return [values.state(i) for i in range(len(values))]
    return [repr(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]


def files_identity(text: str) -> str:
    """Hash of a file or of all files below a folder, such as a model: names in the folder, sizes and times.

    For an .npz file, it covers names, sizes and checksums of the members. Another text is hashed itself.
    """
    if not text:  # names nothing, such as the reference of a metric without one; Path("") is the current folder
        return digest([text])
    path = Path(expand(text))
    if path.suffix == ".npz" and path.is_file():
        array_names(path)
        with zipfile.ZipFile(path) as archive:
            return digest(f"{part.filename} {part.file_size} {part.CRC}" for part in archive.infolist())
    files = {"": path} if path.is_file() else {}
    if path.is_dir():
        files = {nfc(file.relative_to(path).as_posix()): file for file in path.rglob("*") if file.is_file()}
    states = sorted((name, file.stat()) for name, file in files.items())
    return digest([f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in states] or [text])
