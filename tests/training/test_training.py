import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import posix_only, tiny_pipeline
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.autoencoders import Pixel
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.data import open_dataset, training_order
from ditlab.inference.optimize import precision
from ditlab.inference.optimize.precision import faster_dtype
from ditlab.training import loop, setup, train
from ditlab.training.ema import EMA
from ditlab.training.losses import Losses, batch_losses, make_context
from ditlab.training.optim import learning_rate, make_optimizer
from ditlab.training.setup import build

QUIET = Console(quiet=True)
TINY = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2},
    "optim": {"lr": 2e-3, "warmup": 64},
    "train": {"images": 256, "batch": 32, "precision": "float32", "ema": 0.9, "device": "cpu"}
    | {"log_every": 32, "preview_every": 128, "save_every": 128},
    "sample": {"sampler": "euler", "steps": 2},
}


def recipe(**train_options):
    return parse_recipe(TINY | {"train": TINY["train"] | train_options})


def states(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_run_leaves_what_it_promises(tmp_path):
    pipe = train(recipe(), tmp_path / "run", console=QUIET)
    run = tmp_path / "run"
    left = ["checkpoints", "data.json", "images.npz", "metrics.jsonl", "previews", "recipe.toml", "report.html"]
    assert sorted(path.name for path in run.iterdir()) == left
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == list(range(32, 257, 32))
    assert lines[0]["lr"] == pytest.approx(2e-3 / 64)
    assert lines[-1]["loss"] < lines[0]["loss"]
    previews = sorted((run / "previews").iterdir())
    assert [path.name for path in previews] == ["000000000128.png", "000000000256.png"]
    assert Image.open(previews[0]).size[1] > 10 * 48
    assert states(run) == ["000000000128", "000000000256"]
    assert "# run\n" in (run / "checkpoints" / "000000000256" / "README.md").read_text()
    loaded = ditlab.load(run)
    assert loaded.classes == [str(i) for i in range(10)]
    assert loaded.config["images_seen"] == 256
    assert loaded.config["recipe"]["optim"]["lr"] == 2e-3
    for a, b in zip(loaded.net.state_dict().values(), pipe.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    raw = ditlab.load(run, weights="model")
    assert not torch.equal(raw.net.blocks[0].attn.qkv.weight, loaded.net.blocks[0].attn.qkv.weight)


def test_resuming_equals_never_having_stopped(tmp_path):
    whole = train(recipe(), tmp_path / "whole", console=QUIET)
    train(recipe(images=128), tmp_path / "parts", console=QUIET)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:  # as if killed after the checkpoint
        file.write('{"images": 160, "loss": 9}\n{"ima')
    parts = train(recipe(), tmp_path / "parts", console=QUIET)
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    a, b = (torch.load(tmp_path / run / "checkpoints" / "000000000256" / "state.pt") for run in ("whole", "parts"))
    for key, value in a["optimizer"]["state"].items():
        assert all(torch.equal(value[name], b["optimizer"]["state"][key][name]) for name in value)
    losses = [
        [
            {k: v for k, v in json.loads(line).items() if k not in ("images_per_second", "seconds")}
            for line in path.read_text().splitlines()
        ]
        for path in (tmp_path / run / "metrics.jsonl" for run in ("whole", "parts"))
    ]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_finished_run_is_left_alone(tmp_path):
    train(recipe(images=64), tmp_path, console=QUIET)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    assert train(recipe(images=64), tmp_path, console=QUIET).config["images_seen"] == 64
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == before


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept(tmp_path):
    train(recipe(save_every=32, keep=3), tmp_path, console=QUIET)
    assert states(tmp_path) == ["000000000192", "000000000224", "000000000256"]


@pytest.mark.slow
def test_checkpoints_at_multiples_are_kept_too(tmp_path):
    train(recipe(save_every=32, keep=1, keep_every=96), tmp_path, console=QUIET)
    assert states(tmp_path) == ["000000000096", "000000000192", "000000000256"]


def test_another_run_is_not_overwritten(tmp_path):
    train(recipe(images=64), tmp_path / "run", console=QUIET)
    text = (tmp_path / "run" / "recipe.toml").read_text()
    with pytest.raises(InputError, match=r"holds another run \(train\.seed is 0 there, 1 here\)"):
        train(recipe(seed=1), tmp_path / "run", console=QUIET)
    assert (tmp_path / "run" / "recipe.toml").read_text() == text
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("dear to me")
    with pytest.raises(InputError, match="exists and is not a training run"):
        train(recipe(), tmp_path / "thesis", console=QUIET)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def cut_short(file):
    file.write_bytes(file.read_bytes()[:100])


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "harm", "words"),
    [
        ("state.pt", cut_short, "state.pt has 100 bytes instead of"),
        ("raw.safetensors", flip_a_bit, "the content of raw.safetensors has changed since it was written"),
        ("model.safetensors", Path.unlink, "model.safetensors is missing"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, name, harm, words):
    whole = train(recipe(save_every=64), tmp_path / "whole", console=QUIET)
    train(recipe(images=128, save_every=64), tmp_path / "parts", console=QUIET)
    harm(tmp_path / "parts" / "checkpoints" / "000000000128" / name)
    console = Console(file=io.StringIO(), width=1000)
    parts = train(recipe(save_every=64), tmp_path / "parts", console=console)
    assert f"000000000128 is damaged and ignored: {words}" in console.file.getvalue()
    assert "at 64 images" in console.file.getvalue()
    for a, b in zip(whole.net.state_dict().values(), parts.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew_silently(tmp_path):
    train(recipe(images=64), tmp_path, console=QUIET)
    cut_short(tmp_path / "checkpoints" / "000000000064" / "state.pt")
    with pytest.raises(InputError, match=r"none of the checkpoints in .* is whole; remove the folder"):
        train(recipe(), tmp_path, console=QUIET)


@pytest.mark.slow
def test_changed_settings_are_reported_and_can_be_allowed(tmp_path):
    train(recipe(images=64), tmp_path, console=QUIET)
    other = parse_recipe(TINY | {"optim": {"lr": 1e-3, "warmup": 64}, "diffusion": {"time_mean": 0.5}})
    with pytest.raises(
        InputError, match=r"with other settings \(diffusion.time_mean is 0.0 there, 0.5 here; optim.lr is"
    ):
        train(other, tmp_path, console=QUIET)
    assert train(other, tmp_path, changes=True, console=QUIET).config["images_seen"] == 256
    refused = parse_recipe(TINY | {"optim": {"lr": 1e-4}, "diffusion": {"target": "x0"}})
    with pytest.raises(InputError, match=r"holds another run \(diffusion.target is velocity there, x0 here\)"):
        train(refused, tmp_path, changes=True, console=QUIET)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--train.images=0", "train.images is 0; give 1 or more"),
        ("--train.log_every=0", "train.log_every is 0"),
        ("--train.label_dropout=7", "train.label_dropout is 7.0; give at least 0 and less than 1"),
        ("--train.ema=2", "train.ema is 2.0"),
        ("--train.seed=20000000000", "train.seed is 20000000000"),
        ("--optim.lr=-1", "optim.lr is -1.0; give a number that is not negative"),
        ("--optim.lr=nan", "optim.lr is nan"),
        ("--optim.clip=-1", "optim.clip is -1.0"),
        ("--train.device=tpu", 'device "tpu" cannot be used'),
        ("--sample.sampler=hune", 'did you mean "heun"'),
        ("--sample.steps=0", "sample.steps is 0; give 1 to 10000"),
        ("--sample.steps=44298", "sample.steps is 44298; give 1 to 10000"),
        ("--data.source=diggits", 'did you mean "digits"'),
    ],
)
def test_useless_settings_are_rejected_before_anything_is_written(tmp_path, option, words):
    with pytest.raises(InputError, match=words):
        train(parse_recipe(TINY, [option]), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_ruined_network_never_replaces_a_good_checkpoint(tmp_path, monkeypatch):
    good = recipe(images=64, save_every=32, keep=1)
    train(good, tmp_path, console=QUIET)

    def ruin(state, rate):
        with torch.no_grad():
            next(state.net.parameters()).fill_(float("nan"))

    monkeypatch.setattr(loop, "take_step", ruin)
    with pytest.raises(InputError, match=r"no longer finite after 96 images; the last good checkpoint is .*0064"):
        train(recipe(save_every=32, keep=1), tmp_path, console=QUIET)
    assert states(tmp_path) == ["000000000064"]


class TestGradientsThatAreNotFinite:
    @pytest.fixture
    def ruined(self, monkeypatch):
        """Spoils the losses of the batches that begin at these places of the run."""
        places = set()

        def ruined(run, images, seen, first, dtype, total):
            losses = batch_losses(run, images, seen, first, dtype, total)
            factor = float("nan") if seen in places and run.net.training else 1
            return Losses({name: value * factor for name, value in losses.named.items()}, losses.times)

        monkeypatch.setattr("ditlab.training.losses.batch_losses", ruined)
        return places

    def test_a_batch_is_left_out_counted_and_written_down(self, tmp_path, ruined):
        ruined |= {64, 128}
        train(recipe(), tmp_path, console=QUIET)
        lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert [line.get("left_out", 0) for line in lines] == [0, 0, 1, 1, 2, 2, 2, 2]
        assert [line["loss"] is None for line in lines] == [False, False, True, False, True, False, False, False]
        noted = [json.loads(line) for line in (tmp_path / "left-out.jsonl").read_text().splitlines()]
        assert [line["images"] for line in noted] == [64, 128]
        order = training_order(1437, 32, 0, 64)
        assert noted[0]["pictures"] == next(order).tolist()

    @pytest.mark.slow
    def test_a_batch_that_is_met_again_is_written_down_once(self, tmp_path, ruined):
        ruined |= {96, 160}
        train(recipe(images=128), tmp_path, console=QUIET)
        with (tmp_path / "left-out.jsonl").open("a") as file:  # as if killed after the checkpoint at 128 images
            file.write('{"images": 160, "pictures": []}\n')
        train(recipe(), tmp_path, console=QUIET)
        noted = [json.loads(line) for line in (tmp_path / "left-out.jsonl").read_text().splitlines()]
        assert [line["images"] for line in noted] == [96, 160]

    @pytest.mark.slow
    def test_many_in_a_row_go_back_to_the_last_checkpoint_and_then_on(self, tmp_path, ruined):
        ruined |= {160, 192}
        console = Console(file=io.StringIO(), width=1000)
        settings = recipe(save_every=128, max_bad_steps=2)
        a = train(settings, tmp_path / "a", console=console).net.state_dict()
        assert "not finite in 2 steps in a row, after 192 images" in console.file.getvalue()
        assert "continuing with the weights of 128 images" in console.file.getvalue()
        again = train(settings, tmp_path / "again", console=QUIET).net.state_dict()
        assert all(torch.equal(a[key], again[key]) for key in a)
        train(recipe(images=160, save_every=128, max_bad_steps=2), tmp_path / "b", console=QUIET)
        b = train(settings, tmp_path / "b", console=QUIET).net.state_dict()
        assert any(not torch.equal(a[key], b[key]) for key in a)  # which went back to 160 images

    @pytest.mark.slow
    def test_it_gives_up_where_that_does_not_help(self, tmp_path, ruined):
        ruined |= set(range(64, 300, 32))
        with pytest.raises(InputError, match=r"in 2 steps in a row, after 96 images .* a lower optim.lr"):
            train(recipe(save_every=1000, max_bad_steps=2), tmp_path / "none", console=QUIET)
        with pytest.raises(InputError, match=r"in 4 steps in a row, after 160 images"):
            train(recipe(save_every=64, max_bad_steps=2), tmp_path / "one", console=QUIET)
        assert states(tmp_path / "one") == ["000000000064", "000000000128"]

    @pytest.mark.slow
    def test_weights_that_are_not_finite_go_back_at_once_and_once(self, tmp_path, monkeypatch):
        step, ruined = loop.take_step, {64}

        def ruin(state, rate):
            step(state, rate)
            if state.seen in ruined:
                with torch.no_grad():
                    next(state.net.parameters()).view(-1)[0] = float("inf")

        monkeypatch.setattr(loop, "take_step", ruin)
        console = Console(file=io.StringIO(), width=1000)
        net = train(recipe(save_every=64), tmp_path / "once", console=console).net
        assert "the weights are no longer finite, after 96 images" in console.file.getvalue()
        assert "continuing with the weights of 64 images" in console.file.getvalue()
        assert all(value.isfinite().all() for value in net.parameters())
        ruined ^= {64, 128, 192}
        with pytest.raises(InputError, match=r"no longer finite, after 224 images .* a lower optim.lr"):
            train(recipe(save_every=128), tmp_path / "twice", console=QUIET)


@pytest.mark.slow
def test_a_mistake_can_be_corrected_in_the_same_folder(tmp_path):
    with pytest.raises(InputError, match="the gradient was not finite"):
        train(
            parse_recipe(TINY | {"optim": {"lr": 1e30, "clip": 0.0}}, ["--train.max_bad_steps=3"]),
            tmp_path,
            console=QUIET,
        )
    assert states(tmp_path) == []
    train(recipe(), tmp_path, console=QUIET)
    assert states(tmp_path) == ["000000000128", "000000000256"]


def start(out, *options):
    script = (
        "import sys; from ditlab.config.reader import parse_recipe; import json\n"
        "from ditlab.cli.terminal import fail; from ditlab.core.errors import InputError\n"
        "from ditlab.training import train\n"
        f"try: train(parse_recipe(json.loads({json.dumps(TINY)!r}), sys.argv[2:]), sys.argv[1])\n"
        "except InputError as error: fail(str(error), 2)\n"
        "except KeyboardInterrupt: fail('interrupted', 130)\n"
    )
    return subprocess.Popen([sys.executable, "-c", script, str(out), *options], stderr=subprocess.PIPE, text=True)


@posix_only
@pytest.mark.slow
def test_ctrl_c_saves_and_reports_how_to_resume(tmp_path):
    process = start(
        tmp_path / "run",
        "--train.images=1e9",
        "--train.compile=never",
        "--train.save_every=1e9",
        "--train.preview_every=1e9",
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command resumes" in " ".join(errors.split())
    (saved,) = states(tmp_path / "run")
    last = json.loads(metrics.read_text().splitlines()[-1])["images"]
    assert int(saved) >= last
    last = int(saved)
    assert train(recipe(images=last + 32), tmp_path / "run", console=QUIET).config["images_seen"] == last + 32


@posix_only
@pytest.mark.slow
@pytest.mark.parametrize(("limit", "preview"), [(10_000, "no preview at 128 images"), (150_000, "")])
def test_full_disk_keeps_the_last_checkpoint(tmp_path, limit, preview):
    run = tmp_path / "run"
    train(recipe(images=64, save_every=64), run, console=QUIET)
    before = {path.name: path.read_bytes() for path in (run / "checkpoints" / "000000000064").iterdir()}

    def small_files_only():
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    code = (
        "import json, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from ditlab.config.reader import parse_recipe; from ditlab.core.errors import InputError\n"
        "from ditlab.training import train\n"
        f"try: train(parse_recipe(json.loads({json.dumps(TINY)!r})), {str(run)!r})\n"
        "except InputError as error: print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=small_files_only, capture_output=True, text=True, check=True
    )
    assert "cannot write checkpoint" in result.stdout
    assert preview in " ".join(result.stderr.split())
    assert "free some space and run the same command again" in result.stdout
    assert result.stdout.count("\n") == 1
    assert states(run) == ["000000000064"]
    assert {path.name: path.read_bytes() for path in (run / "checkpoints" / "000000000064").iterdir()} == before


def test_trains_in_a_thread_without_signal_handlers(tmp_path):
    worker = threading.Thread(target=train, args=(recipe(images=64), tmp_path), kwargs={"console": QUIET})
    worker.start()
    worker.join()
    assert states(tmp_path) == ["000000000064"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"diffusion": {"process": "ddpm", "target": "eps", "time": "uniform", "learn_variance": True}},
        {"diffusion": {"process": "cosine", "target": "v", "weight": "min-snr"}},
        {"diffusion": {"target": "x0"}, "model": TINY["model"] | {"condition": "in-context", "qk_norm": True}},
    ],
    ids=["improved-ddpm", "v", "in-context"],
)
def test_other_recipes_learn_and_load(tmp_path, changes):
    settings = parse_recipe(TINY | {"train": TINY["train"] | {"images": 2048, "log_every": 512}} | changes)
    pipe = train(settings, tmp_path, console=QUIET)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.9 * losses[0]
    again = ditlab.load(tmp_path)
    assert again.objective == pipe.objective
    assert torch.equal(again(3, output_type="latent").images, pipe(3, output_type="latent").images)


def test_folder_of_images_trains(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(3):
            Image.effect_noise((12, 8), 80 + i).convert("RGB").save(tmp_path / "data" / name / f"{i}.png")
    settings = parse_recipe(TINY | {"data": {"source": str(tmp_path / "data")}})
    pipe = train(settings, tmp_path / "run", console=QUIET)
    assert pipe.net.size == (8, 12)
    assert pipe(["dog"], seeds=[0]).images[0].size == (12, 8)


def test_one_sample_of_label_dropout_for_each_image():
    seen = []

    class Spy(torch.nn.Module):
        classes, channels, learn_variance, device = 10, 1, False, torch.device("cpu")

        def forward(self, x, timestep, condition, trace=None):
            seen.append(condition.label)
            return torch.zeros_like(x)

    pipe, data = tiny_pipeline(classes=10), open_dataset("digits")
    run = make_context(replace(pipe, net=Spy()), recipe(batch=1000, label_dropout=0.25))
    batch = data.fetch(torch.arange(1000))
    for place in (0, 0, 1000):
        batch_losses(run, batch, place, 0, torch.float32)
    dropped = seen[0] == 10
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(seen[0][~dropped], batch.labels[~dropped])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_ema_follows_the_formula_with_warm_up():
    net = tiny_pipeline().net
    ema = EMA(net, 0.5)
    expected = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    for decay in (0.1, 2 / 11, 0.25, 4 / 13, 5 / 14, 0.4, 7 / 16, 8 / 17, 0.5, 0.5):
        for name, parameter in net.named_parameters():
            parameter.data.add_(torch.randn_like(parameter))
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach()
        ema.update(net)
    for name, parameter in ema.net.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-5)
    assert torch.equal(ema.net.pos_embed, net.pos_embed)


def test_learning_rate_schedules():
    def rates(schedule, *seen):
        settings = parse_recipe({"optim": {"lr": 1.0, "warmup": 100, "schedule": schedule}}).optim
        return [learning_rate(settings, n, 1100) for n in seen]

    assert rates("constant", 0, 49, 100, 1099) == [0.01, 0.5, 1.0, 1.0]
    assert rates("linear", 100, 350, 1100) == pytest.approx([1.0, 0.75, 0.0])
    assert rates("cosine", 100, 600, 1100) == pytest.approx([1.0, 0.5, 0.0])
    assert rates("wsd", 49, 100, 880, 990, 1100) == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])

    def timed(schedule, *elapsed):
        settings = parse_recipe({"optim": {"lr": 1.0, "warmup": 100, "schedule": schedule}}).optim
        return [learning_rate(settings, 600, 1100, share) for share in elapsed]

    assert timed("linear", 0.0, 0.4, 0.75, 1.1) == pytest.approx([0.5, 0.5, 0.25, 0.0])
    assert timed("cosine", 0.6, 1.1) == pytest.approx([(1 + math.cos(0.6 * math.pi)) / 2, 0.0])
    assert timed("wsd", 0.8, 0.9, 1.1) == pytest.approx([1.0, 0.5, 0.0])


def test_weight_decay_acts_on_matrices_only():
    net = tiny_pipeline().net
    optimizer = make_optimizer(net, parse_recipe({"optim": {"weight_decay": 0.1}}).optim)
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(net.parameters()))


def test_precision_is_the_measured_one(monkeypatch):
    cpu = torch.device("cpu")

    def slow(dtype):
        return lambda work: time.sleep(0.02) if work is dtype else None

    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)  # also on this machine
    monkeypatch.setattr(torch, "mm", lambda a, b: time.sleep(0.02) if a.dtype is torch.float32 else None)
    assert faster_dtype(slow(torch.float32), cpu, 8) is torch.bfloat16
    assert faster_dtype(slow(torch.bfloat16), cpu, 8) is torch.float32  # products gain, but the whole step does not
    monkeypatch.setattr(torch, "mm", lambda a, b: time.sleep(0.02) if a.dtype is torch.bfloat16 else None)
    assert faster_dtype(pytest.fail, cpu, 8) is torch.float32  # and the step is not even tried


def test_bfloat16_keeps_weights_and_loss_in_float32(tmp_path):
    data = open_dataset("digits")
    pipe = build(recipe(), data, Pixel(), torch.device("cpu"))
    with torch.no_grad():
        for parameter in pipe.net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    run = make_context(pipe, recipe(batch=64))
    batch = data.fetch(torch.arange(64))
    full, half = (batch_losses(run, batch, 0, 0, dtype).total.mean() for dtype in (torch.float32, torch.bfloat16))
    assert full.dtype is half.dtype is torch.float32
    assert full.item() != half.item()
    assert half.item() == pytest.approx(full.item(), rel=2e-2)
    assert pipe.net.dtype is torch.float32


class TestWhatIsKept:
    """Of checkpoints, when the newest are enough."""

    @pytest.mark.slow
    def test_the_first_one_after_each_multiple(self, tmp_path):
        settings = recipe(images=480, batch=48, save_every=96, keep=1, keep_every=200)
        train(settings, tmp_path, console=QUIET)
        assert states(tmp_path) == ["000000000288", "000000000480"]

    @pytest.mark.slow
    def test_damaged_ones_do_not_push_out_what_is_written_after_them(self, tmp_path):
        train(recipe(save_every=64), tmp_path, console=QUIET)
        for name in ("192", "256"):
            (tmp_path / "checkpoints" / f"000000000{name}" / "state.pt").write_bytes(b"torn")
        shutil.rmtree(tmp_path / "checkpoints" / "000000000128", ignore_errors=True)
        whole = tmp_path / "checkpoints" / "000000000064"
        if not whole.exists():
            shutil.copytree(tmp_path / "checkpoints" / "000000000192", whole)
        train(recipe(images=96, save_every=32), tmp_path / "short", console=QUIET)
        shutil.rmtree(whole)
        shutil.copytree(tmp_path / "short" / "checkpoints" / "000000000064", whole)
        train(recipe(images=96, save_every=96), tmp_path, console=QUIET)
        assert states(tmp_path) == ["000000000064", "000000000096", "000000000192", "000000000256"]
        train(recipe(save_every=64), tmp_path, console=QUIET)  # goes on from 96, over the damaged ones
        assert states(tmp_path) == ["000000000192", "000000000256"]
        assert ditlab.load(tmp_path).config["images_seen"] == 256


@pytest.mark.slow
def test_a_run_goes_on_with_the_settings_of_the_optimiser_that_it_was_given(tmp_path):
    train(recipe(images=128), tmp_path, console=QUIET)
    changed = parse_recipe(TINY, ["--optim.weight_decay=0.5", "--optim.betas", "0.5", "0.6"])
    train(changed, tmp_path, changes=True, console=QUIET)
    saved = torch.load(tmp_path / "checkpoints" / "000000000256" / "state.pt", weights_only=True)
    matrices, rest = saved["optimizer"]["param_groups"]
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    assert tuple(matrices["betas"]) == tuple(rest["betas"]) == (0.5, 0.6)


@pytest.mark.slow
def test_other_images_under_the_same_recipe_are_another_run(tmp_path):
    def picture(name, grey):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), grey).save(tmp_path / "pictures" / name)

    for i in range(8):
        picture(f"a/{i}.png", 9 * i)
        picture(f"b/{i}.png", 200 - i)
    settings = parse_recipe(TINY | {"data": {"source": str(tmp_path / "pictures")}}, ["--train.images=64"])
    train(settings, tmp_path / "run", console=QUIET)
    more = parse_recipe(TINY | {"data": {"source": str(tmp_path / "pictures")}}, ["--train.images=128"])
    picture("a/more.png", 100)
    with pytest.raises(InputError, match=r"16 images there, 17 here.*or allow changes"):
        train(more, tmp_path / "run", console=QUIET)
    (tmp_path / "pictures" / "a").rename(tmp_path / "pictures" / "z")
    with pytest.raises(InputError, match=r'another run \(class 0 of the images was "a" there and is "b" here\)'):
        train(more, tmp_path / "run", changes=True, console=QUIET)
    (tmp_path / "pictures" / "z").rename(tmp_path / "pictures" / "a")
    assert train(more, tmp_path / "run", changes=True, console=QUIET).config["images_seen"] == 128


@pytest.mark.slow
def test_a_newest_checkpoint_without_a_description_is_left_aside(tmp_path):
    train(recipe(), tmp_path, console=QUIET)
    (tmp_path / "checkpoints" / "000000000256" / "config.json").write_text("{")
    console = Console(file=io.StringIO(), width=1000)
    train(recipe(), tmp_path, console=console)
    assert "000000000256 is damaged and ignored" in console.file.getvalue()
    assert "at 128 images" in console.file.getvalue()


@pytest.mark.slow
def test_what_was_stopped_in_its_first_moment_can_be_begun_again(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ditlab.training.run_folder.forget_after", full)
        with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
            train(recipe(), tmp_path / "run", console=QUIET)
    train(recipe(), tmp_path / "run", console=QUIET)
    assert states(tmp_path / "run") == ["000000000128", "000000000256"]


def test_a_checkpoint_that_cannot_be_written_ends_the_run_before_the_next_one_is_due(tmp_path, monkeypatch):
    def fail(*args):
        raise InputError("cannot write")

    monkeypatch.setattr("ditlab.training.run_folder.RunFolder._write", fail)
    logged = []

    def on_log(seen, values):
        logged.append(seen)
        time.sleep(0.1 if seen >= 128 else 0.0)  # time for the thread that writes

    with pytest.raises(InputError, match=r"^cannot write$"):
        train(
            recipe(images=1024, save_every=128, preview_every=1024, log_every=32),
            tmp_path / "run",
            console=QUIET,
            callbacks=[SimpleNamespace(on_log=on_log)],
        )
    assert 128 <= logged[-1] < 256


def test_a_full_disk_is_the_reason_when_the_state_of_a_checkpoint_is_written(tmp_path, monkeypatch):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda file, *mode, **words: Full() if "state.pt." in file.name else opened(file, *mode, **words)
    )
    with pytest.raises(InputError) as error:
        train(recipe(), tmp_path / "run", console=QUIET)
    assert str(error.value) == (
        f"cannot write checkpoint {tmp_path / 'run' / 'checkpoints' / '000000000128'}: No space left on device; "
        "there is no earlier checkpoint; free some space and run the same command again"
    )


@posix_only
def test_sigterm_before_the_first_step_ends_with_zero(tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(setup, "open_dataset", lambda *values: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        train(recipe(), tmp_path / "run", console=QUIET)
    assert ended.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_report_that_was_not_written_is_written_by_the_same_command(tmp_path):
    train(recipe(), tmp_path, console=QUIET)
    (tmp_path / "report.html").unlink()
    train(recipe(), tmp_path, console=QUIET)
    assert "<h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sections", "reported"),
    [
        ({"train": {"lora": 4, "init_from": "x"}, "parallel": {"shard": "full"}}, "lora trains few weights"),
        ({"train": {"keep_every": -5}}, "train.keep_every is -5"),
        ({"parallel": {"accumulate": 0}}, "parallel.accumulate is 0; give 1 or more"),
        ({"parallel": {"timeout": -1}}, "parallel.timeout is -1; give 1 or more"),
        ({"optim": {"decay": -1.0}}, "optim.decay is -1.0"),
    ],
)
def test_numbers_and_pairs_that_cannot_be_meant(tmp_path, sections, reported):
    with pytest.raises(InputError, match=reported):
        train(parse_recipe(sections), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more", "reported"),
    [
        (
            {"name": "ADM", "width": 16, "multiples": [1, 2], "depth": 1, "attention_at": [2], "head_width": 16},
            {},
            "ADM",
        ),
        ({"name": "DiT-S/4", "exits": [1.0, 0.5]}, {}, "needs blocks that all images pass"),
        ({"name": "U-DiT", "width": 16, "heads": 2, "depths": [2, 1, 2]}, {"layer_sync": [0, 4]}, "one width and grid"),
    ],
)
def test_blocks_that_cannot_be_aligned(tmp_path, model, more, reported):
    settings = {"images": 64, "batch": 32, "device": "cpu", "layer_sync": [0, 1], "precision": "float32"} | more
    with pytest.raises(InputError, match=reported):
        train(parse_recipe({"model": model, "train": settings}), tmp_path / "run", console=QUIET)


def test_routing_needs_a_middle(tmp_path):
    settings = parse_recipe({"model": TINY["model"] | {"depth": 2}, "train": {"route": 0.5}})
    with pytest.raises(InputError, match="which DiT-S/4 does not have"):
        train(settings, tmp_path / "run", console=QUIET)
