"""The copy of a run in a store: whole checkpoints only, resumed on another machine, written by one process."""

import shutil

import pytest
import torch
from fake_store import Faulty, put, remove
from rich.console import Console

from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.io import write_manifest
from ditlab.core.stores import discard, exists, matching, read_json
from ditlab.training import run_copy, train
from ditlab.training.run_copy import RunCopy

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_copy, "WATCHED", 0.4)
    monkeypatch.setattr(run_copy, "BEAT", 0.02)


def recipe(store, images=64, **settings):
    model = {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2}
    train = {"images": images, "batch": 16, "precision": "float32", "compile": "never", "device": "cpu"}
    train |= {"save_every": 16, "log_every": 16, "upload": store}
    tables = {"model": model, "train": train | settings, "sample": {"sampler": "euler", "steps": 1}}
    return parse_recipe(tables)


@pytest.fixture
def checkpoint(tmp_path):
    """Makes a checkpoint of one file."""

    def make(run, name):
        folder = tmp_path / run / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(name.encode())
        write_manifest(folder)
        (tmp_path / run / "metrics.jsonl").write_text(f'{{"images": {int(name)}}}\n')
        return folder

    return make


def names(store):
    return [name.partition("/")[0] for name in matching(f"{store}/checkpoints", "*/manifest.json")]


@pytest.mark.slow
def test_a_run_resumes_on_another_machine(store, tmp_path):
    whole = train(recipe(""), tmp_path / "whole", console=QUIET)
    train(recipe(store, images=32), tmp_path / "a", console=QUIET)
    assert names(store) == ["000000000016", "000000000032"]
    assert read_json(f"{store}/writer.json") == {}
    shutil.rmtree(tmp_path / "a")
    with Console(record=True, quiet=False, file=(tmp_path / "out").open("w")) as console:
        parts = train(recipe(store), tmp_path / "b", console=console)
    assert f"fetched the checkpoint of 32 images from {store}" in (tmp_path / "out").read_text()
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert names(store) == ["000000000016", "000000000048", "000000000064"]
    assert len((tmp_path / "b" / "metrics.jsonl").read_text().splitlines()) == 4


def test_only_whole_checkpoints_are_fetched(store, tmp_path, checkpoint):
    copy = RunCopy(tmp_path / "a", store)
    (tmp_path / "a").mkdir()
    copy.begin()
    for name in ("000000000016", "000000000032", "000000000048"):
        copy.send(checkpoint("a", name), [])
    copy.end()
    remove(f"{store}/checkpoints/000000000048/manifest.json")  # as if killed before it was written
    put(f"{store}/checkpoints/000000000032/state.pt", b"damaged")
    (tmp_path / "b").mkdir()
    other = RunCopy(tmp_path / "b", store)
    with pytest.warns(UserWarning, match=r"000000000032 is damaged and is skipped: state.pt has 7 bytes instead of 12"):
        assert other.begin() == [f"fetched the checkpoint of 16 images from {store}"]
    other.end()
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["000000000016"]
    assert (tmp_path / "b" / "checkpoints" / "000000000016" / "state.pt").read_bytes() == b"000000000016"


def test_two_processes_cannot_write_one_copy(store, tmp_path):
    first, second = (RunCopy(tmp_path / name, store) for name in "ab")
    first.begin()
    with pytest.raises(InputError) as error:
        second.begin()
    assert str(error.value) == f"{store} is written by {first.me}; stop it, or give another address"
    first.end()
    second.begin()
    second.end()


def test_a_process_that_was_silent_for_too_long_stops(store, tmp_path, checkpoint):
    first, second = (RunCopy(tmp_path / name, store) for name in "ab")
    first.begin()
    first.ended.set()  # as if it hung
    first.thread.join()
    second.begin()
    with pytest.raises(InputError) as error:
        first.send(checkpoint("a", "000000000016"), [])
    assert str(error.value) == f"{store} is now written by {second.me}; this run is saved in {tmp_path / 'a'}"
    first.end()
    second.check_writer()
    second.end()


def test_another_run_is_refused(store, tmp_path, checkpoint):
    first = RunCopy(tmp_path / "a", store)
    first.begin()
    first.end()
    checkpoint("b", "000000000016")
    with pytest.raises(InputError) as error:
        RunCopy(tmp_path / "b", store).begin()
    assert str(error.value) == f"{store} holds another run than {tmp_path / 'b'}; give another address"


@pytest.mark.slow
def test_a_new_folder_is_not_blamed_for_another_run_in_the_store(store, tmp_path):
    train(recipe(store, 16), tmp_path / "a", console=Console(quiet=True))
    with pytest.raises(InputError) as error:
        train(recipe(store, 32, seed=1), tmp_path / "b", console=Console(quiet=True))
    assert str(error.value) == (
        f"{store} holds another run (train.seed is 0 there, 1 here); give the same recipe to resume it, or another "
        "address and folder"
    )
    assert names(store) == ["000000000016"]
    train(recipe(store, 32), tmp_path / "a", console=Console(quiet=True))  # its own folder takes the address again


def test_checkpoints_that_are_not_kept_are_removed(store, tmp_path, checkpoint):
    copy = RunCopy(tmp_path / "a", store)
    copy.begin()
    copy.send(checkpoint("a", "000000000016"), [])
    copy.send(checkpoint("a", "000000000032"), ["000000000016", "000000000008"])
    copy.end()
    assert names(store) == ["000000000032"]
    assert not exists(f"{store}/checkpoints/000000000016/state.pt")
    discard(f"{store}/nothing")


@pytest.mark.slow
def test_a_store_that_fails_does_not_end_a_run(store, tmp_path, monkeypatch):
    failures = [PermissionError("Forbidden")]

    def failing(self, source, target, **options):
        if failures:
            raise failures.pop()
        super(Faulty, self).put_file(source, target, **options)

    monkeypatch.setattr(Faulty, "put_file", failing)
    with pytest.warns(UserWarning, match=r"no access to .*; the run continues, and .*000016 is on this machine only"):
        train(recipe(store, images=32), tmp_path / "a", console=QUIET)
    assert names(store) == ["000000000032"]
    failures.append(PermissionError("Forbidden"))
    with pytest.raises(InputError, match=r"no access to .*; .*000048 is on this machine only"):
        train(recipe(store, images=48), tmp_path / "a", console=QUIET)
