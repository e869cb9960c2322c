"""Files in stores: object stores and web servers (s3://, gs://, hf://, https://), and every other protocol of fsspec.

A failure of a store that may pass, such as throttling, is tried again with growing pauses, about half a minute in all;
the package of a store may try each request several times too. Whether a file has changed does not depend on the clock
of this machine: it is the same while its size and its version (the ETag, otherwise its time in the store) are the same.
"""

import json
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ditlab.core.errors import InputError, SourceError
from ditlab.core.formats import reason
from ditlab.core.io import FULL

T = TypeVar("T")
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before each further attempt
PATIENCE = 120.0  # seconds after which no further attempt begins: each may take minutes if a store does not respond
SKEW = 600.0  # seconds between two clocks after which stores deny access; S3 allows 900
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "http": "aiohttp", "https": "aiohttp"}
VERSIONS = ("ETag", "etag", "blob_id", "md5", "LastModified", "Last-Modified", "updated", "mtime", "created")
"""What a store says about the content of a file, best first."""
NO_ACCESS = (401, 403)  # statuses of HTTP
ABSENT = (404, 410)
REJECTED = 400  # S3 answers so to a token that has expired, if only the size of a file is requested


class StoreError(SourceError):
    """A store does not hold or deliver what was asked for."""


class AbsentError(StoreError):
    """A file or folder does not exist."""


@dataclass(frozen=True)
class StoredFile:
    """A file in a store, as it was when it was listed."""

    url: str
    size: int
    version: str = ""
    """A text that differs if the content may have changed; empty if the store has none."""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(self.url).name

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.url).stem

    @property
    def parent(self) -> str:
        """The address of the folder."""
        return self.url.rpartition("/")[0]

    @property
    def time(self) -> int:
        """The version as a number, in place of the modification time of a file on this machine."""
        return int.from_bytes(blake2b(self.version.encode(), digest_size=7).digest(), "big")


def is_url(text: str) -> bool:
    """Whether a text is the address of a file or folder in a store."""
    return URL.match(text) is not None


def join(folder: str, name: str) -> str:
    """The address of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def connect(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        InputError: the protocol is not known, or its package is not installed.
    """
    protocol, _, address = url.partition("://")
    if not address.strip("/"):
        raise InputError(f"{url} names no file or folder; give an address such as {protocol}://BUCKET/FOLDER")
    import fsspec  # type: ignore[import-untyped]  # here, because every command imports this file

    try:
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        needs = f"the package {package}; pip install {package}" if package else f"another package: {reason(error)}"
        raise InputError(f"{url} needs {needs}") from None
    except ValueError as error:
        if "rotocol not known" not in str(error):
            raise StoreError(f"{url} cannot be used ({reason(error)}); correct the address") from error
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise InputError(
            f'unknown protocol "{protocol}" of {url}; give one that fsspec knows, such as {known}'
        ) from None
    except Exception as error:
        raise problem(url, error) or unavailable(url, error, 1) from error
    return system, path


def attempt(url: str, action: Callable[[], T]) -> T:
    """Call a function that uses a store, again with pauses while the store fails in a way that may pass.

    Raises:
        StoreError: the file does not exist, access is denied, or the store fails for too long.
        OSError: the disk of this machine is full.
    """
    start = time.monotonic()
    for attempts, pause in enumerate((*PAUSES, None), 1):
        try:
            return action()
        except (InputError, FileExistsError):
            raise
        except Exception as error:  # the libraries of the stores raise errors of many types
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            if (known := problem(url, error)) is not None:
                raise known from error
            if pause is None or time.monotonic() - start > PATIENCE:
                raise unavailable(url, error, attempts) from error
            warnings.warn(f"{url}: {reason(error)}; trying again in {pause:g} s", stacklevel=2)
            time.sleep(pause)
    raise AssertionError


def problem(url: str, error: Exception) -> StoreError | None:
    """The error to report for a failure that does not pass by itself; None for one that may."""
    chain = list(causes(error))
    status = next(filter(None, map(status_of, chain)), None)
    text = " ".join(f"{type(cause).__name__} {cause}" for cause in chain).lower()
    denied = any(isinstance(cause, PermissionError) for cause in chain) or status in NO_ACCESS or "credential" in text
    if "skew" in text or (denied and any(map(clock_differs, chain))):
        return StoreError(f"{url}: the clocks of the store and of this machine differ; set the clock of this machine")
    web = url.startswith("http")
    if status in ABSENT or (isinstance(error, FileNotFoundError) and not (web and error.__cause__)):
        return AbsentError(f"{url} does not exist; correct the address, or restore the file")
    if denied or (status == REJECTED and not any(isinstance(cause, TimeoutError) for cause in chain)):
        return StoreError(
            f"no access to {url} ({reason(chain[-1] if status else error)}); give credentials as its service reads "
            "them (such as AWS_PROFILE, gcloud auth or hf auth login), and check that they allow it"
        )
    if isinstance(error, NotImplementedError):
        return StoreError(f"{url} cannot be written or listed; give another store")
    return None


def causes(error: BaseException | None) -> Iterator[Exception]:
    """An error and those that it was raised from: fsspec calls every failure of a web server a missing file."""
    while isinstance(error, Exception):
        yield error
        error = error.__cause__


def status_of(error: BaseException) -> int | None:
    """The status of HTTP that an error of a store's package reports."""
    statuses = [response_of(error).get("HTTPStatusCode"), getattr(error, "status", None)]
    if statuses == [None, None]:
        statuses.append(getattr(error, "code", None))  # of gcsfs; deprecated in aiohttp
    return next((status for status in statuses if isinstance(status, int)), None)


def response_of(error: BaseException) -> dict[str, Any]:
    """Status and headers of the response that an error of botocore reports; empty for other errors."""
    response = getattr(error, "response", None)
    return response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}


def clock_differs(error: BaseException) -> bool:
    """Whether the response with an error has another time than this machine."""
    headers = response_of(error).get("HTTPHeaders") or getattr(error, "headers", None) or {}
    try:
        sent = parsedate_to_datetime(str(headers.get("date") or headers.get("Date")))
        return abs((sent - datetime.now(UTC)).total_seconds()) > SKEW
    except (AttributeError, TypeError, ValueError):  # no time, or none in the form of HTTP
        return False


def unavailable(url: str, error: Exception, attempts: int) -> StoreError:
    """The error to report for a store that has failed too often."""
    count = "once" if attempts == 1 else f"{attempts} times in a row"
    cause = list(causes(error))[-1]
    return StoreError(f"{url}: the store has failed {count} ({reason(cause)}); run the same command later")


def stat(url: str) -> StoredFile:
    """The present state of a file.

    Raises:
        StoreError: it does not exist, or the store cannot be used.
    """
    system, path = connect(url)
    return described(url, attempt(url, lambda: system.info(path)))


def described(url: str, info: dict[str, Any]) -> StoredFile:
    """A file from what its store says about it."""
    value = next((info[key] for key in VERSIONS if info.get(key)), "")
    version = str(value.timestamp() if isinstance(value, datetime) else value)  # lists and single requests differ
    if info.get("size") is None:
        raise StoreError(f"{url}: the store does not say its size; give another store")
    return StoredFile(url, int(info["size"]), version)


def exists(url: str) -> bool:
    """Whether a file exists.

    Raises:
        StoreError: the store cannot be used.
    """
    system, path = connect(url)
    try:
        return bool(attempt(url, lambda: system.info(path)))
    except AbsentError:
        return False


def matching(folder: str, pattern: str) -> dict[str, StoredFile]:
    """The files in a folder that match a pattern with "*", "?" or "[...]", in order: name in the folder -> file.

    Raises:
        StoreError: the store cannot be used, or does not list files.
    """
    system, root = connect(folder)
    root = root.rstrip("/")
    infos = attempt(folder, lambda: system.glob(f"{root}/{pattern}", detail=True))
    files = {path.removeprefix(root).lstrip("/"): info for path, info in infos.items() if info["type"] != "directory"}
    return {name: listed(join(folder, name), info) for name, info in sorted(files.items())}


def listed(url: str, info: dict[str, Any]) -> StoredFile:
    """A file from its entry in a list; some web servers list names only."""
    return described(url, info) if info.get("size") is not None else stat(url)


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file, or a part of them.

    Raises:
        StoreError: the file does not exist, or the store cannot be used or returns less.
    """
    system, path = connect(url)

    def part() -> bytes:
        content: bytes = system.cat_file(path, start=start, end=end)
        if start is not None and end is not None and len(content) != end - start:
            raise OSError(f"the store returned {len(content):,} of {end - start:,} bytes")
        return content

    return attempt(url, part)


def read_json(url: str) -> dict[str, Any]:
    """A file with a JSON object.

    Raises:
        StoreError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(read(url))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise StoreError(f"{url} is damaged ({reason(error)}); restore it") from error
    if not isinstance(content, dict):
        raise StoreError(f"{url} holds no JSON object; restore it")
    return content


def download(file: StoredFile, target: Path) -> None:
    """Write a whole file to `target`, and check that it is the listed one.

    Raises:
        StoreError: the file is no longer there or is another one, or the store cannot be used.
        OSError: the disk is full.
    """
    system, path = connect(file.url)

    def copy() -> None:
        system.get_file(path, str(target))
        if (count := target.stat().st_size) == file.size:
            return
        if stat(file.url) == file:
            raise OSError(f"the store returned {count:,} of {file.size:,} bytes")

    attempt(file.url, copy)
    if (now := stat(file.url)) != file:
        raise StoreError(
            f"{file.url} has changed since it was listed ({now.size:,} bytes, not {file.size:,}); restore it, or start "
            "the command again to list it again"
        )


def upload(source: Path, url: str) -> None:
    """Write a file to a store; readers see all of it or nothing where the store puts whole objects, as S3 does.

    Raises:
        StoreError: the store cannot be used.
    """
    system, path = connect(url)
    attempt(url, lambda: system.put_file(str(source), path))


def write(url: str, content: bytes) -> None:
    """Write the content of a file to a store.

    Raises:
        StoreError: the store cannot be used.
    """
    system, path = connect(url)
    attempt(url, lambda: system.pipe_file(path, content))


def discard(url: str) -> None:
    """Remove a file, or a folder with all files in it, if it exists.

    Raises:
        StoreError: the store cannot be used.
    """
    system, path = connect(url)
    with suppress(AbsentError):
        attempt(url, lambda: system.rm(path, recursive=True))


def create(url: str, content: bytes) -> bool:
    """Write a file unless it exists; returns whether it was written. The store decides between several writers.

    Raises:
        StoreError: the bucket does not exist, or the store cannot be used.
    """
    system, path = connect(url)
    try:
        attempt(url, lambda: system.pipe_file(path, content, mode="create"))
    except FileExistsError:
        return False
    except AbsentError as error:
        bucket = "/".join(url.split("/")[:3])
        raise AbsentError(f"{bucket} does not exist; create it, or correct the address") from error
    return True
