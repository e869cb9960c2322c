"""Copies of files from stores on the disk of this machine, in a folder of bounded size.

    folder/files/KEY        a whole file; KEY depends on its address, size and version
    folder/folders/KEY/     the files of a folder that are needed all the time, such as the index of a latent cache
    folder/locks/XX.lock    held while a file whose key begins with XX is fetched, so that one process fetches it

The folder and its size are properties of the machine and not of a recipe: the environment variables DITLAB_CACHE (by
default "remote" in the user's cache folder of ditlab) and DITLAB_CACHE_GIB (by default 50). Files that were not used
for the longest time are removed first.
"""

import hashlib
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import BinaryIO

from ditlab.core.device import cache_folder
from ditlab.core.errors import InputError, SourceError
from ditlab.core.formats import reason
from ditlab.core.io import FULL, claimed, discard, make_folder, replacing
from ditlab.core.stores import StoredFile, StoreError, download, matching, read

FOLDER, LIMIT = "DITLAB_CACHE", "DITLAB_CACHE_GIB"
GIB = 50.0
FETCHERS = 4  # files that a process fetches at the same time, before they are needed
TOUCHED = 60.0  # seconds between two notes of the use of a file
ABANDONED = 86_400.0  # seconds after which a file that is not complete was left by a process that was killed
RACES = 100  # times that other processes may remove a file between fetching and opening it


class FileCache:
    """The copies in a folder; several processes may use it at the same time."""

    def __init__(self, folder: Path, limit: int) -> None:
        """A folder, which may not exist yet, and the bytes of all copies together."""
        self.folder, self.limit = folder, limit
        self.used: dict[Path, float] = {}
        self.places: dict[StoredFile, Path] = {}
        self.expected: set[Path] = set()
        self.waiting: SimpleQueue[StoredFile] = SimpleQueue()
        self.fetchers: list[Thread] = []

    def place(self, file: StoredFile) -> Path:
        """Where the copy of a file is, or will be."""
        if (place := self.places.get(file)) is None:
            place = self.folder / "files" / digest(f"{file.url} {file.size} {file.version}")
            self.places[file] = place
        return place

    def open(self, file: StoredFile) -> BinaryIO:
        """Open the copy of a file, which is fetched first if it is not there.

        Raises:
            StoreError: the file has disappeared or changed, or the cache has no room for it.
        """
        place = self.place(file)
        for _ in range(RACES):
            try:
                opened = place.open("rb")
            except FileNotFoundError:
                self.fetch(file)
                continue
            if os.fstat(opened.fileno()).st_size == file.size:
                self.touch(place)
                return opened
            opened.close()  # damaged by another program
            discard(place)
        raise StoreError(f"{place} is removed again and again; raise {LIMIT}, or set {FOLDER} to another folder")

    def read(self, file: StoredFile, start: int, length: int) -> bytes:
        """A part of a file: from its copy if there is one, otherwise from the store."""
        if not self.place(file).exists():
            return read(file.url, start, start + length)
        with self.open(file) as opened:
            opened.seek(start)
            return opened.read(length)

    def expect(self, files: Iterable[StoredFile]) -> None:
        """Fetch files in the background; a failure is reported when the file is opened."""
        for file in files:
            place = self.place(file)
            if place not in self.expected and not place.exists():
                self.expected.add(place)
                self.waiting.put(file)
        while self.expected and len(self.fetchers) < FETCHERS:
            self.fetchers.append(Thread(target=self._fetch_ahead, daemon=True))  # the program need not wait for them
            self.fetchers[-1].start()

    def _fetch_ahead(self) -> None:
        while True:
            file = self.waiting.get()
            with suppress(InputError):
                self.fetch(file)
            self.expected.discard(self.place(file))

    def fetch(self, file: StoredFile) -> None:
        """Make the copy of a file, whole or not at all; another process that does so is waited for.

        Raises:
            StoreError: the file has disappeared or changed, or the cache has no room for it.
        """
        place = self.place(file)
        try:
            with claimed(self.folder / "locks" / f"{place.name[:2]}.lock", wait=True):
                if place.exists():
                    return
                self.make_room(file)
                with replacing(place) as draft:
                    download(file, draft)
        except OSError as error:
            remedy = "free some space" if error.errno in FULL else "check its permissions"
            raise StoreError(
                f"cannot write to the cache folder {self.folder} ({reason(error)}); {remedy}, or set {FOLDER} to "
                "another folder"
            ) from error

    def make_room(self, file: StoredFile) -> None:
        """Remove the copies that were not used for the longest time until there is room for a file.

        Raises:
            StoreError: the file is larger than the cache may be.
        """
        if file.size > self.limit:
            raise StoreError(
                f"{file.url} has {in_gib(file.size)}, but all copies in {self.folder} may have {in_gib(self.limit)}; "
                f"raise {LIMIT}"
            )
        make_folder(self.folder / "files")
        copies = []
        for entry in os.scandir(self.folder / "files"):
            with suppress(FileNotFoundError):  # another process has just removed or renamed it
                state = entry.stat()
                copies.append((state.st_mtime, state.st_size, Path(entry.path)))
        total = file.size + sum(size for _, size, _ in copies)
        for used, size, path in sorted(copies):
            if total <= self.limit:
                return
            if path.name[0] != "." or time.time() - used > ABANDONED:
                discard(path)
                total -= size

    def touch(self, place: Path) -> None:
        """Note that a copy is used."""
        now = time.monotonic()
        if now - self.used.get(place, -TOUCHED) >= TOUCHED:
            self.used[place] = now
            with suppress(OSError):
                os.utime(place)

    def check_room(self, sizes: Iterable[int], what: str) -> None:
        """Check that files that are needed at the same time fit.

        Raises:
            InputError: they do not; the message begins with `what`.
        """
        if (total := sum(sizes)) > self.limit:
            raise InputError(
                f"{what} {in_gib(total)}, but all copies in {self.folder} may have {in_gib(self.limit)}; raise {LIMIT}"
            )

    def mirror(self, url: str, *patterns: str) -> Path:
        """A folder on this machine with the files of a store's folder; earlier states of it stay too.

        Args:
            url: the folder in the store.
            patterns: the files, by their names in the folder, such as "*.json".

        Raises:
            InputError: the store cannot be used, or the files are larger than the cache may be.
        """
        files = {name: file for pattern in patterns for name, file in matching(url, pattern).items()}
        self.check_room((file.size for file in files.values()), f"the files of {url} have")
        states = [f"{name} {file.size} {file.version}" for name, file in files.items()]
        target = self.folder / "folders" / digest("\n".join([url, *states]))
        with claimed(self.folder / "locks" / f"{target.name[:2]}.lock", wait=True):
            if not target.exists():
                with replacing(target) as draft:
                    draft.mkdir()
                    for name, file in files.items():
                        (draft / name).parent.mkdir(parents=True, exist_ok=True)
                        download(file, draft / name)
        return target


def read_part(file: Path | StoredFile, start: int, length: int, *, whole: bool = True) -> bytearray:
    """A part of a file that holds many images.

    Args:
        file: a file on this machine or in a store.
        start: position of the first byte.
        length: number of bytes.
        whole: whether a file in a store is fetched whole, because further parts will be read.

    Raises:
        SourceError: the file is missing or ends before, or the store cannot be used.
    """
    if isinstance(file, StoredFile) and not whole:
        return bytearray(file_cache().read(file, start, length))
    try:
        with file_cache().open(file) if isinstance(file, StoredFile) else file.open("rb", buffering=0) as opened:
            opened.seek(start)
            content = bytearray(opened.read(length) or b"")
    except OSError as error:
        raise SourceError(f"{file} cannot be read ({reason(error)}); restore this file") from error
    if len(content) < length:
        raise SourceError(f"{file} ends before byte {start + length:,}, so it has changed; restore this file")
    return content


def digest(text: str) -> str:
    """A file name for any text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def in_gib(size: int) -> str:
    """A number of bytes for a message."""
    return f"{size / 2**30:.3g} GiB"


@cache
def file_cache() -> FileCache:
    """The cache of this machine; the environment variables are read once, because images are opened often.

    Raises:
        InputError: DITLAB_CACHE_GIB is no number above 0.
    """
    text = os.environ.get(LIMIT) or f"{GIB:g}"
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < float("inf"):
        raise InputError(f'{LIMIT} is "{text}"; give a number of GiB above 0')
    return FileCache(Path(os.environ.get(FOLDER) or cache_folder() / "remote").absolute(), int(gib * 2**30))
