"""Runs on several processes, started as users start them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers import free_port, posix_only
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

import ditlab
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.data import check, training_order
from ditlab.training import parallel, train
from ditlab.training.parallel import Place
from ditlab.training.rng import RunRandomness

QUIET = Console(quiet=True)
RECIPE = """
[model]
name = "DiT"
width = 32
depth = 2
heads = 2
patch = 2
qk_norm = true
[data]
source = "digits"
[optim]
lr = 2e-3
warmup = 64
[train]
images = 256
batch = 32
ema = 0.9
precision = "float32"
compile = "never"
device = "cpu"
log_every = 32
preview_every = 128
save_every = 128
[sample]
sampler = "euler"
steps = 2
"""


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE)
    return file


def command(processes, recipe, out, *options, launcher=(), port=None):
    started = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    started += [f"--master-port={port or free_port()}", *launcher]
    return [*started, "-m", "ditlab", "train", str(recipe), "--out", str(out), *options]


def launch(processes, recipe, out, *options):
    found = subprocess.run(command(processes, recipe, out, *options), capture_output=True, text=True, timeout=240)
    return found.returncode, found.stdout + found.stderr


def alone(recipe, out, *options):
    return train(parse_recipe(ditlab.config.reader.read_toml(recipe), options), out, console=QUIET)


def losses(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one, other, tolerance=2e-4):
    a, b = (load_file(sorted((run / "checkpoints").iterdir())[-1] / "raw.safetensors") for run in (one, other))
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key] - b[key]).norm() <= tolerance * max(a[key].norm(), 1e-2), key


def assert_same_run(one, other, tolerance=2e-4):
    assert_same_weights(one, other, tolerance)
    for first, second in zip(losses(one), losses(other), strict=True):
        assert first["images"] == second["images"]
        assert first["loss"] == pytest.approx(second["loss"], rel=1e-4)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-3)
        for mine, theirs in zip(first["loss_by_time"], second["loss_by_time"], strict=True):
            assert mine == theirs is None or mine == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_all_processes_save_the_run_if_one_cannot_read_its_images(tmp_path):
    """The file is truncated, so that its header is good, and is not in the sample that is decoded before training."""
    count = check.DECODED + 100
    unchecked = set(torch.randperm(count, generator=torch.Generator().manual_seed(0))[check.DECODED :].tolist())
    seed = next(s for s in range(100) if unchecked & set(next(training_order(count, 8, s, 16)).tolist()))
    (tmp_path / "images").mkdir()
    for i in range(count):
        Image.effect_noise((8, 8), 60).save(tmp_path / "images" / f"{i:04d}.png")
    broken = min(unchecked & set(next(training_order(count, 8, seed, 16)).tolist()))
    file = tmp_path / "images" / f"{broken:04d}.png"
    file.write_bytes(file.read_bytes()[:60])
    recipe = tmp_path / "a.toml"
    recipe.write_text(
        '[model]\nname = "DiT-S/4"\nwidth = 32\ndepth = 1\nheads = 2\n'
        f'[data]\nsource = "{tmp_path / "images"}"\nmax_skipped = 0.0\n'
        f'[train]\nimages = 64\nbatch = 8\nseed = {seed}\nprecision = "float32"\ncompile = "never"\n'
        '[sample]\nsampler = "euler"\nsteps = 1\n'
    )
    code, said = launch(2, recipe, tmp_path / "run")
    assert code != 0
    assert f"1 of {count:,} images cannot be read, the last one is {file.name}" in said
    assert "run is saved at 16 images, and the same command resumes" in said
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"{16:012d}"]


def test_noise_depends_on_the_place_in_the_run_alone():
    randomness = RunRandomness(3)
    batch = randomness.normal(0, 1000, (64, 3, 5, 7))
    assert torch.equal(batch[20:40], randomness.normal(0, 1020, (20, 3, 5, 7)))
    others = [
        randomness.normal(1, 1000, (64, 3, 5, 7)),
        RunRandomness(4).normal(0, 1000, (64, 3, 5, 7)),
        batch.roll(1, 0),
    ]
    assert all(abs((batch * other).mean()) < 0.05 for other in others)
    many = randomness.normal(0, 0, (4096, 101))
    assert abs(many.mean()) < 0.006
    assert many.std() == pytest.approx(1, abs=0.005)
    assert (many**4).mean() == pytest.approx(3, abs=0.06)
    assert (many.abs() > 3).float().mean() == pytest.approx(0.0027, abs=0.0004)


@pytest.mark.slow
def test_parts_of_a_batch_add_up_to_it(recipe, tmp_path):
    alone(recipe, tmp_path / "whole")
    alone(recipe, tmp_path / "parts", "--parallel.accumulate=4", "--parallel.checkpointing")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_batch_that_cannot_be_shared_is_rejected(recipe, tmp_path):
    with pytest.raises(
        InputError, match=r"cannot be shared among 1 process in 33 parts; set train\.batch to 33 or more"
    ):
        alone(recipe, tmp_path / "run", "--parallel.accumulate=33")
    with pytest.raises(
        InputError, match=r"a batch of 32 cannot be shared among 12 processes in 3 parts; .* to 36 or more"
    ):
        Place(torch.device("cpu"), 0, 12).share(32, 3)
    with pytest.raises(InputError, match="needs several processes; start them with torchrun"):
        alone(recipe, tmp_path / "run", "--parallel.shard=full")
    assert not (tmp_path / "run").exists()


def test_two_processes_compute_what_one_does(recipe, tmp_path):
    alone(recipe, tmp_path / "one")
    code, reported = launch(2, recipe, tmp_path / "two")
    assert code == 0, reported
    assert "2 processes" in reported
    assert reported.count("model and previews are in") == 1
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert ditlab.load(tmp_path / "two").config["images_seen"] == 256


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_batches_of_images_of_several_sizes(recipe, tmp_path, processes):
    (tmp_path / "images").mkdir()
    for i, (width, height) in enumerate([(16, 16)] * 40 + [(12, 20)] * 30 + [(20, 12)] * 9):
        Image.effect_noise((width, height), 40 + i).save(tmp_path / "images" / f"{i:02d}.png")
    data = f'source = "{tmp_path / "images"}"\nsize = "native"\npixels = 256\nmultiple = 4'
    recipe.write_text(RECIPE.replace('source = "digits"', data))
    alone(recipe, tmp_path / "one")
    code, reported = launch(processes, recipe, tmp_path / "several")
    assert code == 0, reported
    assert_same_run(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_batches_of_images_and_clips(recipe, tmp_path, processes):
    (tmp_path / "clips").mkdir()
    for i, (size, count) in enumerate([((16, 16), 8)] * 20 + [((12, 20), 5)] * 15 + [((20, 12), 1)] * 9):
        first, *others = [Image.effect_noise(size, 40 + i) for _ in range(count)]
        first.save(tmp_path / "clips" / f"{i:02d}.gif", save_all=True, append_images=others, duration=100)
    data = f'source = "{tmp_path / "clips"}"\nsize = "native"\npixels = 256\nmultiple = 4\nframes = 8'
    model = '"VideoDiT-XS/1x2x2"\nwidth = 32\ndepth = 2\nheads = 2\npatch = 4'
    network = RECIPE[RECIPE.index('"DiT"') : RECIPE.index("qk_norm")]
    changed = (
        RECIPE.replace('source = "digits"', data).replace(network, f"{model}\n").replace("batch = 32", "batch = 8")
    )
    recipe.write_text(changed.replace("[train]", "[train]\ngiven_first = 0.5"))
    alone(recipe, tmp_path / "one")
    code, reported = launch(processes, recipe, tmp_path / "several")
    assert code == 0, reported
    assert_same_run(tmp_path / "one", tmp_path / "several")


@pytest.mark.slow
def test_a_sharded_run_goes_on_with_another_number_of_processes(recipe, tmp_path):
    alone(recipe, tmp_path / "one")
    code, reported = launch(2, recipe, tmp_path / "run", "--train.images=128", "--parallel.shard=full")
    assert code == 0, reported
    alone(recipe, tmp_path / "run")
    assert_same_run(tmp_path / "one", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_checkpointed_compiled_shards_compute_what_one_plain_process_does(recipe, tmp_path):
    alone(recipe, tmp_path / "one")
    options = ("--parallel.shard=full", "--parallel.checkpointing", "--train.compile=always")
    code, reported = launch(2, recipe, tmp_path / "two", *options)
    assert code == 0, reported
    assert "compiling 3 blocks\n" in reported
    assert "compilation took" in reported
    assert_same_run(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_four_processes_and_two_nodes_with_a_shard_in_each(recipe, tmp_path):
    alone(recipe, tmp_path / "one")
    code, reported = launch(4, recipe, tmp_path / "four", "--parallel.accumulate=2")
    assert code == 0, reported
    assert_same_run(tmp_path / "one", tmp_path / "four")
    alone(recipe, tmp_path / "hybrid", "--train.images=128")
    port, options = free_port(), ("--parallel.shard=hybrid", "--parallel.checkpointing")
    nodes = [
        subprocess.Popen(
            command(2, recipe, tmp_path / "hybrid", *options, port=port, launcher=("--nnodes=2", f"--node-rank={i}")),
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for node in nodes:
        _, reported = node.communicate(timeout=240)
        assert node.returncode == 0, reported
    assert_same_run(tmp_path / "one", tmp_path / "hybrid")


@posix_only
@pytest.mark.slow
def test_a_process_that_dies_takes_the_run_down_and_the_launcher_begins_again(recipe, tmp_path):
    alone(recipe, tmp_path / "one", "--train.images=20_000", "--train.log_every=2000", "--train.save_every=2000")
    run = tmp_path / "run"
    options = ("--train.images=20_000", "--train.log_every=2000", "--train.save_every=2000")
    started = command(2, recipe, run, *options, launcher=("--max-restarts=3",))
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (run / "checkpoints").exists() and any((run / "checkpoints").glob("[0-9]*")))
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    _, reported = process.communicate(timeout=240)
    assert process.returncode == 0, reported
    assert "resuming" in reported
    assert_same_run(tmp_path / "one", run, tolerance=5e-2)


def test_restarted_processes_do_not_read_the_addresses_of_those_that_died(monkeypatch):
    """PyTorch gives the store of the launcher to all restarts, without names of their own."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(torch.distributed, "rendezvous", lambda *_, **__: iter([(store, 1, 2)]))
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    seen = []
    for restart in ("1", "2"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        found = parallel.meeting_point(600)
        assert (found["rank"], found["world_size"], found["timeout"].total_seconds()) == (1, 2, 600)
        seen.append(found["store"].check(["address"]))
        found["store"].set("address", restart)
    assert seen == [False, False]
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")  # several machines count their restarts separately
    assert parallel.meeting_point(600).keys() == {"timeout"}
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert parallel.meeting_point(600).keys() == {"timeout"}


@posix_only
@pytest.mark.slow
def test_sigterm_saves_and_ends_with_zero(recipe, tmp_path):
    started = command(2, recipe, tmp_path / "run", "--train.images=1_000_000", "--train.save_every=1_000_000")
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(losses(tmp_path / "run")) > 2)
    for child in subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split():
        os.kill(int(child), signal.SIGTERM)
    _, reported = process.communicate(timeout=120)
    assert process.returncode == 0, reported
    assert "the same command resumes" in reported
    assert len(list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))) == 1


@posix_only
@pytest.mark.slow
def test_a_launcher_that_is_stopped_leaves_a_checkpoint(recipe, tmp_path):
    started = command(2, recipe, tmp_path / "run", "--train.images=1_000_000", "--train.save_every=1_000_000")
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(losses(tmp_path / "run")) > 2)
    process.send_signal(signal.SIGTERM)
    _, reported = process.communicate(timeout=120)
    assert "the same command resumes" in reported
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    seen = int(checkpoint.name)
    alone(recipe, tmp_path / "run", f"--train.images={seen + 32}")
    assert losses(tmp_path / "run")[-1]["images"] == seen + 32


@posix_only
@pytest.mark.slow
def test_a_process_without_a_signal_waits_for_the_others_to_restart(recipe, tmp_path):
    """As when one machine of several goes down: its processes end with 0, the others' launcher begins again."""
    port = free_port()
    first, second = (as_rank(rank, recipe, tmp_path / "run", 60, port) for rank in range(2))
    wait_for(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(losses(tmp_path / "run")) > 2)
    second.send_signal(signal.SIGTERM)
    second.communicate(timeout=120)
    _, reported = first.communicate(timeout=120)
    assert second.returncode == 0
    assert first.returncode == 1
    assert "another process received a signal to stop; the same command resumes" in reported
    assert ditlab.load(tmp_path / "run").config["images_seen"] % 32 == 0


SPOILT = """
import sys, time
from ditlab.training import losses, run_folder
write, call = run_folder.RunFolder._write, losses.batch_losses

def slow(*args):
    time.sleep(1.5)
    write(*args)

def spoilt(run, images, seen, *others):
    found = call(run, images, seen, *others)
    factor = float("nan") if 128 <= seen < 192 else 1
    return losses.Losses({name: value * factor for name, value in found.named.items()}, found.times)

run_folder.RunFolder._write, losses.batch_losses = slow, spoilt
from ditlab.cli import main
sys.argv[0] = "ditlab"
main()
"""


@pytest.mark.slow
def test_all_processes_go_back_to_the_same_checkpoint(recipe, tmp_path):
    (tmp_path / "spoilt.py").write_text(SPOILT)
    options = ("--train.save_every=64", "--train.max_bad_steps=2", "--train.preview_every=256")
    started = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    started += [str(tmp_path / "spoilt.py"), "train", str(recipe), "--out", str(tmp_path / "run"), *options]
    found = subprocess.run(started, capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    assert "continuing with the weights of 128 images" in found.stderr
    one = subprocess.run(
        [sys.executable, str(tmp_path / "spoilt.py"), "train", str(recipe), "--out", str(tmp_path / "one"), *options],
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert one.returncode == 0, one.stderr
    assert_same_weights(tmp_path / "one", tmp_path / "run")


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError


def as_rank(rank, recipe, out, seconds, port):
    """A process of a run of two, without a launcher that would end it."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [sys.executable, "-m", "ditlab", "train", str(recipe), "--out", str(out), f"--parallel.timeout={seconds}"]
    more = ["--train.images=2_000_000", "--train.log_every=1000"]
    return subprocess.Popen(
        [*started, *more],
        env=os.environ | place | meeting,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("Application timeout caused pair closure"), True),  # gloo: a stopped process on this machine
        (RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting"), True),
        (RuntimeError("Connection closed by peer [127.0.0.1]:4711"), True),
        (torch.distributed.DistStoreError("wait timeout after 600000ms, keys: /default_pg/0//cpu//0"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)"), False),
    ],
)
def test_errors_of_lost_processes_are_recognized(error, lost):
    assert parallel.has_lost_process(error) is lost


@pytest.mark.slow
def test_a_missing_process_is_reported(recipe, tmp_path):
    process = as_rank(0, recipe, tmp_path / "run", 2, free_port())
    _, reported = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the 2 processes did not find each other" in reported.splitlines()[-1]


@posix_only
@pytest.mark.slow
def test_a_process_that_does_not_respond_is_reported(recipe, tmp_path):
    port, run = free_port(), tmp_path / "run"
    first, second = (as_rank(rank, recipe, run, 20, port) for rank in (0, 1))
    try:
        wait_for(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text())
        second.send_signal(signal.SIGSTOP)
        _, reported = first.communicate(timeout=100)
    finally:
        second.kill()
    assert first.returncode == 1
    assert "rank 0: rank 1 did not respond for 20 s" in reported.splitlines()[-1]
