import os
import zipfile

import pytest

from ditlab.core import sizes
from ditlab.core.errors import InputError, listing, nearest
from ditlab.core.sizes import check_archive, check_regular, read_text


def test_texts_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sizes, "TEXT", 1000)
    file = tmp_path / "a.json"
    file.write_text("ä" * 500, encoding="utf-8")
    assert read_text(file) == "ä" * 500
    file.write_text("ä" * 500 + "a", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^it has 1,001 bytes, and at most 1,000 are read$"):
        read_text(file)


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", "/dev/zero"):
        if str(path).endswith("link"):
            path.symlink_to("/dev/zero")
        path = tmp_path / path
        with pytest.raises(OSError, match="not a regular file, such as a pipe or a device"):
            read_text(path)
        with pytest.raises(InputError) as error:
            check_regular(path)
        assert str(error.value) == f"{path} is not a regular file, such as a pipe or a device; give a file"
    check_regular(tmp_path)
    check_regular(tmp_path / "nothing")


def test_archives_of_archives_are_as_large_as_they_say(tmp_path, monkeypatch):
    """What is nested is not unpacked, and what is not compressed may be as large as the file."""
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(1000))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.write(file, "inner.zip")
    check_archive(file)
    check_archive(tmp_path / "b.npz")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(10**6))
    monkeypatch.setattr(sizes, "SPARE", 0)
    with pytest.raises(InputError, match="which become 1,000,000 when they are decompressed"):
        check_archive(file)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.write(file, "inner.zip")
    check_archive(tmp_path / "b.npz")


@pytest.mark.slow
def test_long_lists_of_names_are_cut():
    names = [str(i) for i in range(1_000_000)]
    assert listing(names[:100]) == ", ".join(names[:100])
    assert listing(names) == ", ".join(names[:100]) + ", ... (1,000,000 in all)"
    assert nearest("x", names) == f"choose from: {listing(names)}"
