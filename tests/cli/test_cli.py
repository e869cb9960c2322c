import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image
from safetensors.torch import load_file

from ditlab import cli
from ditlab.autoencoders import Patch
from ditlab.checkpoints import save_autoencoder
from ditlab.checkpoints.native import load_folder
from ditlab.cli.sampling import parse_seeds
from ditlab.cli.terminal import app
from ditlab.config.reader import parse_size
from ditlab.core.errors import InputError
from ditlab.core.io import held
from ditlab.core.values import PixelValues
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM


@pytest.fixture
def refuses(ditlab):
    """Expect exit code 2 and one line on standard error, which is returned."""

    def run(*arguments):
        out, err = ditlab(*arguments, code=2)
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("ditlab: ")
        return err

    return run


@pytest.mark.parametrize("flag", ["--labels", "--seeds", "--show"])
def test_a_list_without_values_is_refused(refuses, tmp_path, flag):
    model, out = tiny_pipeline().save(tmp_path / "model"), tmp_path / "out"
    line = f'ditlab: Command "sample" parameter {flag} requires at least 1 element. Got 0.\n'
    assert refuses("sample", model, "--out", out, flag) == line
    assert not out.exists()


def test_a_model_with_weights_that_are_not_finite(refuses, tmp_path):
    pipe = tiny_pipeline()
    with torch.no_grad():
        pipe.net.final_layer.linear.bias[0] = torch.nan
    model, out = pipe.save(tmp_path / "model"), tmp_path / "out"
    line = refuses("sample", model, "--labels", "1", "--seeds", "5", "--steps", "2", "--out", out)
    assert line == (
        "ditlab: DiT-S/2: the image of seed 5 is not finite from step 1 of 2; its weights final_layer.linear.bias are "
        "not finite: use another checkpoint\n"
    )
    assert not list(out.rglob("*.png"))


@pytest.mark.slow
def test_numbers_that_are_not_finite(refuses, tmp_path):
    model, out = tiny_pipeline().save(tmp_path / "model"), tmp_path / "out"
    eta = refuses("sample", model, "--sampler", "ddim", "--eta", "nan", "--out", out)
    assert eta == "ditlab: eta is nan; give a number from 0 to 1\n"
    skipped = refuses("reference", "digits", "--max-skipped", "nan", "--out", tmp_path / "a.npz")
    assert skipped == "ditlab: max_skipped is nan; give a number from 0 to 1\n"
    mean = refuses("train", "digits", "--diffusion.time-mean", "1e9", "--out", out)
    assert mean == "ditlab: diffusion.time_mean is 1000000000.0; give a number from -10 to 10\n"
    seed = refuses("evaluate", model, "--reference", "digits", "--seed", 2**32, "--count", 6)
    assert seed == "ditlab: seed is 4294967296; give 0 to 4294967295\n"


def test_as_a_program():
    command = [sys.executable, "-m", "ditlab", "info", "DiT-S/9"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith('ditlab: unknown model "DiT-S/9"; did you mean "DiT-S/')


@pytest.fixture
def model(tmp_path):
    return tiny_pipeline().save(tmp_path / "model")


def test_help_lists_the_commands_that_work(ditlab):
    text = ditlab("--help").out
    for command in ("info", "train", "sample", "evaluate", "study", "demo"):
        assert command in text


@pytest.mark.slow
def test_info_as_json_and_table(ditlab):
    values = json.loads(ditlab("info", "DiT-XL/2", "--json").out)
    assert values["parameters"] == pytest.approx(675e6, rel=5e-3)
    assert values["gmacs"] == pytest.approx(118.64, rel=5e-3)
    assert values["gflops"] == 2 * values["gmacs"]
    assert values["tokens"] == 256
    assert values["weight_bytes"] == 4 * values["parameters"]
    text = ditlab("info", "DiT-S/2", "--size", "32x64", "--depth", "6").out
    assert "512" in text
    assert "DiT-S/2" in text


def test_info_of_an_external_checkpoint(ditlab, refuses, golden, tmp_path):
    vectors = golden("repa_sit")
    file = tmp_path / "repa.pt"
    torch.save({key.removeprefix("state."): value for key, value in vectors.items() if "state." in key}, file)
    shown = ditlab("info", file, "--heads", 3, "--json")
    values = json.loads(shown.out)
    assert (values["name"], values["parameters"], values["tokens"]) == (str(file), 151_380, 16)  # 3,284 in projectors
    assert "no published size; give heads=" in refuses("info", file)
    assert "depth cannot change the saved model" in refuses("info", file, "--heads", 3, "--depth", 3)


@pytest.mark.slow
def test_info_of_several_names(ditlab):
    models = json.loads(ditlab("info", "--json", "--condition", "adaln", "DiT-S/8", "DiT-B/8").out)["models"]
    assert [row["name"] for row in models] == ["DiT-S/8", "DiT-B/8"]


@pytest.mark.slow
def test_lists_are_given_as_they_are_written(ditlab, refuses):
    values = json.loads(ditlab("info", "U-DiT", "--width", 48, "--heads", 2, "--depths", 1, 2, 1, "--json").out)
    assert values["name"] == "U-DiT"
    reported = json.loads(ditlab("plan", "digits", "--device", "h100", "--train.power_ema", 0.05, 0.1, "--json").out)
    assert reported["checkpoint"] == 24 * reported["parameters"]
    old = ditlab("plan", "digits", "--device", "h100", "--train.widths", 0.05, 0.1, "--json")
    assert json.loads(old.out)["checkpoint"] == 24 * reported["parameters"]
    assert "--train.widths is now called --train.power-ema" in old.err


@pytest.mark.parametrize(
    ("option", "setting"),
    [
        ("--lr=1e-3", "--optim.lr"),
        ("--epochs=3", "--train.images"),
        ("--train.epochs=3", "--train.images"),
        ("--batch-size=3", "--train.batch"),
    ],
)
def test_options_of_other_programs_are_explained(refuses, option, setting):
    line = refuses("train", "digits", option)
    assert f"unknown option {option.partition('=')[0]}; give {setting}" in line


def test_help_names_all_features_and_metrics(ditlab):
    from ditlab.evaluation.features import FEATURES
    from ditlab.evaluation.metrics import METRICS

    text = " ".join(re.sub(r"[│\n]", " ", ditlab("evaluate", "--help").out).split())
    assert [name for name in (*FEATURES, *METRICS) if name not in text] == []
    text = " ".join(re.sub(r"[│\n]", " ", ditlab("reference", "--help").out).split())
    assert [name for name in FEATURES if name not in text] == []


@pytest.mark.slow
def test_help_names_the_shipped_recipes(ditlab):
    text = ditlab("train", "--help").out
    assert all(name in text for name in ("digits", "glyphs-32", "own-latent"))
    panels = "Arguments Parameters Model Diffusion Data Optim Train Distill Parallel Sample"
    assert re.findall(r"╭─ (\w+)", text) == panels.split()
    assert "families-letters" in ditlab("study", "--help").out


@pytest.mark.slow
def test_another_network_on_the_command_line_replaces_the_whole_section(ditlab):
    reported = json.loads(ditlab("plan", "digits", "--device", "h100", "--model.name", "U-ViT-S/2", "--json").out)
    assert reported["parameters"] == pytest.approx(44e6, rel=0.02)  # and not the recipe's width and depth


def test_count_is_of_all_images(ditlab, refuses, model, tmp_path):
    reported = json.loads(ditlab("sample", model, "--count", 6, "--seeds", 5, "--out", tmp_path / "a", "--json").out)
    assert reported["count"] == 6
    names = {f"class_{label}-seed{seed}.png" for label in range(3) for seed in (5, 6)}
    assert {path.name for path in (tmp_path / "a").iterdir()} == names | {"grid.png", "samples.json"}
    said = refuses("sample", model, "--count", 4, "--out", tmp_path / "b")
    assert "--count 4 for 3 labels; give 3, or another multiple of 3" in said


def test_train_sample_and_resume(ditlab, refuses, tmp_path):
    recipe = tmp_path / "small.toml"
    recipe.write_text(
        'model = {name = "DiT-S/4", width = 32, depth = 1, heads = 2}\n[train]\nimages = 64\nbatch = 32\n'
    )
    run = tmp_path / "run"
    ditlab("train", recipe, "--out", run, "--optim.lr=1e-3", "--sample.steps=2")
    assert "lr = 0.001" in (run / "recipe.toml").read_text()
    again = ditlab("train", recipe, "--out", run, "--optim.lr=1e-3", "--train.images=96", "--sample.steps", "2")
    assert "resuming" in again.err
    out = tmp_path / "pictures"
    result = json.loads(
        ditlab("sample", run, "--labels", 3, 7, "--seeds", "0-2", "9", "--out", out, "--trajectory", "--json").out
    )
    assert result["count"] == 8
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted(
        [f"{label}-seed{seed}.png" for label in (3, 7) for seed in (0, 1, 2, 9)]
        + ["grid.png", "samples.json", "trajectory.gif"]
    )
    assert Image.open(out / "3-seed0.png").size == (8, 8)
    with Image.open(out / "trajectory.gif") as animation:
        assert animation.n_frames == 2
        assert animation.size == Image.open(out / "grid.png").size
    assert "not empty" in refuses("sample", run, "--labels", 3, "--out", out)
    assert "was trained with other settings" in refuses("train", recipe, "--out", run, "--optim.lr=2e-3")


def test_convert_writes_what_load_reads(ditlab, refuses, tmp_path):
    objective = Objective(DDPM(), "eps", learn_variance=True)
    tiny_pipeline(channels=4, learn_variance=True, objective=objective).save(tmp_path / "ours")
    ditlab("convert", tmp_path / "ours", tmp_path / "theirs.pt", "--to", "official")
    said = ditlab("convert", tmp_path / "theirs.pt", tmp_path / "folder", "--to", "diffusers", "--heads", "2").err
    assert "127" in said
    ditlab("convert", tmp_path / "folder", tmp_path / "again", "--to", "ditlab")
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert "exists" in refuses("convert", tmp_path / "ours", tmp_path / "theirs.pt", "--to", "official")
    out = tmp_path / "out"
    assert "has no autoencoder" in refuses("sample", tmp_path / "again", "--labels", "0", "--out", out)
    assert not out.exists()
    assert "give heads=" in refuses("convert", tmp_path / "theirs.pt", tmp_path / "x", "--to", "ditlab")


@pytest.mark.parametrize("command", ["sample", "convert", pytest.param("export", marks=pytest.mark.slow)])
def test_a_state_dict_of_sit_or_dit(ditlab, tmp_path, command):
    """Both have the same tensors: the command says how it read them, and --sit changes that."""
    objective = Objective(DDPM(), "eps", learn_variance=True)
    pipe = tiny_pipeline(channels=3, learn_variance=True, objective=objective)
    torch.save(dict(pipe.net.state_dict()), tmp_path / "bare.pt")
    further = {
        "sample": lambda out: ("--labels", "0", "--seeds", "0", "--steps", "1", "--out", out),
        "convert": lambda out: (out, "--to", "ditlab"),
        "export": lambda out: (out, "--to", "torch"),
    }[command]
    note = "read as DiT; a state dict does not show whether it is a DiT's or a SiT's: give sit=True for SiT"
    said = ditlab(command, tmp_path / "bare.pt", *further(tmp_path / "a"), "--heads", "2").err
    assert note in said
    said = ditlab(command, tmp_path / "bare.pt", *further(tmp_path / "b"), "--heads", "2", "--sit").err
    assert note not in said
    assert "read from SiT" in said
    images = [(tmp_path / name / "grid.png") for name in "ab"]
    assert command != "sample" or images[0].read_bytes() != images[1].read_bytes()


def test_samples_of_the_command_line_are_those_of_the_library(ditlab, model, tmp_path):
    out = tmp_path / "out"
    ditlab("sample", model, "--labels", "class 2", "--seeds", "5", "--steps", "3", "--guidance", "2", "--out", out)
    expected = tiny_pipeline()(2, seeds=5, num_inference_steps=3, guidance_scale=2.0).images[0]
    assert Image.open(out / "class_2-seed5.png").tobytes() == expected.tobytes()


def test_mistakes_get_one_line_and_exit_code_2(refuses, model, tmp_path):
    out = tmp_path / "out"
    assert 'did you mean "DiT-XL/2"' in refuses("info", "DiT-XXL/2")
    assert f'unknown model "{model}s"; did you mean {model}?' in refuses("info", f"{model}s")
    assert "size 30x30 is not divisible by patch 8" in refuses("info", "DiT-S/8", "--size", "30")
    assert 'size "big"' in refuses("info", "DiT-S/8", "--size", "big")
    assert 'did you mean "digits"' in refuses("train", "diggits")
    assert "--optim.lr" in refuses("train", "digits", "--optim.lrr=1")
    assert "float" in refuses("train", "digits", "--optim.lr=fast", "--out", out)
    assert "0 to 2" in refuses("sample", model, "--labels", "3", "--out", out)
    assert "0 sampling steps" in refuses("sample", model, "--steps", "0", "--out", out)
    assert "--batch-size is 0; give 1 or more" in refuses("sample", model, "--batch-size", "0", "--out", out)
    assert "out of range" in refuses("sample", model, "--seeds", "9" * 20, "--out", out)
    assert 'seeds "5-2"' in refuses("sample", model, "--seeds", "5-2", "--out", out)
    assert "no model at" in refuses("sample", tmp_path / "nothing", "--out", out)
    assert 'Did you mean "train"' in refuses("trian")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model")
    assert "not valid TOML" in refuses("train", broken, "--out", out)
    misspelt = tmp_path / "misspelt.toml"
    misspelt.write_text("[sample]\nstep = 3")
    line = refuses("train", misspelt, "--out", out)
    assert "sample.step from" in line
    assert "--sample.steps" in line
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "is damaged: model.safetensors has" in refuses("sample", model, "--out", out)
    assert not out.exists()


def test_sizes_and_seeds():
    assert parse_size("32") == (32, 32)
    assert parse_size("32x48") == (32, 48)
    assert parse_seeds(["3", "0-2"]) == [3, 0, 1, 2]
    for text in ("a", "1-", "-1", "3-1"):
        with pytest.raises(InputError):
            parse_seeds([text])


@pytest.mark.slow
def test_from_a_folder_of_images_to_a_sample(ditlab, refuses, tmp_path):
    pictures, ae, cache, run = (tmp_path / name for name in ("pictures", "ae", "cache", "run"))
    ditlab("data", "glyphs-16", "--export", pictures, "--count", 60)
    (pictures / "A" / "broken.png").write_bytes(b"nothing")
    found = json.loads(ditlab("data", pictures, "--sheet", tmp_path / "sheet.png", "--json").out)
    assert (found["pictures"], found["classes"]["C"], list(found["unreadable"])) == (61, 3, ["A/broken.png"])
    assert Image.open(tmp_path / "sheet.png").size[0] > 100
    settings = ["--size", "16", "--stride", "2", "--width", "8", "--images", "32", "--held-out", "0.1"]
    trained = json.loads(ditlab("train-autoencoder", pictures, "--out", ae, *settings, "--json").out)
    assert trained["held_out"] == 6
    done = json.loads(ditlab("encode", pictures, "--size", "16", "--autoencoder", ae, "--out", cache, "--json").out)
    assert (done["pictures"], done["entries"]) == (60, 60)
    assert (cache / "skipped.csv").read_text().splitlines()[1].startswith("A/broken.png,cannot identify")
    small = ["--model.width=32", "--model.depth=1", "--model.heads=2", "--train.images=32", "--train.batch=16"]
    ditlab("train", "own-latent", f"--data.source={cache}", "--out", run, *small, "--train.precision=float32")
    ditlab("sample", run, "--labels", "B", "--seeds", "0", "--steps", "2", "--out", tmp_path / "drawn")
    assert Image.open(tmp_path / "drawn" / "B-seed0.png").size == (16, 16)
    said = refuses(
        "train", "own-latent", f"--data.source={cache}", "--data.size=32", "--out", tmp_path / "other", *small
    )
    assert "has images of 16x16, not 32x32; omit the size" in said
    assert "holds another cache" in refuses("encode", pictures, "--size", "8", "--autoencoder", ae, "--out", cache)
    assert 'no data "' in refuses("data", tmp_path / "nothing")


def test_commands_that_save_models_never_overwrite(refuses, model, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    full = tmp_path / "full"
    assert f"{full} exists; give another path" in refuses("convert", model, full, "--to", "ditlab")
    assert f"{full} exists; give another path" in refuses("export", model, full, "--to", "torch")
    assert f"{full} is not empty; give another folder" in refuses("average", model, full, "--width", "0.1")
    assert [path.name for path in full.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_samples_from_an_image_and_strips(ditlab, refuses, model, tmp_path):
    picture, mask = Image.new("L", (8, 8), 200), Image.new("L", (8, 8))
    mask.paste(255, (4, 0, 8, 8))
    picture.save(tmp_path / "picture.png")
    mask.save(tmp_path / "mask.png")

    def drawn(out, *options):
        reported = ditlab("sample", model, "--steps=2", "--json", "--out", tmp_path / out, *options).out
        return [Path(file) for file in json.loads(reported)["files"]]

    (file,) = drawn(
        "part", "--labels=0", "--seeds=0", "--image", tmp_path / "picture.png", "--mask", tmp_path / "mask.png"
    )
    with Image.open(file) as painted:
        assert painted.crop((0, 0, 4, 8)).tobytes() == bytes([200]) * 32
        assert painted.crop((4, 0, 8, 8)).tobytes() != bytes([200]) * 32
    assert len(drawn("labels", "--labels", "0", "1", "--seeds=0", "--strip=3")) == 3
    names = [file.name for file in drawn("seeds", "--labels", "0", "1", "--seeds", "4", "7", "--strip=3")]
    assert names[2:4] == ["class_0-seed4-to-7-02.png", "class_1-seed4-to-7-00.png"]
    options = ("sample", model, "--out", tmp_path / "refused", "--labels=0", "--seeds=4")
    assert "a strip between 1 label and 1 seed" in refuses(*options, "--strip=3")
    assert "add --image" in refuses(*options, "--strength=0.5")
    assert "there is no image" in refuses(*options, "--image", tmp_path / "nothing.png")
    assert not (tmp_path / "refused").exists()


class TestEvaluation:
    """The commands that judge."""

    @pytest.fixture
    def digits_model(self, tmp_path):
        pipe = tiny_pipeline(classes=10)
        pipe.classes = [str(i) for i in range(10)]
        return pipe.save(tmp_path / "digits-model")

    @pytest.mark.slow
    def test_evaluate_prints_json_and_checks_itself(self, ditlab, refuses, digits_model, tmp_path):
        protocol = ("--reference", "digits-held-out", "--count", 100, "--steps", 2)
        out, err = ditlab("evaluate", digits_model, *protocol)
        result = json.loads(out)
        assert f"{result['fd_digits']:,.4f}" in err
        assert result["protocol"]["reference"]["count"] == 360
        recipe = tmp_path / "mine.toml"
        recipe.write_text(f'reference = "digits-held-out"\ncount = 100\nsteps = 2\nexpect = {result["fd_digits"]}\n')
        out, err = ditlab("evaluate", digits_model, "--recipe", recipe, "--json")
        assert err == ""
        assert json.loads(out)["expected"]["met"]
        _, err = ditlab("evaluate", digits_model, "--recipe", recipe, "--expect", 1, "--within", 0.1, code=1)
        assert err.endswith("not 1.0 within 0.1\n")
        assert "did you mean" in refuses("evaluate", digits_model, "--recipe", "digit")
        recipe.write_text("step = 2\n")
        assert 'has a key "step" that no evaluation has; did you mean "steps"?' in refuses(
            "evaluate", digits_model, "--recipe", recipe
        )
        assert "give a reference" in refuses("evaluate", digits_model)

    @pytest.mark.slow
    def test_reference_is_what_evaluate_reads(self, ditlab, refuses, digits_model, tmp_path):
        file = tmp_path / "ref.npz"
        about = json.loads(ditlab("reference", "digits", "--out", file, "--json").out)
        assert (about["count"], about["features"]) == (1437, "digits")
        result = json.loads(ditlab("evaluate", digits_model, "--reference", file, "--count", 80, "--steps", 2).out)
        assert result["protocol"]["reference"] == about
        assert "ends in .npz" in refuses("reference", "digits", "--out", tmp_path / "ref")
        assert 'no data "nowhere"' in refuses("reference", "nowhere", "--out", file, "--features", "digits")

    @pytest.mark.slow
    def test_reference_of_a_folder_and_of_a_cache(self, ditlab, quick_glyph_reader, monkeypatch, tmp_path):
        monkeypatch.setattr("ditlab.evaluation.features.glyphs.TRAINED_ON", 260)  # its reading does not matter here
        ditlab("data", "glyphs-16", "--export", tmp_path / "letters", "--count", 80)
        about = json.loads(
            ditlab("reference", tmp_path / "letters", "--features", "glyphs", "--size", 32, "--out", tmp_path / "a.npz",
                   "--json").out
        )  # fmt: skip
        assert (about["count"], about["size"], about["preprocessing"]["fit"]) == (80, [32, 32], "crop")
        ditlab("train-autoencoder", "glyphs-16", "--out", tmp_path / "ae", "--images", 64, "--width", 8, "--depth", 1)
        ditlab("encode", tmp_path / "letters", "--autoencoder", tmp_path / "ae", "--out", tmp_path / "cache")
        about = json.loads(
            ditlab("reference", tmp_path / "cache", "--features", "glyphs", "--out", tmp_path / "b.npz", "--json").out
        )
        assert (about["count"], about["size"], about["preprocessing"]["decoded"]) == (80, [16, 16], True)

    @pytest.mark.slow
    def test_sample_file_can_be_evaluated(self, ditlab, refuses, digits_model, tmp_path):
        options = ("--steps", 2, "--out", tmp_path / "s")
        ditlab("sample", digits_model, "--npz", "--count", 80, *options)
        protocol = ("--reference", "digits-held-out", "--count", 80, "--steps", 2)
        drawn = json.loads(ditlab("evaluate", digits_model, *protocol).out)
        stored = json.loads(ditlab("evaluate", tmp_path / "s" / "samples.npz", *protocol, "--out", tmp_path).out)
        assert stored["fd_digits"] == pytest.approx(drawn["fd_digits"], rel=1e-6)
        assert stored["accuracy"] == drawn["accuracy"]
        assert "samples.npz exists" in refuses("sample", digits_model, "--npz", "--count", 80, *options)
        assert "leave --labels out" in refuses("sample", digits_model, "--npz", "--labels", 1, *options)

    @pytest.mark.slow
    def test_sweep_and_memorization(self, ditlab, digits_model, tmp_path):
        protocol = ("--reference", "digits-held-out", "--count", 80)
        out, _ = ditlab("sweep", digits_model, *protocol, "--try-steps", 1, 2, "--repeats", 1, "--out", tmp_path / "w")
        assert "one seed, so its error is unknown" in out
        assert (tmp_path / "w" / "sweep.png").exists()
        out, _ = ditlab(
            "memorization", digits_model, "--training", "digits", "--held-out", "digits-held-out", "--count", 80,
            "--steps", 2, "--out", tmp_path / "near.png", "--json",
        )  # fmt: skip
        assert json.loads(out)["closer"] < 0.2  # noise is far from digits
        assert Image.open(tmp_path / "near.png").height > 100


class TestInUse:
    """The same command, started a second time while the first is at work."""

    @pytest.mark.parametrize(
        "command",
        [
            ("train", "digits", "--train.images", 8, "--train.batch", 4),
            ("sample", "MODEL", "--npz", "--count", 3, "--steps", 1),
            ("train-autoencoder", "digits", "--images", 16),
            ("encode", "digits", "--autoencoder", "AUTOENCODER"),
        ],
        ids=lambda command: command[0],
    )
    def test_the_folder_is_kept(self, refuses, model, tmp_path, command):
        if "AUTOENCODER" in command:
            save_autoencoder(Patch(1, 2, 2, 8, 1), tmp_path / "ae")
        places = {"MODEL": model, "AUTOENCODER": tmp_path / "ae"}
        with held(tmp_path / "out"):
            reported = refuses(*(places.get(word, word) for word in command), "--out", tmp_path / "out")
            assert f"out is in use by process {os.getpid()} on " in reported
            assert os.listdir(tmp_path / "out") == [".lock"]

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["evaluate", "reference", "memorization"])
    def test_a_protocol_is_kept(self, ditlab, refuses, tmp_path, monkeypatch, command):
        monkeypatch.setattr("ditlab.evaluation.references.short_hash", lambda reported: "0")
        monkeypatch.setattr("ditlab.evaluation.protocols.short_hash", lambda reported: "0")
        options = {
            "evaluate": ["--reference", "digits-held-out", "--out", tmp_path],
            "reference": ["--out", tmp_path / "out.npz"],
            "memorization": ["--training", "digits", "--held-out", "digits-held-out", "--out", tmp_path / "out.png"],
        }[command]
        place = tmp_path / ("evaluation-0" if command == "evaluate" else "out-0.part")
        with held(place):
            assert f"{place} is in use by process {os.getpid()} on " in refuses(command, "digits", *options)
            assert os.listdir(place) == [".lock"]
        ditlab(command, "digits", *options)
        assert place.exists() == (command == "evaluate")


class TestSampling:
    """What `ditlab sample` writes, prints and rejects."""

    def test_files_carry_their_settings(self, ditlab, model, tmp_path):
        out = tmp_path / "out"
        options = ("--steps", 3, "--sampler", "euler", "--guidance", 2, "--guidance-interval", 0.1, 0.8)
        _, err = ditlab("sample", model, "--labels", 1, "--seeds", 4, "--trajectory", *options, "--out", out)
        assert f"contact sheet {out}/grid.png, animation {out}/trajectory.gif" in err
        assert "settings: euler, 3 steps (5 NFE), schedule uniform, guidance 2 for t in 0.1..0.8, " in err
        record = json.loads((out / "samples.json").read_text())
        assert record["settings"] == {
            "steps": 3, "sampler": "euler", "guidance": 2.0, "guidance_interval": [0.1, 0.8], "schedule": "uniform",
        }  # fmt: skip
        assert len(record["weights_hash"]) == 16
        assert record.pop("images") == [{"file": "class_1-seed4.png", "label": "1", "seed": 4}]
        with Image.open(out / "class_1-seed4.png") as image:
            assert json.loads(image.text["ditlab"]) == record | {"label": "1", "seed": 4}

    def test_previous_names_are_accepted_with_a_note(self, ditlab, model, tmp_path):
        common = ("sample", model, "--labels", 0, "--seeds", 0, "--guidance", 1.5, "--json")
        options = ("--preset", "draft", "--guidance-interval", 0.2, 0.9, "--schedule", "cosine")
        new = json.loads(ditlab(*common, *options, "--out", tmp_path / "new").out)
        old = ("--quality", "draft", "--interval", 0.2, 0.9, "--grid=cosine")
        out, err = ditlab(*common, *old, "--out", tmp_path / "old")
        assert [line.split(";")[0] for line in err.splitlines()[:3]] == [
            "ditlab: --quality is now --preset",
            "ditlab: --interval is now --guidance-interval",
            "ditlab: --grid is now --schedule",
        ]
        files = (new["files"][0], json.loads(out)["files"][0])
        assert len({Image.open(file).tobytes() for file in files}) == 1
        assert "--quality" not in ditlab("sample", "--help").out

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (("--label-sampling", "random"), "--label-sampling chooses the labels of an .npz file; add --npz"),
            (("--strip", 3, "--count", 3), "leave --count out"),
            (("--strip", 3, "--image", "a.png"), "leave --image out"),
            (("--npz", "--labels", 1, "--trajectory"), "leave --labels and --trajectory out"),
            (("--mask", "a.png"), "add --image"),
            (("--preset", "drat"), 'unknown preset "drat"; did you mean "draft"'),
            (("--eta", 0.5), "sampler heun has no eta"),
            (("--reuse", 1), "reuse 1; give 2 or more"),
        ],
    )
    def test_what_does_not_go_together_is_one_line(self, refuses, model, tmp_path, options, words):
        assert words in refuses("sample", model, "--out", tmp_path / "out", *options)
        assert not (tmp_path / "out").exists()

    def test_the_folder_is_checked_before_anything_is_loaded(self, tmp_path):
        (tmp_path / "file").write_text("")
        script = (
            "import sys; from ditlab.cli import main; sys.argv = ['ditlab', 'sample', 'none', '--out', sys.argv[1]]\n"
            "try: main()\n"
            "except SystemExit: print('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
        assert done.stdout == "False\n"
        assert "is not empty" in done.stderr

    def test_memorization_offers_what_it_uses(self, ditlab):
        text = ditlab("memorization", "--help").out
        assert "--count" in text
        assert not any(option in text for option in ("--metrics", "--reference", "--expect", "--within"))


def test_every_command_is_in_the_group_that_registers_it():
    cli.import_commands("")
    registered = {}
    for name in app:
        if not name.startswith("-"):
            module = app[name].default_command.__module__.rpartition(".")[2]
            registered.setdefault(module, set()).add(name)
    assert {module: set(commands) for module, commands in cli.GROUPS.items()} == registered


class TestValues:
    @pytest.fixture
    def bands(self, tmp_path):
        pipe = tiny_pipeline(channels=13)
        pipe.values = PixelValues("uint16", (0.0,), (4095.0,))
        return pipe.save(tmp_path / "bands")

    @pytest.mark.slow
    def test_png_files_show_chosen_channels_and_npy_files_hold_all(self, ditlab, refuses, bands, tmp_path):
        options = ("--labels", "1", "--seeds", "3", "--steps", "2", "--precision", "float32")
        said = ditlab("sample", bands, *options, "--show", "4", "3", "2", "--out", tmp_path / "png").err
        line = (
            "the model generates 13 channels of uint16, 0..4095; PNG files show channels 4, 3, 2, with 8 bits; "
            "--format npy keeps all numbers\n"
        )
        assert line in said
        said = ditlab(
            "sample", bands, *options, "--format", "npy", "--trajectory", "--out", tmp_path / "npy"
        ).err  # fmt: skip
        assert "--format" not in said
        array = np.load(tmp_path / "npy" / "class_1-seed3.npy")
        expected = load_folder(bands)(1, seeds=3, steps=2, output_type="native").images[0]
        assert array.dtype == np.uint16
        assert np.array_equal(array, expected)
        with Image.open(tmp_path / "png" / "class_1-seed3.png") as image:
            assert np.abs(np.asarray(image) - array[..., [3, 2, 1]] * (255 / 4095)).max() <= 0.6
        for name in ("grid.png", "samples.json", "trajectory.gif"):
            assert (tmp_path / "npy" / name).exists()
        for like in ("npy/class_1-seed3.npy", "npy", "npy/samples.json", "npy/grid.png"):
            again = tmp_path / f"again-{like.replace('/', '-').replace('.', '-')}"
            assert "--format" not in ditlab("sample", "--like", tmp_path / like, "--out", again).err
            assert sorted(path.name for path in again.iterdir()) == ["class_1-seed3.npy", "grid.png", "samples.json"]
            assert np.array_equal(np.load(again / "class_1-seed3.npy"), array)
        ditlab("sample", "--like", tmp_path / "npy", "--format", "png", "--out", tmp_path / "shown")
        assert (tmp_path / "shown" / "class_1-seed3.png").exists()
        assert (
            refuses("sample", "--like", tmp_path / "npy" / "other.npy")
            .strip()
            .endswith(
                f"{tmp_path / 'npy' / 'samples.json'} does not list other.npy; give one of its files, or samples.json"
            )
        )
        assert "shown channels 14; give one or three numbers from 1 to 13" in refuses(
            "sample", bands, *options, "--show", "14", "--out", tmp_path / "x"
        )
        assert "leave --show and --format out" in refuses(
            "sample", bands, "--npz", "--show", "1", "--format", "npy", "--out", tmp_path / "x"
        )
        ditlab("sample", bands, "--labels", "1", "--seeds", "0", "1", "--strip", "3", "--out", tmp_path / "strip")
        assert len([*(tmp_path / "strip").glob("*.png")]) == 4

    def test_an_ordinary_model_reports_nothing(self, ditlab, model, tmp_path):
        said = ditlab("sample", model, "--labels", "1", "--seeds", "0", "--steps", "1", "--out", tmp_path / "out").err
        assert "--format" not in said

    @pytest.mark.slow
    def test_info_states_channels_type_and_range(self, ditlab, refuses, bands):
        line = f"{bands} generates images of 8x8 with 13 channels of uint16, 0..4095; PNG files show channels 1, 2, 3\n"
        assert line in ditlab("info", bands).err
        values = json.loads(ditlab("info", bands, "--json").out)
        assert values["images"]["channels"] == 13
        assert values["images"]["values"]["high"] == [4095]
        assert values["parameters"] > 1000
        assert "depth cannot change the saved model" in refuses("info", bands, "--depth", "3")

    def test_layouts_without_values_are_reported(self, ditlab, tmp_path):
        pipe = tiny_pipeline(channels=13, learn_variance=True, objective=Objective(DDPM(), "eps", learn_variance=True))
        pipe.values = PixelValues("uint16", (0.0,), (4095.0,))
        pipe.save(tmp_path / "bands")
        said = ditlab("convert", tmp_path / "bands", tmp_path / "x.pt", "--to", "official").err
        assert "the official layout does not hold the values of the images (uint16, 0..4095); note them down" in said
