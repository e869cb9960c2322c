"""Stores: every failure is one line that names the address and the remedy, and copies are whole or absent."""

import errno
import os
import re
import time
import warnings
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from fake_store import Faulty, ThrottledError, finish_fetching, put

from ditlab.core import file_cache, stores
from ditlab.core.errors import InputError
from ditlab.core.stores import StoredFile, StoreError, create, exists, matching, read, read_json, stat


def copies(tmp_path):
    return sorted(path.stat().st_size for path in (tmp_path / "copies" / "files").iterdir())


def test_a_file_is_fetched_once(store, tmp_path):
    put(f"{store}/a.bin", bytes(100))
    file, cache = stat(f"{store}/a.bin"), file_cache.file_cache()
    for _ in range(3):
        with cache.open(file) as opened:
            assert opened.read() == bytes(100)
    assert (Faulty.fetched, copies(tmp_path)) == (["a.bin"], [100])
    assert (file.name, file.stem, file.parent) == ("a.bin", "a", store)


def test_names_in_a_folder(store):
    for name in ("b.tar", "a.tar", "a.txt", "deep/c.tar"):
        put(f"{store}/{name}", b"1")
    assert [*matching(store, "*.tar")] == ["a.tar", "b.tar"]
    assert matching(store, "deep/*")["deep/c.tar"].url == f"{store}/deep/c.tar"
    assert exists(f"{store}/a.tar")
    assert not exists(f"{store}/z.tar")
    assert (read(f"{store}/a.tar"), read(f"{store}/a.tar", 0, 1)) == (b"1", b"1")


def test_only_one_writer_creates_a_file(store):
    assert [create(f"{store}/claim", writer) for writer in (b"1", b"2")] == [True, False]
    assert read(f"{store}/claim") == b"1"


def test_a_bucket_that_does_not_exist(store, monkeypatch):
    def absent(self, path, content, **options):
        raise FileNotFoundError("The specified bucket does not exist")

    monkeypatch.setattr(Faulty, "pipe_file", absent)
    with pytest.raises(StoreError) as error:
        create(f"{store}/run/claim", b"1")
    assert str(error.value) == f"{store} does not exist; create it, or correct the address"


def test_unknown_protocols_and_missing_packages(monkeypatch):
    with pytest.raises(InputError) as error:
        stat("s4://bucket/a.tar")
    assert str(error.value) == (
        'unknown protocol "s4" of s4://bucket/a.tar; give one that fsspec knows, such as s3://, gs://, gcs://, hf://, '
        "http://, https://"
    )

    def missing(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(InputError) as error:
        stat("s3://bucket/a.tar")
    assert str(error.value) == "s3://bucket/a.tar needs the package s3fs; pip install s3fs"


class NoCredentialsError(Exception):
    """As botocore calls it."""


class AnswerError(Exception):
    """As botocore reports a response, which is sent now: parameters of tests are made long before they are used."""

    def __init__(self, status, hours=0):
        super().__init__("Forbidden" if status == 403 else "Bad Request")
        self.status, self.hours = status, hours

    @property
    def response(self):
        date = format_datetime(datetime.now(UTC) + timedelta(hours=self.hours), usegmt=True)
        return {"ResponseMetadata": {"HTTPStatusCode": self.status, "HTTPHeaders": {"date": date}}}


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            NoCredentialsError("Unable to locate credentials"),
            "no access to {} (Unable to locate credentials); give cred",
        ),
        (PermissionError(errno.EACCES, "Forbidden"), "no access to {} (Forbidden); give credentials as its service"),
        (
            PermissionError("RequestTimeTooSkewed: the difference is too large"),
            "{}: the clocks of the store and of this machine differ; set the clock of this machine",
        ),
        (FileNotFoundError("gone"), "{} does not exist; correct the address, or restore the file"),
        (
            caused(PermissionError("The difference is too large"), OSError("(RequestTimeTooSkewed) when calling")),
            "{}: the clocks of the store and of this machine differ; set the clock of this machine",
        ),
        (
            caused(PermissionError("Forbidden"), AnswerError(403, hours=1)),
            "{}: the clocks of the store and of this machine differ; set the clock of this machine",
        ),
        (caused(PermissionError("Forbidden"), AnswerError(403)), "no access to {} (Forbidden); give credentials"),
        (caused(OSError("Bad Request"), AnswerError(400)), "no access to {} (Bad Request); give credentials"),
    ],
)
def test_failures_that_do_not_pass(store, failure, message):
    put(f"{store}/a.bin", bytes(100))
    file = stat(f"{store}/a.bin")
    Faulty.failures.append(failure)
    with pytest.raises(StoreError) as error:
        file_cache.file_cache().fetch(file)
    assert str(error.value).startswith(message.format(file.url))
    assert Faulty.fetched == ["a.bin"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*trying again")
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "does not exist; correct the address, or restore the file"),
        (403, "no access to "),
        (503, "the store has failed 3 times in a row (503, message='Service Unavailable'"),
        (None, "the store has failed 3 times in a row ("),
    ],
)
def test_a_web_server_that_fails_is_no_missing_file(store, status, message):
    pytest.importorskip("aiohttp", reason="http:// needs aiohttp")

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        if status is None:
            server.server_close()
        else:
            Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError) as error:
            stat(url)
        assert message in str(error.value)
        if status == 404:
            assert not exists(url)
        else:
            with pytest.raises(StoreError, match=re.escape(message)):
                exists(url)
        if status is not None:
            server.shutdown()


def test_a_store_that_does_not_respond_is_not_waited_for_too_long(store, monkeypatch):
    put(f"{store}/a.bin", bytes(100))
    monkeypatch.setattr(stores, "PATIENCE", -1.0)
    Faulty.failures.append(TimeoutError("no response"))
    with pytest.raises(StoreError, match=r"the store has failed once \(no response\); run the same command later"):
        stores.download(stat(f"{store}/a.bin"), Path(os.devnull))


def test_an_address_without_a_bucket(store):
    with pytest.raises(InputError, match=r"s3:// names no file or folder; give an address such as s3://BUCKET/FOLDER"):
        stat("s3://")


def test_a_store_that_throttles_is_tried_again(store, tmp_path):
    put(f"{store}/a.bin", bytes(100))
    file = stat(f"{store}/a.bin")
    Faulty.failures.extend([ThrottledError("Please reduce your request rate"), 50])
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        file_cache.file_cache().fetch(file)
    assert [str(note.message) for note in notes] == [
        f"{file.url}: Please reduce your request rate; trying again in 0 s",
        f"{file.url}: the store returned 50 of 100 bytes; trying again in 0 s",
    ]
    assert copies(tmp_path) == [100]


@pytest.mark.filterwarnings("ignore:.*trying again")
def test_a_store_that_keeps_failing(store, tmp_path):
    put(f"{store}/a.bin", bytes(100))
    file = stat(f"{store}/a.bin")
    Faulty.failures.extend([50] * 3)
    with pytest.raises(StoreError) as error:
        file_cache.file_cache().fetch(file)
    assert str(error.value) == (
        f"{file.url}: the store has failed 3 times in a row (the store returned 50 of 100 bytes); "
        "run the same command later"
    )
    assert copies(tmp_path) == []


def test_a_file_that_has_changed(store):
    put(f"{store}/a.bin", bytes(100))
    file = stat(f"{store}/a.bin")
    put(f"{store}/a.bin", bytes(90))
    with pytest.raises(StoreError, match=r"a.bin has changed since it was listed \(90 bytes, not 100\); restore it"):
        file_cache.file_cache().open(file)


def test_the_clock_of_a_store_does_not_matter(store, monkeypatch):
    put(f"{store}/a.bin", bytes(100))
    ahead = stat(f"{store}/a.bin")
    monkeypatch.setattr("time.time", lambda: 0.0)
    with file_cache.file_cache().open(ahead):
        pass
    assert stat(f"{store}/a.bin") == ahead


def test_the_folder_of_copies_is_bounded(store, tmp_path, monkeypatch):
    monkeypatch.setenv("DITLAB_CACHE_GIB", str(250 / 2**30))
    file_cache.file_cache.cache_clear()
    cache = file_cache.file_cache()
    files = []
    for i in range(4):
        put(f"{store}/{i}.bin", bytes([i]) * 100)
        files.append(stat(f"{store}/{i}.bin"))
        cache.fetch(files[-1])
        os.utime(cache.place(files[-1]), ns=(i, i))
    assert [cache.place(file).exists() for file in files] == [False, False, True, True]
    with cache.open(files[0]) as opened:  # fetched again
        assert opened.read() == bytes(100)
    draft = cache.folder / "files" / ".x.1-1.part"  # of another process
    for age, kept in ((0, True), (90_000, False)):
        draft.write_bytes(bytes(200))
        os.utime(draft, (time.time() - age,) * 2)
        cache.place(files[1]).unlink(missing_ok=True)
        cache.fetch(files[1])
        assert draft.exists() == kept
    put(f"{store}/large.bin", bytes(300))
    with pytest.raises(
        StoreError, match=r"large.bin has .* GiB, but all copies in .* may have .*; raise DITLAB_CACHE_GIB"
    ):
        cache.fetch(stat(f"{store}/large.bin"))
    monkeypatch.setenv("DITLAB_CACHE_GIB", "much")
    file_cache.file_cache.cache_clear()
    with pytest.raises(InputError, match='DITLAB_CACHE_GIB is "much"; give a number of GiB above 0'):
        file_cache.file_cache()


def test_a_full_disk(store, tmp_path):
    put(f"{store}/a.bin", bytes(100))
    Faulty.failures.append(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StoreError) as error:
        file_cache.file_cache().fetch(stat(f"{store}/a.bin"))
    assert str(error.value) == (
        f"cannot write to the cache folder {tmp_path / 'copies'} (No space left on device); free some space, or set "
        "DITLAB_CACHE to another folder"
    )


def test_a_damaged_copy_is_fetched_again(store):
    put(f"{store}/a.bin", bytes(100))
    file, cache = stat(f"{store}/a.bin"), file_cache.file_cache()
    cache.fetch(file)
    cache.place(file).write_bytes(bytes(10))
    with cache.open(file) as opened:
        assert len(opened.read()) == 100


def test_files_are_fetched_in_the_background(store):
    put(f"{store}/a.bin", bytes(100))
    file, cache = stat(f"{store}/a.bin"), file_cache.file_cache()
    cache.expect([file, file, StoredFile(f"{store}/gone.bin", 1)])
    finish_fetching()
    assert cache.place(file).exists()
    assert sorted(Faulty.fetched) == ["a.bin", "gone.bin"]


def test_a_damaged_description(store):
    put(f"{store}/a.json", b"{")
    with pytest.raises(StoreError, match=r"a.json is damaged \(.*\); restore it"):
        read_json(f"{store}/a.json")
    put(f"{store}/a.json", b"[]")
    with pytest.raises(StoreError, match=r"a.json holds no JSON object; restore it"):
        read_json(f"{store}/a.json")


def test_windows_drives_are_no_addresses():
    assert [stores.is_url(text) for text in ("C:/data", "s3://b/x", "hf:mnist", "hf://datasets/x", "a/b")] == [
        False, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_store_with_the_interface_of_s3(store, monkeypatch, tmp_path):
    pytest.importorskip("s3fs", reason="s3:// needs s3fs")
    server = pytest.importorskip("moto.server", reason="the store is moto's").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system, _ = stores.connect("s3://bucket")
    system.mkdir("bucket")
    assert [create("s3://bucket/run/claim", writer) for writer in (b"1", b"2")] == [True, False]
    assert read("s3://bucket/run/claim") == b"1"
    (tmp_path / "file").write_bytes(bytes(100))
    stores.upload(tmp_path / "file", "s3://bucket/run/deep/a.bin")
    assert stat("s3://bucket/run/deep/a.bin") == matching("s3://bucket/run", "deep/*")["deep/a.bin"]
    assert [*matching("s3://bucket/run", "**")] == ["claim", "deep/a.bin"]
    assert [*matching("s3://bucket/nothing", "*")] == []
    with file_cache.file_cache().open(stat("s3://bucket/run/deep/a.bin")) as opened:
        assert opened.read() == bytes(100)
    assert read("s3://bucket/run/deep/a.bin", 10, 20) == bytes(10)
    stores.discard("s3://bucket/run")
    assert not exists("s3://bucket/run/deep/a.bin")
    with pytest.raises(StoreError, match=r"a.bin does not exist; correct the address, or restore the file"):
        read("s3://bucket/run/deep/a.bin")
    server.stop()
