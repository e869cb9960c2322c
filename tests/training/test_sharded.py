"""Checkpoints that all processes write together, each its part."""

import copy as copying
import json
import os
import shutil

import pytest
import torch
from helpers import posix_only
from processes import in_processes
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file

import ditlab
from ditlab.core import model_files, parts
from ditlab.core.errors import InputError
from ditlab.training import train
from ditlab.training.api import joined_run
from ditlab.training.parallel import Place
from ditlab.training.run_folder import RunFolder
from ditlab.training.setup import set_up
from ditlab.training.sharded import Stager, take_parts
from ditlab.training.state import gathered

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
QUIET = Console(quiet=True)
RECIPE = {
    "model": {"name": "DiT", "width": 32, "depth": 1, "heads": 2, "patch": 4},
    "data": {"source": "digits"},
    "optim": {"lr": 2e-3, "warmup": 64},
    "train": {
        "images": 64, "batch": 32, "ema": 0.9, "precision": "float32", "compile": "never", "device": "cpu",
        "log_every": 32, "preview_every": 1_000_000, "save_every": 32,
    },
    "sample": {"sampler": "euler", "steps": 2},
    "parallel": {"checkpoint": "sharded", "shard": "full"},
}  # fmt: skip


def settings(world=1, images=64, **parallel):
    """The recipe for a number of processes, of which a single one has nothing to shard."""
    shard = {"shard": "full"} if world > 1 else {"shard": "none"}
    changed = {"train": RECIPE["train"] | {"images": images}, "parallel": RECIPE["parallel"] | shard | parallel}
    return RECIPE | changed


def trained(recipe, out):
    train(recipe, out, console=QUIET)


def state_of(recipe, out):
    """The complete state that a process restores: name -> tensor."""
    with joined_run(recipe, out, console=QUIET) as job:
        set_up(job)
        moments = job.state.optimizer.state_dict()["state"]
        values = {f"raw {key}": value for key, value in job.state.net.state_dict().items()}
        values |= {f"ema {key}": value for key, value in job.state.ema.net.state_dict().items()}
        values |= {f"{n} {key}": value for n, part in moments.items() for key, value in part.items()}
        return {key: value.numpy() for key, value in gathered(values, kept=True).items()} | {"seen": job.state.seen}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all((one[key] == other[key]).all() if key != "seen" else one[key] == other[key] for key in one)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two processes that has checkpoints at 32 and at 64 images."""
    folder = tmp_path_factory.mktemp("sharded") / "run"
    import torch._dynamo  # noqa: F401 - imported once, before the processes are forked, like the data

    ditlab.data.open_dataset("digits")
    found = in_processes(2, trained, settings(2), folder)
    assert found == [None, None]
    return folder


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def part(run, seen=64, folder="raw", rank=2):
    return next((run / "checkpoints" / f"{seen:012d}" / folder).glob(f"shard-{rank:05d}-*"))


@posix_only
def test_each_process_writes_its_part_and_the_last_checkpoint_is_a_model(run):
    first, last = sorted((run / "checkpoints").iterdir())
    assert [path.name for path in sorted(first.iterdir())] == [
        "README.md", "config.json", "ema", "manifest.json", "optimizer", "raw", "state.pt",
    ]  # fmt: skip
    sizes = [part(run, 32, "optimizer", rank).stat().st_size for rank in (1, 2)]
    assert max(sizes) < 1.1 * min(sizes)
    assert json.loads((first / "manifest.json").read_text()).keys() >= {
        f"{folder}/shard-{rank:05d}-model-00001-of-00001.safetensors"
        for folder in ("ema", "raw", "optimizer")
        for rank in (1, 2)
    }
    averages = parts.read_complete(last / "ema")
    assert averages.keys() == (model := load_file(last / "model.safetensors")).keys()
    assert all(torch.equal(averages[key], model[key]) for key in model)


@posix_only
def test_models_are_read_from_all_checkpoints(run, copy):
    last = ditlab.load(run)
    assert last.config["images_seen"] == 64
    assert len(last([3], seeds=[0], steps=2, sampler="euler").images) == 1
    (copy / "checkpoints" / f"{64:012d}" / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"0064 is damaged and is skipped: model\.safetensors is missing"):
        assert ditlab.load(copy).config["images_seen"] == 32
    raw = ditlab.load(copy / "checkpoints" / f"{32:012d}", weights="model")
    ema = ditlab.load(copy / "checkpoints" / f"{32:012d}")
    assert not all(torch.equal(a, b) for a, b in zip(raw.net.parameters(), ema.net.parameters(), strict=True))


@posix_only
def test_one_process_restores_what_two_have_written(run):
    state, last = state_of(settings(1), run), run / "checkpoints" / f"{64:012d}"
    for folder in ("raw", "ema"):
        for name, value in parts.read_complete(last / folder).items():
            assert (state[f"{folder} {name}"] == value.numpy()).all(), name
    for name, value in parts.read_complete(last / "optimizer").items():
        assert (state[name.replace("/", " ")] == value.numpy()).all(), name
    assert state["0 step"] == 2


@posix_only
@pytest.mark.slow
def test_whole_and_sharded_checkpoints_follow_each_other(copy):
    train(settings(1, images=96, checkpoint="whole"), copy, console=QUIET)
    assert (copy / "checkpoints" / f"{96:012d}" / "raw.safetensors").exists()
    train(settings(1, images=128), copy, console=QUIET)
    assert (copy / "checkpoints" / f"{128:012d}" / "raw").is_dir()
    assert not (copy / "checkpoints" / f"{128:012d}" / "raw.safetensors").exists()


@posix_only
@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        (lambda run: part(run).unlink(), "raw/{part} is missing"),
        (lambda run: os.truncate(part(run), 400), "raw/{part} has 400 bytes instead of"),
        (lambda run: flip(part(run)), "the content of raw/{part} has changed since it was written"),
        (
            lambda run: (run / "checkpoints" / f"{64:012d}" / "manifest.json").unlink(),
            "manifest.json is missing, which is written when all parts are complete",
        ),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(copy, capsys, harm, problem):
    name = part(copy).name
    harm(copy)
    console = Console(stderr=True, soft_wrap=True)
    assert RunFolder(copy).newest_whole(console, Place(torch.device("cpu"))) == f"{32:012d}"
    said = capsys.readouterr().err
    assert f"{copy}/checkpoints/{64:012d} is damaged and ignored: {problem.format(part=name)}" in said


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@posix_only
def test_parts_that_do_not_cover_a_tensor_are_refused(copy):
    """A checkpoint from which the manifest was removed by hand, too."""
    file = part(copy, rank=1)
    file.unlink()
    with pytest.raises(InputError, match=r"raw lacks a part of \w+.*; restore its files, or remove its checkpoint"):
        parts.read_complete(file.parent)
    file.write_bytes(b"no weights")
    with pytest.raises(InputError, match="raw holds damaged parts"):
        parts.outline(file.parent)


@posix_only
def test_half_a_checkpoint_is_no_checkpoint(copy):
    whole = copy / "checkpoints" / f"{64:012d}"
    whole.rename(copy / "checkpoints" / f".{64:012d}.part")
    assert ditlab.load(copy).config["images_seen"] == 32
    assert RunFolder(copy).newest_whole(QUIET, Place(torch.device("cpu"))) == f"{32:012d}"


def no_space(recipe, out):
    """Train where the second process has a full disk from the second checkpoint on."""
    write = parts.save

    def full(tensors, **options):
        if os.environ["RANK"] == "1" and "64" in str(options["storage_writer"].path):
            options["storage_writer"].write_data = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
        write(tensors, **options)

    parts.save = full
    train(recipe, out, console=QUIET)


@posix_only
@pytest.mark.slow
def test_a_full_disk_of_one_process_is_reported_by_all(tmp_path):
    found = in_processes(2, no_space, settings(2), tmp_path / "run")
    for error in found:
        assert isinstance(error, InputError), error
        assert str(error).startswith(f"cannot write checkpoint {tmp_path}/run/checkpoints/{64:012d}: No space left")
        assert f"the last good checkpoint is {tmp_path}/run/checkpoints/{32:012d}" in str(error)
    assert ditlab.load(tmp_path / "run").config["images_seen"] == 32


def test_settings_that_need_complete_tensors_exclude_parts(tmp_path):
    recipe = settings(1)
    recipe["train"] = recipe["train"] | {"power_ema": (0.1,)}
    with pytest.raises(InputError, match=r'"sharded" cannot be combined with train\.power_ema.*; set it to "whole"'):
        train(recipe, tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


def test_tensors_are_divided_in_their_order():
    assert model_files.divided({"a": 5, "b": 5, "c": 1, "d": 20, "e": 1}, 10) == {
        "a": 1,
        "b": 1,
        "c": 2,
        "d": 3,
        "e": 4,
    }
    assert model_files.divided({}, 10) == {}


def test_a_large_model_is_saved_in_several_files_with_an_index(run_model, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "FILE_BYTES", 20_000)
    folder = run_model.save(tmp_path / "model")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    for file in files:
        with safe_open(folder / file, "pt") as opened:
            assert {name for name, place in index["weight_map"].items() if place == file} == set(opened.keys())
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in run_model.net.state_dict().values())
    again = ditlab.load(folder).net.state_dict()
    assert all(torch.equal(again[key], value) for key, value in run_model.net.state_dict().items())
    run_model.save(folder, overwrite=True)
    (folder / files[0]).unlink()
    with pytest.raises(InputError, match=rf"no weights at .*{files[0]}"):
        ditlab.load(folder)


@pytest.fixture
def run_model():
    from helpers import tiny_pipeline

    return tiny_pipeline()


@posix_only
@pytest.mark.slow
def test_state_of_1_2_and_4_processes_is_restored_by_each_of_the_others(tmp_path):
    states = {}
    for world in (1, 2, 4):
        out = tmp_path / f"of-{world}"
        assert in_processes(world, trained, settings(world), out) == [None] * world
        states[world] = state_of(settings(1), out)
    for world in (1, 2, 4):
        for writers, expected in states.items():
            for found in in_processes(world, state_of, settings(world), tmp_path / f"of-{writers}"):
                assert_same(found, expected)


@posix_only
@pytest.mark.slow
def test_eight_processes_resume_what_two_have_written_and_the_reverse(run, tmp_path):
    expected = state_of(settings(1), run)
    for found in in_processes(8, state_of, settings(8), run, timeout=600):
        assert_same(found, expected)
    eight, two = (shutil.copytree(run, tmp_path / name) for name in ("eight", "two"))
    assert in_processes(8, trained, settings(8, 96), eight, timeout=600) == [None] * 8
    assert part(eight, 96, rank=8).exists()
    assert in_processes(2, trained, settings(2, 96), two) == [None] * 2
    one, other = state_of(settings(1, 96), eight), state_of(settings(1, 96), two)
    assert one["seen"] == other["seen"] == 96
    for key in other:
        if key.startswith(("raw", "ema")):
            difference = torch.tensor(one[key] - other[key]).norm()
            assert difference <= 2e-4 * max(torch.tensor(other[key]).norm(), 1e-2), key


@posix_only
@pytest.mark.slow
def test_a_resumed_run_equals_one_that_never_stopped(tmp_path):
    """Bit for bit on as many processes, and to rounding on others."""
    for name, worlds in {"whole": (4,), "equal": (4, 4), "fewer": (4, 2), "more": (2, 4), "one": (4, 1)}.items():
        for i, world in enumerate(worlds):
            images = 128 if i == len(worlds) - 1 else 64
            assert in_processes(world, trained, settings(world, images), tmp_path / name) == [None] * world
    whole = state_of(settings(1, 128), tmp_path / "whole")
    assert_same(state_of(settings(1, 128), tmp_path / "equal"), whole)
    for name in ("fewer", "more", "one"):
        other = state_of(settings(1, 128), tmp_path / name)
        for key in whole:
            if key.startswith(("raw", "ema")):
                difference = torch.tensor(whole[key] - other[key]).norm()
                assert difference <= 2e-4 * max(torch.tensor(whole[key]).norm(), 1e-2), (name, key)


def test_what_was_taken_stays_while_training_goes_on(tmp_path):
    """The files are written in the background."""

    def step():
        for parameter in job.state.net.parameters():
            parameter.grad = torch.ones_like(parameter)
        job.state.optimizer.step()
        job.state.ema.update(job.state.net)

    with joined_run(settings(1), tmp_path / "run", console=QUIET) as job:
        set_up(job)
        step()
        taken = take_parts(job.state, job.place, Stager(torch.device("cpu")))
        before = copying.deepcopy((taken.tensors, taken.content["optimizer"]["state"]))
        for _ in range(2):
            step()
        after = taken.tensors, taken.content["optimizer"]["state"]
    steps = [float(values["step"]) for values in taken.content["optimizer"]["state"].values()]
    assert steps == [1.0] * len(steps)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
