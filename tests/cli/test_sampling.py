"""Folders that `ditlab sample` chooses, what its files record, and `--like`, which generates them again."""

import json
from pathlib import Path

import pytest
import torch
from helpers import tiny_pipeline
from PIL import Image

import ditlab as library
from ditlab.cli.options import RandomNetwork
from ditlab.cli.serving import Serving, open_models
from ditlab.cli.speed import open_network
from ditlab.core.errors import InputError
from ditlab.core.values import PixelValues
from ditlab.core.version import __version__
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.inference.samples import Samples


@pytest.fixture
def model(tmp_path):
    return tiny_pipeline().save(tmp_path / "model")


@pytest.fixture
def sample(ditlab, tmp_path, monkeypatch):
    """Run `ditlab sample` in an empty folder; returns the files that it wrote and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        out, _ = ditlab("sample", *arguments, "--json")
        return json.loads(out)["files"]

    return run


def settings_of(file):
    with Image.open(file) as image:
        return json.loads(image.text["ditlab"])


def same_pixels(a, b):
    with Image.open(a) as first, Image.open(b) as second:
        return first.tobytes() == second.tobytes()


NOTHING = "holds no settings of ditlab; give a PNG file that no other program has changed, or samples.json"
OPTIONS = ("--labels", 1, "--seeds", 4, "--steps", 3)


def test_another_size_is_generated_said_and_repeated(ditlab, sample, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = ditlab("sample", model, *OPTIONS, "--size", "16x8", "--out", "a").err
    assert "size 16x8 (shifts the schedule by 1.41)" in said
    (file,) = (path for path in (tmp_path / "a").glob("*.png") if path.name != "grid.png")
    with Image.open(file) as image:
        assert image.size == (8, 16)
    assert settings_of(file)["size"] == "8x16"
    (again,) = sample("--like", file)
    assert same_pixels(file, again)
    (square,) = sample("--like", file, "--size", 12)
    with Image.open(square) as image:
        assert image.size == (12, 12)
    with pytest.raises(InputError, match="size 15x8; sides must be multiples of 2: give 16x8, the nearest one"):
        library.load(model)(1, size=(15, 8))


class TestFolders:
    def test_without_out_each_call_has_a_folder_with_the_next_number(self, ditlab, sample, model, tmp_path):
        for folder in ("samples", "samples-2", "samples-3"):
            assert "1 image in " in (err := ditlab("sample", model, *OPTIONS).err)
            assert f", in {folder}; contact sheet {folder}/grid.png" in err
        files = [tmp_path / folder / "class_1-seed4.png" for folder in ("samples", "samples-2", "samples-3")]
        assert same_pixels(files[0], files[1])
        assert same_pixels(files[0], files[2])

    def test_a_given_folder_that_is_not_empty_is_refused_with_the_next_free_name(self, ditlab, sample, model):
        sample(model, *OPTIONS, "--out", "a/b")
        err = ditlab("sample", model, *OPTIONS, "--out", "a/b", code=2).err
        assert err == "ditlab: a/b is not empty; give another folder, such as a/b-2, or add --overwrite\n"
        assert sample(model, *OPTIONS, "--out", "a/b", "--overwrite") == ["a/b/class_1-seed4.png"]

    def test_an_interrupted_npz_file_is_continued_without_out(self, ditlab, sample, model, tmp_path, monkeypatch):
        (tmp_path / "samples").mkdir()
        (tmp_path / "samples" / "notes.txt").write_text("mine")
        npz = ("sample", model, "--npz", "--count", 3, "--steps", 2)

        def interrupted(self, indices):
            raise InputError("interrupted")

        with monkeypatch.context() as patch:
            patch.setattr(Samples, "fetch", interrupted)
            assert "interrupted" in ditlab(*npz, code=2).err
        assert [path.name for path in tmp_path.glob("samples-*/samples.draft")] == ["samples.draft"]
        assert "3 images in samples-2/samples.npz" in ditlab(*npz).err
        assert "3 images in samples-3/samples.npz" in ditlab(*npz).err


def test_a_full_disk_is_one_line_with_the_file(ditlab, sample, model, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    reason = "No space left on device; free some space or give another path"
    assert ditlab("sample", model, *OPTIONS, code=2).err.endswith(
        f"ditlab: cannot write samples/class_1-seed4.png: {reason}\n"
    )


class TestLabels:
    def test_an_ambiguous_label_is_one_line_and_files_have_the_name_of_the_class(self, ditlab, sample, model):
        pipe = library.load(model)
        pipe.classes = ["001", "002", "003"]
        pipe.save(model, overwrite=True)
        err = ditlab("sample", model, "--labels", 1, "--seeds", 0, "--steps", 1, code=2).err
        assert err == (
            'ditlab: label 1 is ambiguous: it may be the class "001", or index 1, which is the class "002"; '
            'give "001" or index:1\n'
        )
        files = sample(model, "--labels", "001", "index:1", "002", "--seeds", 0, "--steps", 1)
        assert files == ["samples/001-seed0.png", "samples/002-seed0.png"]
        assert [settings_of(file)["label"] for file in files] == ["001", "index:1"]

    def test_labels_in_two_spellings_are_one_row(self, sample, model):
        files = sample(model, "--labels", 1, "class 1", "index:1", 0, "--seeds", 0, "--steps", 1)
        assert files == ["samples/class_1-seed0.png", "samples/class_0-seed0.png"]


class TestRecords:
    def test_every_file_records_everything(self, sample, model, tmp_path):
        (file,) = sample("model", *OPTIONS, "--guidance", 2, "--guidance-interval", 0.1, 0.8, "--preset", "draft")
        record = settings_of(file)
        identity = library.load(model).identity()
        assert record == {
            "version": __version__, "model": "DiT-S/2", "source": "model", "images_seen": None,
            "precision": "float32", "size": "8x8",
            "settings": {
                "steps": 3, "sampler": "ab4", "guidance": 2.0, "guidance_interval": [0.1, 0.8], "schedule": "uniform",
                "preset": "draft",
            },
            "weights_hash": identity["weights_hash"], "autoencoder_hash": identity["autoencoder_hash"],
            "label": "1", "seed": 4,
        }  # fmt: skip
        listed = json.loads((tmp_path / "samples" / "samples.json").read_text())
        assert settings_of("samples/grid.png") == listed
        (image,) = listed.pop("images")
        assert image == {"file": "class_1-seed4.png", "label": "1", "seed": 4}
        assert listed | {"label": "1", "seed": 4} == record

    def test_an_npz_file_has_them_beside_it(self, ditlab, sample, model, tmp_path):
        ditlab("sample", "model", "--npz", "--count", 3, "--steps", 2, "--out", "many")
        record = json.loads((tmp_path / "many" / "samples.json").read_text())
        assert (record["version"], record["source"], record["count"], record["steps"]) == (__version__, "model", 3, 2)


class TestLike:
    @pytest.mark.slow
    def test_an_image_is_repeated_exactly(self, ditlab, sample, model, tmp_path):
        settings = ("--steps", 5, "--guidance", 1.5, "--sampler", "ddim", "--eta", 0.5, "--schedule", "cosine")
        first = sample("model", "--labels", 0, 1, 2, "--seeds", "0-2", *settings)
        (again,) = sample("--like", "samples/class_1-seed2.png")
        assert again == "samples-2/class_1-seed2.png"
        assert same_pixels(first[5], again)
        assert settings_of(again) == settings_of(first[5])
        assert sample("--like", "samples/samples.json") == [file.replace("samples/", "samples-3/") for file in first]
        for other in ("samples", "samples/grid.png"):
            repeated = sample("--like", other)
            assert len(repeated) == 9
            assert all(same_pixels(a, b) for a, b in zip(first, repeated, strict=True))
        err = ditlab("sample", "--like", "samples/class_1-seed2.png").err
        assert "differ" not in err

    @pytest.mark.parametrize(
        ("given", "settings", "labels", "seeds"),
        [
            ((), {}, ["1"], [4]),
            (("--steps", 4), {"steps": 4}, ["1"], [4]),
            (("--seeds", "7-8"), {}, ["1"], [7, 8]),
            (("--labels", 2, 0), {}, ["2", "0"], [4]),
            (("--count", 2), {}, ["1"], [4, 5]),
            (("--sampler", "heun"), {"sampler": "heun", "eta": None}, ["1"], [4]),
            (("--preset", "best", "--guidance", 3), {"preset": "best", "steps": 24, "sampler": "ab4", "eta": None,
                                                     "schedule": "uniform", "guidance": 3.0}, ["1"], [4]),
        ],
    )  # fmt: skip
    def test_options_beside_it_replace_recorded_settings(self, sample, model, given, settings, labels, seeds):
        (file,) = sample(model, *OPTIONS, "--sampler", "ddim", "--eta", 0.5, "--schedule", "cosine")
        recorded = settings_of(file)
        files = sample("--like", file, *given)
        expected = {key: value for key, value in (recorded["settings"] | settings).items() if value is not None}
        records = [settings_of(each) for each in files]
        assert all(record["settings"] == expected for record in records)
        assert [(record["label"], record["seed"]) for record in records] == [(a, b) for a in labels for b in seeds]

    def test_another_model_is_said_in_one_line(self, ditlab, sample, model, tmp_path):
        (file,) = sample("model", *OPTIONS)
        pipe = library.load(model)
        with torch.no_grad():
            next(pipe.net.parameters()).add_(1)
        pipe.save(tmp_path / "other")
        before, after = settings_of(file)["weights_hash"], pipe.identity()["weights_hash"]
        line = f"{file}: generated with other weights (hash {before}, now {after}); the images will differ"
        assert line in ditlab("sample", "other", "--like", file).err.splitlines()
        assert "differ" not in ditlab("sample", "model", "--like", file).err

    def test_images_that_start_from_an_image(self, ditlab, sample, model, tmp_path):
        for name in ("picture", "mask", "other"):
            image = Image.effect_noise((8, 8), 90)
            image.putpixel((0, 0), 255)
            image.save(tmp_path / f"{name}.png")
        first = sample("model", *OPTIONS, "--image", "picture.png", "--mask", "mask.png", "--strength", 0.7)
        record = settings_of(first[0])
        assert (record["image"], record["mask"], record["settings"]["strength"]) == ("picture.png", "mask.png", 0.7)
        again = sample("--like", first[0])
        assert same_pixels(first[0], again[0])
        err = ditlab("sample", "--like", first[0], "--image", "other.png").err
        assert f"{first[0]}: generated from another image or mask; the images will differ" in err

    @pytest.mark.slow
    def test_interpolations(self, sample, model):
        first = sample("model", "--labels", 0, 1, "--seeds", 4, "--strip", 3, "--steps", 2)
        again = sample("--like", "samples")
        assert all(same_pixels(a, b) for a, b in zip(first, again, strict=True))
        (middle,) = sample("--like", first[1])
        assert middle == "samples-3/class_0-to-class_1-0.50-seed4.png"
        assert same_pixels(first[1], middle)
        seeds = sample("model", "--labels", 0, "--seeds", 4, 9, "--strip", 3, "--steps", 2)
        assert same_pixels(seeds[1], sample("--like", seeds[1])[0])

    def test_a_tuned_schedule_is_repeated_after_its_file_is_gone(self, ditlab, sample, model, tmp_path):
        schedule = {"process": {"name": "linear"}, "sampler": "ab4", "grids": {"3": [1.0, 0.6, 0.2, 0.0]}}
        (tmp_path / "s.json").write_text(json.dumps(schedule))
        (file,) = sample("model", *OPTIONS, "--schedule", "s.json")
        (tmp_path / "s.json").unlink()
        assert same_pixels(file, sample("--like", file)[0])
        err = ditlab("sample", "--like", file, "--steps", 5, code=2).err
        assert err == f"ditlab: {file} has the times of 3 steps, not 5; give a schedule too\n"

    def test_an_npz_file_is_repeated(self, ditlab, sample, model, tmp_path):
        ditlab("sample", "model", "--npz", "--count", 3, "--seeds", 5, "--steps", 2, "--out", "many")
        assert "3 images in samples/samples.npz" in ditlab("sample", "--like", "many").err
        pixels = [
            library.data.npz.SampleFile(tmp_path / name / "samples.npz").pixels[:] for name in ("many", "samples")
        ]
        assert (pixels[0] == pixels[1]).all()

    def test_how_the_model_was_loaded_is_repeated(self, ditlab, sample, tmp_path):
        objective = Objective(DDPM(), "eps", learn_variance=True)
        pipe = tiny_pipeline(channels=3, learn_variance=True, objective=objective)
        ditlab("convert", pipe.save(tmp_path / "ours"), tmp_path / "theirs.pt", "--to", "official")
        (file,) = sample("theirs.pt", "--heads", 2, "--latent-size", 8, *OPTIONS)
        assert settings_of(file)["load_options"] == {"heads": 2, "size": [8, 8]}
        assert same_pixels(file, sample("--like", file)[0])

    def test_arrays_are_repeated_as_arrays(self, sample, tmp_path):
        pipe = tiny_pipeline(channels=5)
        pipe.config |= {"values": PixelValues("uint16", (0.0,), (4095.0,)).describe()}
        pipe.save(tmp_path / "bands")
        first = sample("bands", *OPTIONS, "--format", "npy", "--show", 4, 3, 2, "--out", "a.b")
        assert first == ["a.b/class_1-seed4.npy"]
        for record in ("a.b", "a.b/grid.png"):
            (again,) = sample("--like", record)
            assert again.endswith("/class_1-seed4.npy")
            assert (tmp_path / again).read_bytes() == (tmp_path / first[0]).read_bytes()
            assert same_pixels("a.b/grid.png", (tmp_path / again).with_name("grid.png"))
        assert sample("--like", "a.b", "--format", "png", "--out", "shown") == ["shown/class_1-seed4.png"]
        assert settings_of("shown/class_1-seed4.png")["show"] == [4, 3, 2]

    def test_arrays_are_repeated_as_an_npz_file(self, ditlab, sample, tmp_path):
        tiny_pipeline(channels=5).save(tmp_path / "bands")
        sample("bands", *OPTIONS, "--format", "npy", "--show", 4, 3, 2)
        assert "3 images in many/samples.npz" in ditlab("sample", "--like", "samples", "--npz", "--count", 3,
                                                        "--out", "many").err  # fmt: skip

    @pytest.mark.parametrize("name", ["samples.npz", "trajectory.gif"])
    def test_files_without_settings_name_the_file_that_has_them(self, ditlab, tmp_path, monkeypatch, name):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / name).touch()
        assert ditlab("sample", "--like", f"a/{name}", code=2).err == (
            f"ditlab: a/{name} holds no settings; give a/samples.json, which ditlab writes beside it\n"
        )

    @pytest.mark.slow
    def test_a_model_or_an_image_that_is_gone(self, ditlab, sample, model, tmp_path):
        for name in ("start", "mask"):
            Image.new("L", (8, 8), 255).save(f"{name}.png")
        (file,) = sample("model", *OPTIONS)
        (inpainted,) = sample("model", *OPTIONS, "--image", "start.png", "--mask", "mask.png")
        for name, option in (("start", "image"), ("mask", "mask")):
            (tmp_path / f"{name}.png").rename(tmp_path / f"{name}-moved.png")
            assert ditlab("sample", "--like", inpainted, code=2).err == (
                f"ditlab: {inpainted} records the {option} {name}.png, which does not exist; give it with --{option}\n"
            )
            (tmp_path / f"{name}-moved.png").rename(tmp_path / f"{name}.png")
        model.rename(tmp_path / "elsewhere")
        err = ditlab("sample", "--like", file, code=2).err
        assert err.startswith(
            f"ditlab: {file} records the model model, which is neither in the current folder nor in a folder above the "
            "file (no model at model, which does not exist; "
        )
        assert err.endswith("); give it: sample MODEL --like FILE\n")
        assert "give it" not in ditlab("sample", "wrong", "--like", file, code=2).err
        assert same_pixels(file, sample("elsewhere", "--like", file)[0])

    def test_relative_paths_are_found_in_the_folders_above_the_file(self, ditlab, sample, model, tmp_path, monkeypatch):
        Image.new("L", (8, 8), 255).save("start.png")
        (tmp_path / "runs").mkdir()
        model.rename("runs/demo")  # has the form of a hub id too
        (file,) = sample("runs/demo", *OPTIONS, "--image", "start.png", "--out", "a/b")
        (tmp_path / "other").mkdir()
        monkeypatch.chdir("other")
        err = ditlab("sample", "--like", f"../{file}").err
        for what, place in (("model", "runs/demo"), ("image", "start.png")):
            assert (
                f"../{file} records the {what} {place}, which is not in the current folder; using {tmp_path / place}\n"
            ) in err
        assert same_pixels(tmp_path / file, "samples/class_1-seed4.png")
        (tmp_path / "runs").rename(tmp_path / "moved")
        err = ditlab("sample", "--like", f"../{file}", code=2).err
        assert "records the model runs/demo, which is neither in the current folder nor in a folder above" in err

    @pytest.mark.slow
    def test_the_place_of_the_model_under_low_rank_updates_is_repeated(self, sample, model, tmp_path):
        recipe = {"data": {"source": "digits"}, "diffusion": {"process": "linear"}, "train": {
            "images": 8, "batch": 8, "device": "cpu", "precision": "float32", "compile": "never",
            "init_from": str(model), "lora": 2, "lora_apart": True,
        }}  # fmt: skip
        library.train(recipe, out=tmp_path / "run")
        model.rename(tmp_path / "moved")
        (file,) = sample("run", "--base", "moved", *OPTIONS)
        assert settings_of(file)["load_options"] == {"base": "moved"}
        assert same_pixels(file, sample("--like", file)[0])

    @pytest.mark.slow
    def test_the_place_of_that_model_is_an_option_of_all_commands(self, ditlab, sample, model, tmp_path, monkeypatch):
        recipe = {"data": {"source": "digits"}, "diffusion": {"process": "linear"}, "train": {
            "images": 8, "batch": 8, "device": "cpu", "precision": "float32", "compile": "never",
            "init_from": str(model), "lora": 2, "lora_apart": True,
        }}  # fmt: skip
        library.train(recipe, out=tmp_path / "run")
        model.rename(tmp_path / "moved")
        quick = ("--steps", 2, "--images", 1)
        assert "which does not exist; give its present place: base=" in ditlab("tune", "run", *quick, code=2).err
        assert "2 steps: error" in ditlab("tune", "run", *quick, "--base", "moved").err
        assert "unfused" in ditlab("info", "run", "--base", "moved").out
        opened = open_network("run", RandomNetwork(), "cpu", "moved")
        loaded, runs = open_models(["run", "moved"], Serving(device="cpu"), "moved")
        assert ([*loaded], [*runs]) == (["run", "moved"], ["run"])
        weights = {name: value for name, value in opened.net.state_dict().items() if "lora" not in name}
        assert all(torch.equal(value, library.load("run", base="moved").net.state_dict()[name])
                   for name, value in weights.items())  # fmt: skip
        for command, line in (
            (("bench", "DiT-S/2"), "DiT-S/2 has random weights and needs no base; leave --base out"),
            (("info", "DiT-S/2"), "--base is the model under a saved model; give the folder of that model, or leave"),
            (("serve", "moved", "--port", 0), "none of moved holds low-rank updates; leave --base out"),
        ):
            assert line in ditlab(*command, "--base", "moved", code=2).err

    def test_whole_evaluations_of_feature_caching_are_counted_over_all_batches(self, ditlab, sample, model):
        """The counts are those of the whole command, whose images have the setting in their record."""
        options = ("--labels", 0, "--seeds", "0-2", "--steps", 6, "--sampler", "euler", "--batch-size", 1)
        err = ditlab("sample", "model", *options, "--guidance", 1, "--reuse", 3, "--out", "fixed").err
        assert "guidance 1, reuse 3, 6 of 18 evaluations whole" in err
        err = ditlab("sample", "model", *options, "--guidance", 1, "--reuse-error", 0.5, "--out", "bound").err
        whole = int(err.partition("reuse error 0.5, ")[2].partition(" of 18 evaluations whole")[0])
        assert 9 <= whole < 18
        record = json.loads(Path("bound/samples.json").read_text())
        assert (record["settings"]["reuse_error"], record["settings"].get("reuse")) == (0.5, None)

    @pytest.mark.slow
    def test_a_schedule_and_feature_caching_are_tuned_for_a_budget(self, ditlab, sample, model, monkeypatch):
        monkeypatch.setattr("ditlab.inference.tune_budget.INTERVALS", (None, 2))
        monkeypatch.setattr("ditlab.inference.tune_budget.call_costs", lambda pipe, images: (1.0, 0.1))
        quick = ("--sampler", "euler", "--guidance", 1, "--images", 1)
        err = ditlab("tune", "model", *quick, "--budget", 3.4).err
        lines = [line.split(": error")[0] for line in err.splitlines() if ": error" in line]
        assert sorted(lines) == ["3 steps, reuse off", "6 steps, reuse 2"]
        best = lines[0].split()
        assert f"--steps {best[0]} --schedule schedules.json" + (" --reuse 2" if best[3] == "2" else "") in err
        assert json.loads(Path("schedules.json").read_text()).get("reuse") == (2 if best[3] == "2" else None)
        sample("model", "--steps", best[0], "--schedule", "schedules.json")
        err = ditlab("tune", "model", *quick, "--steps", 2, "--budget-ms", 3, code=2).err
        line = "--steps, --budget and --budget-ms each say how many steps are tuned; give one of them"
        assert err == f"ditlab: {line}\n"

    def test_one_image_to_image_step(self, ditlab, sample, model):
        Image.new("L", (8, 8), 255).save("start.png")
        err = ditlab("sample", "model", *OPTIONS, "--image", "start.png", "--strength", 0.34).err
        assert "settings: heun, 1 step (1 NFE)" in err

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("key", "values"),
        [
            ("settings.steps", [10**30]),
            ("settings.schedule", [{}, 3, None]),
            ("settings.guidance_channels", ["x", [1]]),
            ("show", [3, "rgb", ["x"], None]),
            ("load_options", [None, "heads", [1]]),
            ("source", [None, 3]),
            ("images", [[], 3, [3], "x"]),
            ("images.0.seed", [None, "x", 1.5, {}]),
            ("images.0.label", [1.5, [1], {}]),
            ("images.0.file", [None, 3]),
            ("images.0.image", [3, [1]]),
        ],
    )
    def test_a_record_with_other_values_is_one_line(self, ditlab, sample, model, tmp_path, key, values):
        sample("model", *OPTIONS)
        text = (tmp_path / "samples" / "samples.json").read_text()
        for value in values:
            record = part = json.loads(text)
            *parents, last = key.split(".")
            for name in parents:
                part = part[int(name) if name.isdigit() else name]
            part[last] = value
            (tmp_path / "x.json").write_text(json.dumps(record))
            err = ditlab("sample", "--like", "x.json", code=2).err
            assert err == f"ditlab: x.json {NOTHING}\n", value

    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (None, "there is no image x.png; give another path"),
            ("{}", f"x.png {NOTHING}"),
            ("no json", f"x.png {NOTHING}"),
            ('{"model": "demo", "label": 1, "seed": 0, "steps": 2, "sampler": "heun"}',
             'x.png does not have the path of its model "demo"; give it: sample MODEL --like FILE'),
            ('{"source": "model", "label": 1, "seed": 0, "steps": 2, "sampler": "antigravity:fly"}',
             'sampler "antigravity:fly" is not part of ditlab; import antigravity first'),
            ('{"source": "model", "label": 1, "seed": 0, "steps": 2, "sampler": "heun", "strength": 0.5}',
             "these images start from an image whose path is not recorded; add --image (and --mask)"),
            ('{"source": "model", "label": 1, "seed": 0, "steps": 2, "sampler": "heun", "guide_hash": "0"}',
             "x.png was generated with a guide model; generate it again in Python"),
        ],
    )  # fmt: skip
    def test_files_that_cannot_be_repeated(self, ditlab, sample, model, tmp_path, content, line):
        if content is not None:
            from ditlab.inference.records import METADATA, PngImagePlugin

            metadata = PngImagePlugin.PngInfo()
            metadata.add_text(METADATA, content)
            Image.new("L", (8, 8)).save(tmp_path / "x.png", pnginfo=metadata)
        err = ditlab("sample", "--like", "x.png", code=2).err
        assert line in err
        assert err.count("\n") == 1

    def test_an_image_of_the_page_is_repeated_with_the_model(self, sample, model, tmp_path):
        from ditlab.server.files import png

        pipe = library.load(model)
        image = pipe(2, seeds=3, steps=4).images[0]
        settings = {"model": "demo", "label": 2, "seed": 3, "steps": 4, "sampler": "heun", "guidance": 1.0,
                    "guidance_interval": [0.0, 1.0], "schedule": "uniform", "size": "8x8", "precision": "float32",
                    "model_hash": pipe.identity()["weights_hash"], "version": "1.0.0"}  # fmt: skip
        (tmp_path / "page.png").write_bytes(png(image, settings))
        assert same_pixels(tmp_path / "page.png", sample("model", "--like", "page.png")[0])

    def test_without_model_and_file(self, ditlab):
        assert (
            "no model; give a model or run folder, or repeat an image with --like FILE" in ditlab("sample", code=2).err
        )


class TestPublishedGuidance:
    """DiT's and SiT's scripts use guidance 4.0 on three channels, diffusers' pipeline on all."""

    @pytest.fixture
    def published(self, ditlab, tmp_path):
        """Paths of one network as a file of DiT and as a folder of diffusers, with an autoencoder for its latents."""
        pipe = tiny_pipeline(channels=4, learn_variance=True, objective=Objective(DDPM(), "eps", learn_variance=True))
        ours = pipe.save(tmp_path / "ours")
        ditlab("convert", ours, tmp_path / "dit.pt", "--to", "official")
        ditlab("convert", ours, tmp_path / "folder", "--to", "diffusers")
        return tmp_path / "dit.pt", tmp_path / "folder"

    def load(self, path, **options):
        overrides = {"heads": 2, "size": (8, 8)} if path.suffix else {}
        return library.load(path, **overrides, **options)

    def test_defaults(self, published):
        file, folder = published
        kinds = {
            "facebookresearch/DiT's sample.py": (self.load(file), 3),
            "diffusers' DiTPipeline": (self.load(folder), None),
        }
        for origin, (pipe, channels) in kinds.items():
            plan = pipe.resolve(steps=4)
            assert (plan.guidance, plan.options.guidance_channels) == (4.0, channels)
            assert pipe.config["guidance_origin"] == origin
            given = pipe.resolve(steps=4, guidance=1.5)
            assert (given.guidance, given.options.guidance_channels) == (1.5, None)
            assert pipe.resolve(steps=4, guidance=1).guidance == 1.0

    def test_sit(self, tmp_path, ditlab):
        pipe = tiny_pipeline(channels=4, learn_variance=True, objective=Objective(DDPM(), "eps", learn_variance=True))
        torch.save(dict(pipe.net.state_dict()), tmp_path / "sit.pt")
        loaded = self.load(tmp_path / "sit.pt", sit=True)
        plan = loaded.resolve(steps=4)
        assert (plan.guidance, plan.options.guidance_channels) == (4.0, 3)
        assert loaded.config["guidance_origin"] == "facebookresearch/SiT's sample.py"

    def test_the_images_are_those_of_the_explicit_settings(self, published):
        file, folder = published
        options = {"seeds": 0, "steps": 3, "output_type": "latent"}
        pipe, all_channels = self.load(file), self.load(folder)
        explicit = pipe(1, guidance=4.0, guidance_channels=3, **options).images
        assert torch.equal(pipe(1, **options).images, explicit)
        assert torch.equal(all_channels(1, **options).images, all_channels(1, guidance=4.0, **options).images)
        assert not torch.equal(pipe(1, guidance=4.0, **options).images, explicit)

    def test_not_without_classes_or_a_null_class(self, published, tmp_path):
        for name, classes in (("null", 4), ("unconditional", 0)):
            pipe = tiny_pipeline(classes=3 if classes else 0, channels=4, learn_variance=True,
                                 objective=Objective(DDPM(), "eps", learn_variance=True))  # fmt: skip
            torch.save(dict(pipe.net.state_dict()), tmp_path / f"{name}.pt")
            loaded = self.load(tmp_path / f"{name}.pt", classes=classes)
            assert loaded.resolve(steps=2).guidance == 1.0
            assert "sample" not in loaded.config

    def test_the_summary_says_where_it_comes_from(self, ditlab, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        pipe = tiny_pipeline(channels=3, learn_variance=True, objective=Objective(DDPM(), "eps", learn_variance=True))
        torch.save(dict(pipe.net.state_dict()), "dit.pt")
        call = ("sample", "dit.pt", "--heads", 2, "--latent-size", 8, "--classes", 3, *OPTIONS)
        assert ", guidance 4 (default of facebookresearch/DiT's sample.py), float32\n" in ditlab(*call).err
        assert ", guidance 2, float32\n" in ditlab(*call, "--guidance", 2).err
