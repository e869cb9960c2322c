import os
import unicodedata

import pytest
from helpers import posix_only

from ditlab.core.errors import InputError
from ditlab.core.spelling import absolute, expand, nfc, same_place


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_home_folder_is_expanded(home):
    assert expand("~/images") == f"{home}/images"
    assert expand("~") == str(home)
    assert expand("hf:~/saved:train") == f"hf:{home}/saved:train"
    assert expand("~root/x") == os.path.expanduser("~root/x")
    for text in ("digits", "a~b", "./~x", "hf:mnist", "", "facebook/DiT-XL-2-256", "images/~"):
        assert expand(text) == text


def test_an_unknown_home_folder_is_one_line():
    with pytest.raises(InputError) as error:
        expand("~nobody9/x")
    assert str(error.value) == (
        "~nobody9/x: the home folder ~nobody9 is not known; give the whole path, or ./~nobody9/x for a file "
        "of this name"
    )


@posix_only
def test_spellings_of_a_path_are_one_place(home, monkeypatch):
    (home / "num").mkdir()
    (home / "link").symlink_to(home / "num")
    monkeypatch.chdir(home)
    for text in ("num", "num/", "./num", "num/../num", str(home / "num"), "~/num", "link"):
        assert same_place("num", text)
    assert not same_place("num", "other")
    assert not same_place("num", "")
    assert same_place("", "")


def test_only_paths_become_absolute(home, monkeypatch):
    (home / "num").mkdir()
    monkeypatch.chdir(home)
    assert absolute("num/") == str(home / "num")
    assert absolute("num/*.tar") == str(home / "num" / "*.tar")
    for name in ("digits", "hf:mnist", "owner/name"):
        assert absolute(name) == name


def test_names_are_composed():
    assert nfc(unicodedata.normalize("NFD", "café")) == "café"
    assert len(nfc("cafe\u0301")) == 4
