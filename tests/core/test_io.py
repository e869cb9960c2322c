import errno
import os
import subprocess
import sys

import pytest

from ditlab.core.errors import InputError
from ditlab.core.io import LOCK, claimed, held, in_use, is_vacant, replace_text, replacing

HOLDS = """
import sys, time
from pathlib import Path
from ditlab.core.io import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
TAKES_TURNS = """
import sys
from pathlib import Path
from ditlab.core.errors import InputError
from ditlab.core.io import held
folder, taken = Path(sys.argv[1]), 0
while taken < 200:
    try:
        with held(folder):
            (folder / "alone").touch(exist_ok=False)
            (folder / "alone").unlink()
            taken += 1
    except InputError:
        pass
"""


def no_locks(descriptor, *, blocking):
    raise OSError(errno.ENOLCK, "no locks available")


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path / "out"."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_process_is_rejected_and_a_killed_process_releases_the_lock(tmp_path, holder):
    reported = rf"out is in use by process {holder.pid} on \S+; wait until it ends, stop it, or choose another folder"
    with pytest.raises(InputError, match=reported), held(tmp_path / "out"):
        raise AssertionError
    with held(tmp_path / "out", rank=1):  # shares the work of another
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists()
    assert is_vacant(tmp_path / "out")
    with held(tmp_path / "out"), (tmp_path / "out" / LOCK).open("rb", buffering=0) as opened:
        opened.seek(1)  # Windows locks the first byte
        assert opened.read().decode().startswith(f"process {os.getpid()} on ")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_is_in_use_as_long_as_its_process_lives(tmp_path, holder, monkeypatch):
    assert in_use(tmp_path / "out") is True
    assert in_use(tmp_path / "other") is False
    holder.kill()
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists()
    assert in_use(tmp_path / "out") is False
    monkeypatch.setattr("filelock.lock_descriptor", no_locks)
    assert in_use(tmp_path / "out") is None


@pytest.mark.slow
def test_never_two_at_a_time(tmp_path):
    command = [sys.executable, "-c", TAKES_TURNS, str(tmp_path)]
    for process in [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]:
        assert process.communicate()[1] == b""


def test_folders_that_nothing_came_of_are_not_left_behind(tmp_path):
    with pytest.raises(ValueError, match="no"), held(tmp_path / "a" / "b"):
        raise ValueError("no")
    assert not (tmp_path / "a").exists()
    with held(tmp_path / "a" / "b"):
        replace_text(tmp_path / "a" / "b" / "result", "1")
    assert os.listdir(tmp_path / "a" / "b") == ["result"]
    with held(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path / "a") == ["b"]


def test_without_locks_runs_continue(tmp_path, monkeypatch):
    monkeypatch.setattr("filelock.lock_descriptor", no_locks)
    with held(tmp_path / "a"), held(tmp_path / "a"), claimed(tmp_path / "b") as mine:
        assert mine
        (tmp_path / "a" / "file").touch()
    assert (tmp_path / "a" / "file").exists()


def test_a_file_in_place_of_the_folder_is_left_to_the_caller(tmp_path):
    (tmp_path / "file").write_text("mine")
    with held(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_what_a_killed_process_leaves_does_not_fill_a_folder(tmp_path):
    assert is_vacant(tmp_path / "none")
    assert is_vacant(tmp_path)
    (tmp_path / f"{LOCK}-3").touch()
    (tmp_path / ".recipe.toml.123.part").touch()
    assert is_vacant(tmp_path)
    (tmp_path / ".hidden").touch()
    assert not is_vacant(tmp_path)
    (tmp_path / ".hidden").unlink()
    (tmp_path / "a.part").touch()
    assert not is_vacant(tmp_path)
    assert not is_vacant(tmp_path / "a.part")


def test_the_error_of_a_full_disk_names_what_is_written(tmp_path):
    with (
        pytest.raises(OSError, match=r"No space left on device: .*picture\.png") as caught,
        replacing(tmp_path / "picture.png"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "picture.png")
    assert list(tmp_path.iterdir()) == []
