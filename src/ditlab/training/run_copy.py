"""The copy of a run in a store: each checkpoint is copied after it is written, and a run on another machine resumes.

    url/run.json                          identity of the run
    url/writer.json                       the process that writes, with a number that it raises from time to time
    url/checkpoints/000000128000/         a checkpoint; its manifest.json is written last, and without it there is none
    url/recipe.toml, metrics.jsonl, ...   as in the run folder

One process writes. Another one watches the number in writer.json for a while: if it rises, the first process lives, and
the second one is refused. No clocks are compared.
"""

import os
import socket
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from json import dumps
from pathlib import Path
from threading import Event, Thread

from ditlab.core.errors import InputError
from ditlab.core.formats import read_object
from ditlab.core.io import MANIFEST, damage, remove, replace_text, replacing
from ditlab.core.stores import StoreError, create, discard, download, exists, join, matching, read_json, upload, write
from ditlab.core.weights import checkpoints

RUN, WRITER = "run.json", "writer.json"
IDENTITY = "upload.json"
"""File of the run folder with the identity of the run, if it is copied."""
RECORDS = ("recipe.toml", "images.npz", "data.json", "*.jsonl", "previews/*", "averages/*")
BEAT = 20.0  # seconds between two numbers of a writer
WATCHED = 65.0  # seconds in which the number of a living writer has risen


class RunCopy:
    """The copy of a run folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.me = f"process {os.getpid()} on {socket.gethostname()} ({uuid.uuid4().hex[:8]})"
        self.beats, self.ended, self.fetched = 0, Event(), False
        self.thread = Thread(target=self._keep_beating, daemon=True)
        self.sent: dict[Path, tuple[int, int]] = {}

    def begin(self) -> list[str]:
        """Become the writer, and fetch the newest checkpoint if it is newer than those in the folder.

        Returns:
            A line on what was fetched, if anything was.

        Raises:
            InputError: another run is there, another process writes, or the store cannot be used.
        """
        self.claim()
        self.wait_for_writer()
        self.beat()
        self.thread.start()
        mine = checkpoints(self.folder)[-1:]
        newest = int(mine[0].name) if mine else -1
        for name in sorted(matching(join(self.url, "checkpoints"), f"*/{MANIFEST}"), reverse=True):
            number = name.partition("/")[0]
            if int(number) > newest and self.fetch(number):
                self.fetched = True
                return [f"fetched the checkpoint of {int(number):,} images from {self.url}"]
        return []

    def claim(self) -> None:
        """Check that the store has this run or none, and note which run it is.

        Raises:
            InputError: it has another run.
        """
        file = self.folder / IDENTITY
        mine = read_object(file).get(self.url) if file.exists() else None
        fresh = mine is None and not checkpoints(self.folder)
        identity = mine or uuid.uuid4().hex
        if not create(join(self.url, RUN), dumps({"run": identity}).encode()):
            there = read_json(join(self.url, RUN)).get("run")
            if there != identity and not fresh:
                raise InputError(f"{self.url} holds another run than {self.folder}; give another address")
            identity = str(there)
        replace_text(file, dumps({self.url: identity}) + "\n")

    def writer(self) -> dict[str, object]:
        """What writer.json says; empty if there is none."""
        return read_json(place) if exists(place := join(self.url, WRITER)) else {}

    def wait_for_writer(self) -> None:
        """Check that no other process writes.

        Raises:
            InputError: one does.
        """
        before = self.writer()
        end = time.monotonic() + WATCHED
        while before.get("writer") and time.monotonic() < end:
            time.sleep(WATCHED / 8)
            if (now := self.writer()).get("writer") and now != before:
                raise InputError(f"{self.url} is written by {now['writer']}; stop it, or give another address")
            if not now.get("writer"):
                return

    def beat(self) -> None:
        """Raise the number of this writer."""
        self.beats += 1
        write(join(self.url, WRITER), dumps({"writer": self.me, "beat": self.beats}).encode())

    def check_writer(self) -> None:
        """Check that this process is still the writer.

        Raises:
            InputError: another one has taken its place, because this one was silent for too long.
        """
        writer = self.writer().get("writer")
        if writer != self.me:
            raise InputError(f"{self.url} is now written by {writer}; this run is saved in {self.folder}")

    def _keep_beating(self) -> None:
        while not self.ended.wait(BEAT):
            with suppress(StoreError):  # the next checkpoint reports it
                if self.writer().get("writer") != self.me:
                    return
                self.beat()

    def end(self) -> None:
        """Stop being the writer."""
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
            with suppress(StoreError):
                if self.writer().get("writer") == self.me:
                    write(join(self.url, WRITER), b"{}")

    def fetch(self, number: str) -> bool:
        """Fetch a checkpoint and the records; returns whether it is whole."""
        url, target = join(self.url, f"checkpoints/{number}"), self.folder / "checkpoints" / number
        with replacing(target) as draft:
            for name, file in matching(url, "**").items():
                (draft / name).parent.mkdir(parents=True, exist_ok=True)
                download(file, draft / name)
        if (problem := damage(target, hashes=True)) is not None:
            warnings.warn(f"{url} is damaged and is skipped: {problem}", stacklevel=2)
            remove(target)
            return False
        for pattern in RECORDS:
            for name, file in matching(self.url, pattern).items():
                with replacing(self.folder / name) as draft:
                    download(file, draft)
        return True

    def send(self, checkpoint: Path, removed: list[str]) -> None:
        """Copy a checkpoint that was written, and the records.

        Args:
            checkpoint: its folder.
            removed: names of the checkpoints that were removed from the run folder.

        Raises:
            InputError: another process has become the writer, or the store cannot be used.
        """
        self.check_writer()
        url = join(self.url, f"checkpoints/{checkpoint.name}")
        manifest = checkpoint / MANIFEST
        for file in sorted(checkpoint.rglob("*")):
            if file.is_file() and file != manifest:
                upload(file, join(url, file.relative_to(checkpoint).as_posix()))
        for pattern in RECORDS:
            for file in sorted(self.folder.glob(pattern)):
                state = file.stat()
                if file.name[0] != "." and self.sent.get(file) != (state.st_size, state.st_mtime_ns):
                    write(join(self.url, file.relative_to(self.folder).as_posix()), file.read_bytes())
                    self.sent[file] = state.st_size, state.st_mtime_ns
        upload(manifest, join(url, MANIFEST))
        for name in removed:
            discard(join(self.url, f"checkpoints/{name}/{MANIFEST}"))
            discard(join(self.url, f"checkpoints/{name}"))


@contextmanager
def copied(folder: Path, url: str, first: bool) -> Iterator[RunCopy | None]:
    """The copy of a run folder during the block, in the first process; None in others and without an address.

    Args:
        folder: the run folder.
        url: address of the copy; empty for none.
        first: whether this is the first process of the run.
    """
    if not url or not first:
        yield None
        return
    copy = RunCopy(folder, url)
    try:
        yield copy
    finally:
        copy.end()
