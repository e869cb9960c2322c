"""Rules of other systems, as far as Linux can check them: Windows, macOS, and file systems that refuse something."""

import ast
import errno
import gc
import io
import os
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from rich.console import Console

from ditlab.cli import escape_missing_letters
from ditlab.config.reader import parse_recipe
from ditlab.core import device as devices
from ditlab.core import io as files
from ditlab.core import spelling, weights
from ditlab.core.io import discard, held, in_use, move, replace_text, replacing
from ditlab.core.terminal import make_console, say
from ditlab.data.export import folder_names
from ditlab.data.npz import Draft
from ditlab.data.sources import open_source, patterns
from ditlab.data.sources.hugging_face import name_and_split
from ditlab.inference.npz import write_samples
from ditlab.training import run_folder, train

QUIET = Console(quiet=True)
SOURCES = Path(__file__).parents[1] / "src" / "ditlab"
CPU = torch.device("cpu")


def recipe(images):
    tables = {"model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}, "data": {"source": "digits"}}
    settings = {"images": images, "batch": 8, "precision": "float32", "preview_every": 1000, "save_every": 8}
    sampling = {"sampler": "euler", "steps": 1}
    return parse_recipe(tables | {"train": settings | {"keep": 1, "device": "cpu"}, "sample": sampling})


@pytest.fixture
def windows(monkeypatch):
    """What Windows refuses: `fsync` of a file that is open for reading, replacing and removing a file that is open."""
    if not Path("/proc/self/maps").exists():
        pytest.skip("finds open files in Linux's /proc")
    for module in (files, run_folder, weights):
        monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.setattr(files, "WAITS", (0,))
    sync, remove = os.fsync, os.unlink

    def fsync(number):
        import fcntl

        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "the file is open for reading only")
        sync(number)

    def unlink(path, *, dir_fd=None):
        refuse_open(path, dir_fd)
        remove(path, dir_fd=dir_fd)

    def renaming(rename):
        def renamed(source, target):
            refuse_open(source)
            refuse_open(target)
            rename(source, target)

        return renamed

    for name, function in {"fsync": fsync, "unlink": unlink, "remove": unlink}.items():
        monkeypatch.setattr(os, name, function)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, renaming(getattr(os, name)))


def refuse_open(path, dir_fd=None):
    """Refuse to change a file that this process has open or mapped, or a folder with such a file in it."""
    root = os.readlink(f"/proc/self/fd/{dir_fd}") if dir_fd is not None else os.getcwd()
    place = os.path.join(root, os.fspath(path))
    names = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # it was that of the list
            continue
        if not os.path.isdir(name):
            names.add(name)
    if used := [name for name in names if name == place or name.startswith(f"{place}/")]:
        raise PermissionError(errno.EACCES, "the file is used by another process", used[0])


@pytest.fixture
def calls(monkeypatch):
    """What is synchronized and renamed, in order: ("sync" or "rename", path)."""
    events = []
    sync, rename = os.fsync, os.replace

    def fsync(descriptor):
        events.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        sync(descriptor)

    def replace(source, target):
        events.append(("rename", Path(target)))
        rename(source, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("finds the names of open files in Linux's /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return events


class TestPowerCuts:
    def test_a_file_is_on_the_disk_before_its_name_and_then_the_name(self, tmp_path, calls):
        replace_text(tmp_path / "new" / "a.json", "{}")
        (made, draft, renamed, parent) = calls
        assert made == ("sync", tmp_path)  # which holds the name "new"
        assert draft[0] == "sync"
        assert draft[1].name.startswith(".a.json.")
        assert (renamed, parent) == (("rename", tmp_path / "new" / "a.json"), ("sync", tmp_path / "new"))

    def test_a_replaced_folder_is_removed_when_the_new_name_is_on_the_disk(self, tmp_path, calls, monkeypatch):
        monkeypatch.setattr(files.shutil, "rmtree", lambda path: calls.append(("remove", path)))
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
        move(tmp_path / "b", tmp_path / "a")
        assert [event for event, _ in calls] == ["rename", "rename", "sync", "remove"]

    def test_all_of_a_checkpoint_is_on_the_disk_before_its_name(self, tmp_path, calls):
        train(recipe(8), tmp_path / "run", console=QUIET)
        folder = tmp_path / "run" / "checkpoints"
        named = calls.index(("rename", folder / "000000000008"))
        draft = next(path for event, path in reversed(calls[:named]) if event == "sync")
        written = {path.name for path in (folder / "000000000008").iterdir()}
        assert {"model.safetensors", "raw.safetensors", "state.pt", "config.json", "manifest.json"} <= written
        last = {path: index for index, (event, path) in enumerate(calls[:named]) if event == "sync"}
        assert {path.name for path in last if path.parent == draft} >= written
        assert max(last.values()) == last[draft] == named - 1  # the folder, after all that it holds
        assert calls[named + 1] == ("sync", folder)
        for path in (tmp_path / "run" / "metrics.jsonl", tmp_path / "run", tmp_path):
            assert path in last

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES])
    def test_a_file_system_that_cannot_sync_folders_is_used(self, tmp_path, monkeypatch, code):
        sync = os.fsync

        def fsync(descriptor):
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                raise OSError(code, os.strerror(code))
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        replace_text(tmp_path / "a" / "b", "1")
        assert (tmp_path / "a" / "b").read_text() == "1"

    def test_a_failing_disk_is_reported(self, tmp_path, monkeypatch):
        def fsync(descriptor):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        (tmp_path / "a").write_text("old")
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="Input/output error"):
            replace_text(tmp_path / "a", "new")
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_text() == "old"

    def test_macos_flushes_the_memory_of_the_disk(self, tmp_path, monkeypatch):
        fcntl, asked = pytest.importorskip("fcntl"), []
        monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", lambda descriptor, command: asked.append(command))
        monkeypatch.setattr(files.sys, "platform", "darwin")
        replace_text(tmp_path / "a", "1")
        assert asked == [51, 51]  # the file and its folder


class TestWindows:
    @pytest.mark.slow
    def test_a_run_trains_prunes_and_resumes(self, tmp_path, windows):
        train(recipe(16), tmp_path / "run", console=QUIET)
        assert train(recipe(24), tmp_path / "run", console=QUIET).config["images_seen"] == 24
        gc.collect()
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000024"]

    def test_a_checkpoint_that_is_being_read_stays_until_the_next_call(self, tmp_path, windows):
        folder = tmp_path / "000000000008"
        folder.mkdir()
        (folder / "a").write_text("1")
        with (folder / "a").open():
            run_folder.drop(folder)
            assert (folder / "a").read_text() == "1"
        run_folder.drop(folder)
        assert list(tmp_path.iterdir()) == []

    def test_samples_for_evaluation_are_finished(self, tmp_path, windows):
        options = {"steps": 1}
        pipe = tiny_pipeline()
        out = write_samples(pipe, tmp_path, QUIET, count=3, labels="balanced", seed=0, batch_size=4, options=options)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.json", "samples.npz"]
        assert out == tmp_path / "samples.npz"

    def test_a_draft_that_another_process_reads_is_noticed_by_the_next_call(self, tmp_path, windows):
        draft = Draft(tmp_path / "samples.draft", (2, 1, 1, 1))
        draft.put(0, torch.zeros(2, 1, 1, 1, dtype=torch.uint8))
        with (tmp_path / "samples.draft").open("rb"):
            draft.finish(None, tmp_path / "samples.npz")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.draft", "samples.npz"]

    @pytest.mark.slow
    def test_a_model_replaces_the_one_that_it_was_loaded_from(self, tmp_path, windows):
        import ditlab

        tiny_pipeline().save(tmp_path / "m")
        pipe = ditlab.load(tmp_path / "m")
        pipe.save(tmp_path / "m", overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == ["m"]

    def test_weights_do_not_keep_their_file_open(self, tmp_path, windows):
        file = tmp_path / "a.safetensors"
        weights.write_tensors({"a": torch.ones(64, 64)}, file)
        tensors = weights.read_tensors(file)
        weights.write_tensors({"a": torch.zeros(64, 64)}, file)
        assert tensors["a"].sum() == 64 * 64

    def test_a_file_that_is_read_for_a_moment_is_replaced_after_it(self, tmp_path, windows, monkeypatch):
        (tmp_path / "a").write_text("old")
        reader = (tmp_path / "a").open()
        monkeypatch.setattr(files.time, "sleep", lambda seconds: reader.close())
        replace_text(tmp_path / "a", "new")
        assert (tmp_path / "a").read_text() == "new"

    def test_a_file_that_stays_open_is_reported_and_kept(self, tmp_path, windows):
        (tmp_path / "a").write_text("old")
        with (tmp_path / "a").open():
            with pytest.raises(PermissionError):
                replace_text(tmp_path / "a", "new")
            discard(tmp_path / "a")
        assert (tmp_path / "a").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_lock_is_held_and_its_file_removed(self, tmp_path, windows):
        with held(tmp_path / "a"):
            assert in_use(tmp_path / "a")
        assert in_use(tmp_path / "a") is False
        assert not (tmp_path / "a").exists()

    def test_folders_are_not_opened(self, tmp_path, windows, monkeypatch):
        monkeypatch.setattr(files.os, "open", lambda *_: pytest.fail("a folder is opened"))
        with replacing(tmp_path / "a") as draft:
            draft.mkdir()
            (draft / "b").write_text("1")
        assert (tmp_path / "a" / "b").read_text() == "1"


class TestNames:
    def test_class_folders_exist_on_every_system(self):
        given = [
            "Cat",
            "cat",
            "a:b",
            "a*b",
            "a/b",
            "a\\b",
            "CON",
            "com1.txt",
            "end.",
            "end ",
            ".hidden",
            "..",
            "",
            "\0",
        ]
        made = ["Cat", "cat_2", "a_b", "a_b_2", "a_b_3", "a_b_4", "_CON", "_com1.txt", "end", "end_2", "_hidden", "_"]
        assert folder_names(given) == [*made, "__2", "__3"]

    def test_class_folders_differ_where_accents_may_be_composed(self):
        decomposed = unicodedata.normalize("NFD", "café")
        assert folder_names(["café", decomposed, "CAFÉ"]) == ["café", f"{decomposed}_2", "CAFÉ_3"]

    def test_paths_in_files_have_slashes(self, tmp_path, monkeypatch):
        monkeypatch.setattr(spelling.os, "sep", "\\")
        assert spelling.with_slashes("C:\\data\\cat") == "C:/data/cat"
        monkeypatch.setattr(spelling.os.path, "abspath", lambda path: f"C:\\here\\{path}")
        monkeypatch.chdir(tmp_path)
        (tmp_path / "images").mkdir()
        assert spelling.absolute("images") == "C:/here/images"

    def test_the_colon_of_a_drive_does_not_name_a_part(self):
        assert name_and_split("C:\\data\\cats:train") == ("C:\\data\\cats", "train")
        assert name_and_split("C:/data/cats") == ("C:/data/cats", "")
        assert name_and_split("user/cats:train") == ("user/cats", "train")

    def test_names_of_images_in_a_pattern_have_slashes(self, tmp_path, monkeypatch):
        for name in ("a/1.png", "b/2.png"):
            (tmp_path / name).parent.mkdir()
            Image.new("L", (4, 4)).save(tmp_path / name)
        monkeypatch.setattr(patterns, "with_slashes", lambda path: f"/{path.replace(os.sep, '/')}")
        source = open_source(str(tmp_path / "*" / "*.png"))
        assert [source.name(i) for i in range(2)] == ["/a/1.png", "/b/2.png"]


class TestMemory:
    def test_memory_is_known_without_the_files_of_linux(self, monkeypatch):
        monkeypatch.delattr(os, "sysconf", raising=False)
        monkeypatch.setattr(devices, "container_memory", lambda: iter(()))
        for device in (CPU, torch.device("mps")):
            assert 2**28 < devices.free_memory(device) < devices.total_memory(device) < 2**50

    def test_a_device_that_does_not_report_its_peak_has_none(self):
        assert devices.peak_memory(torch.device("mps")) == 0
        assert devices.peak_memory(CPU) > 2**20

    def test_a_failed_allocation_is_recognized(self):
        for message in ("MPS backend out of memory (MPS allocated: 8 GB)", "DefaultCPUAllocator: not enough memory"):
            assert devices.out_of_memory(RuntimeError(message))
        assert not devices.out_of_memory(RuntimeError("shapes differ"))


def test_letters_that_a_console_lacks_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    escape_missing_letters()
    say(make_console(), "classes: 犬, Ärzte")
    sys.stdout.flush()
    assert written.getvalue().splitlines() == ["classes: \\u72ac, Ärzte".encode("cp1252")]


POSIX_MODULES = {"fcntl", "resource", "pwd", "grp", "termios"}
POSIX_NAMES = {"fork", "getuid", "geteuid", "sysconf", "sched_getaffinity", "mkfifo", "killpg", "setsid", "getpgid"}
POSIX_NAMES |= {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGPIPE"}
WRITES = ("w", "a", "x")


def test_sources_use_what_every_system_has():
    for file in SOURCES.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:  # imports at the top
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not POSIX_MODULES.intersection(names), f"{file}, line {node.lineno}"
        for node in ast.walk(tree):
            owner = getattr(getattr(node, "value", None), "id", "")
            if isinstance(node, ast.Attribute) and owner in ("os", "signal"):
                assert node.attr not in POSIX_NAMES, f"{file}, line {node.lineno}: {node.attr}"
            if isinstance(node, ast.Call):
                check_encoding(node, f"{file}, line {node.lineno}")


def check_encoding(node, where):
    """Texts have one encoding and one line end in the files of every system."""
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    options = {keyword.arg: keyword.value for keyword in node.keywords}
    positions = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
    if name == "read_text" and isinstance(node.func, ast.Attribute):  # that of `Path`
        assert "encoding" in options or positions, f"{where}: no encoding"
    if name == "write_text":
        assert "encoding" in options, f"{where}: no encoding"
        assert "newline" in options or options["encoding"].value == "ascii", f"{where}: no newline"
    mode = next((value for value in positions if isinstance(value, str) and value[:1] in WRITES and len(value) < 4), "")
    member = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "archive"  # bytes, in a zip
    if name == "open" and mode and "b" not in mode and not member:
        assert {"encoding", "newline"} <= options.keys(), f"{where}: no encoding or newline"
