"""A store for tests: fsspec's memory, with faults on demand."""

import io
import tarfile
import time
import uuid

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from ditlab.core import file_cache, stores


class ThrottledError(OSError):
    """What a store raises that rejects requests for a while."""

    status = 503


class Faulty(MemoryFileSystem):
    """A store in memory whose next requests fail."""

    protocol = "faulty"
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    failures = []  # noqa: RUF012 - exceptions, or numbers of bytes after which a file ends
    fetched = []  # noqa: RUF012 - paths

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("faulty://", "memory://"))

    def get_file(self, rpath, lpath, **options):
        self.fetched.append(rpath.rpartition("/")[2])
        failure = self.failures.pop(0) if self.failures else None
        if isinstance(failure, Exception):
            raise failure
        super().get_file(rpath, lpath, **options)
        if failure is not None:
            with open(lpath, "r+b") as file:
                file.truncate(failure)


fsspec.register_implementation("faulty", Faulty, clobber=True)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """The address of an empty folder in a store without pauses; copies go to a folder of the test."""
    monkeypatch.setattr(stores, "PAUSES", (0.0, 0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DITLAB_CACHE", str(tmp_path / "copies"))
    file_cache.file_cache.cache_clear()
    Faulty.failures.clear()
    Faulty.fetched.clear()
    return f"faulty://{uuid.uuid4().hex}"


def finish_fetching():
    """Wait until all expected files are fetched."""
    end = time.monotonic() + 60
    while file_cache.file_cache().expected and time.monotonic() < end:
        time.sleep(0.005)


def remove(url):
    """Remove a file from a store."""
    system, path = fsspec.core.url_to_fs(url)
    system.rm_file(path)


def put(url, content):
    """Write a file to a store."""
    system, path = fsspec.core.url_to_fs(url)
    system.pipe_file(path, content)


def png(value=0, side=8):
    """An image of one color."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value % 256, value // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(members):
    """The bytes of a tar file with members name -> content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def put_shards(store, shards=4, each=5):
    """Write shards of numbered images with two classes and captions; returns their pattern."""
    for shard in range(shards):
        members = {}
        for i in range(shard * each, (shard + 1) * each):
            members |= {f"{i:04d}.png": png(i), f"{i:04d}.cls": str(i % 2).encode(), f"{i:04d}.txt": b"number %d" % i}
        put(f"{store}/train-{shard:04d}.tar", tar(members))
    return f"{store}/train-{{0000..{shards - 1:04d}}}.tar"
