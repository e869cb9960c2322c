"""Resuming after data, models and folders have moved or changed: content decides, not spelling."""

import io
import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from helpers import posix_only, tiny_pipeline
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.core.errors import InputError
from ditlab.core.units import describe_difference
from ditlab.data.identity import Stamps
from ditlab.training import data_index

TINY = {
    "model": {"name": "DiT-S/4", "width": 32, "depth": 1, "heads": 2},
    "train": {"batch": 4, "precision": "float32", "device": "cpu", "compile": "never"},
    "sample": {"sampler": "euler", "steps": 2},
}


def write(file, gray):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), gray).save(file)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The present folder, with twelve images in num/."""
    for i in range(6):
        write(tmp_path / "num" / "cat" / f"{i}.png", 10 + i)
        write(tmp_path / "num" / "dog" / f"{i}.png", 110 + i)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def train(images, source="num", out="run", changes=False, data=None, **settings):
    """Train up to a number of images; returns the lines on the console."""
    said = io.StringIO()
    tables = TINY | {
        "data": {"source": str(source)} | (data or {}),
        "train": TINY["train"] | {"images": images} | settings,
    }
    pipe = ditlab.train(tables, out, changes=changes, console=Console(file=said, width=1000))
    assert pipe.config["images_seen"] == images
    return said.getvalue()


def refused(*arguments, **settings):
    with pytest.raises(InputError) as error:
        train(*arguments, **settings)
    return str(error.value)


class TestImages:
    def test_the_run_folder_lists_the_images(self, here):
        train(4)
        listed = Stamps.load(here / "run" / "images.npz")
        assert list(listed.names) == [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)]
        assert listed.labels.tolist() == [0] * 6 + [1] * 6
        assert 0 not in listed.hashes

    @pytest.mark.slow
    def test_an_overwritten_image_is_asked_about(self, here):
        train(4)
        write(here / "num" / "dog" / "5.png", 116)
        assert refused(8) == (
            "run was trained with other settings (other images: 1 with other content (dog/5.png)); give the same "
            "recipe, or allow changes to resume with the new one"
        )
        said = train(8, changes=True)
        assert "allowed changes: other images: 1 with other content (dog/5.png)\n" in said
        assert "resuming run at 4 images" in said
        assert "allowed" not in train(12)  # the new images are those of the run now

    @pytest.mark.slow
    def test_an_image_in_another_class_is_asked_about(self, here):
        train(4)
        (here / "num" / "cat" / "5.png").rename(here / "num" / "dog" / "6.png")
        assert "(other images: 1 removed (cat/5.png), 1 new (dog/6.png))" in refused(8)
        train(8, changes=True)

    def test_more_images_are_counted_and_listed(self, here):
        train(4)
        write(here / "num" / "dog" / "6.png", 116)
        assert "(12 images there, 13 here: 1 new (dog/6.png))" in refused(8)

    @pytest.mark.slow
    def test_other_labels_of_the_same_images(self, here):
        shutil.copytree(here / "num" / "cat", here / "flat")

        def table(labels):
            rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels))
            (here / "labels.csv").write_text(f"file,label\n{rows}")
            return {"labels": "labels.csv"}

        train(4, "flat", data=table("aabbaa"))
        assert "(other images: 1 with another label (2.png))" in refused(8, "flat", data=table("aaabaa"))
        os.rename("labels.csv", "table.csv")
        table("aabbaa")
        os.rename("labels.csv", "table.csv")
        train(8, "flat", data={"labels": "table.csv"})  # another file with the same labels

    @pytest.mark.slow
    def test_other_times_alone_are_no_change(self, here):
        train(4)
        for file in (here / "num").rglob("*.png"):
            os.utime(file, (1, 1))
        train(8)
        assert (Stamps.load(here / "run" / "images.npz").times == 1_000_000_000).all()

    @pytest.mark.slow
    def test_large_data_with_other_times_are_asked_about(self, here, monkeypatch):
        monkeypatch.setattr(data_index, "HASHED_IMAGES", 11)
        train(4)
        assert not Stamps.load(here / "run" / "images.npz").hashes.any()
        os.utime(here / "num" / "cat" / "0.png", (1, 1))
        assert "(other images: 1 with another modification time, which may have changed (cat/0.png))" in refused(8)
        train(8, changes=True)

    def test_a_sample_file_with_other_images(self, here):
        images = np.zeros((8, 8, 8, 3), np.uint8)
        np.savez("x.npz", arr_0=images)
        train(4, "x.npz")
        np.savez("x.npz", arr_0=images)
        train(8, "x.npz")
        images[3] = 7
        np.savez("x.npz", arr_0=images)
        assert "(other images: 1 with other content (3))" in refused(12, "x.npz")

    def test_images_of_another_size_are_another_run(self, here):
        train(4)
        for file in (here / "num").rglob("*.png"):
            Image.new("L", (16, 16), 9).save(file)
        assert "holds another run (the input of the network is 1x8x8 there, 1x16x16 here)" in refused(8, changes=True)

    def test_a_run_of_an_earlier_version_compares_the_count(self, here):
        train(4)
        (here / "run" / "images.npz").unlink()
        write(here / "num" / "dog" / "5.png", 116)
        train(8)
        assert (here / "run" / "images.npz").exists()


class TestPlaces:
    @pytest.mark.slow
    @posix_only
    @pytest.mark.parametrize("text", ["num/", "./num", "num/.", "num/../num", "{}/num", "~/num", "link"])
    def test_a_run_resumes_with_every_spelling_of_its_source(self, here, text):
        (here / "link").symlink_to("num")
        train(4)
        assert "data.source" not in train(8, text.format(here))

    def test_a_run_resumes_from_another_folder(self, here, monkeypatch):
        train(4)
        (here / "deep").mkdir()
        monkeypatch.chdir(here / "deep")
        assert "data.source was num and is ../num, with the same images\n" in train(8, "../num", "../run")

    @pytest.mark.slow
    def test_a_source_that_has_moved(self, here):
        train(4)
        (here / "num").rename(here / "moved")
        assert "data.source was num and is moved, with the same images\n" in train(8, "moved")
        shutil.copytree(here / "moved", here / "copy", copy_function=shutil.copyfile)  # with other times
        assert "data.source was moved and is copy, with the same images\n" in train(12, "copy")

    @pytest.mark.slow
    def test_another_source_is_asked_about(self, here):
        train(4)
        shutil.copytree(here / "num", here / "other")
        write(here / "other" / "cat" / "0.png", 99)
        assert (
            "(data.source is num there, other here: 1 with other content (cat/0.png)); give the same recipe, or allow"
        ) in refused(8, "other")
        train(8, "other", changes=True)

    def test_another_source_with_other_classes_is_another_run(self, here):
        train(4)
        (here / "num" / "cat").rename(here / "num" / "zebra")
        message = 'another run (class 0 of the images was "cat" there and is "dog" here)'
        assert message in refused(8, changes=True)

    @pytest.mark.slow
    def test_the_same_bits_with_another_spelling(self, here):
        train(8, out="whole")
        train(4)
        (here / "num").rename(here / "moved")
        train(8, "moved")
        states = [ditlab.load(name).net.state_dict() for name in ("whole", "run")]
        assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())

    @pytest.mark.slow
    def test_class_names_in_the_encoding_of_another_system(self, here):
        decomposed = unicodedata.normalize("NFD", "café")
        (here / "num" / "cat").rename(here / "num" / decomposed)
        train(4)
        assert ditlab.load("run").classes == ["café", "dog"]
        (here / "num" / decomposed).rename(here / "num" / "café")
        train(8)


class TestBase:
    """Low-rank updates that are saved separately, and the model that they change."""

    def tune(self, images, base, **settings):
        return train(images, init_from=str(base), lora=2, lora_apart=True, data={"size": "8", "gray": True}, **settings)

    @pytest.fixture
    def tuned(self, here):
        tiny_pipeline(classes=2).save("base")
        self.tune(4, "base")
        return ditlab.load("run").net.state_dict()

    def same(self, pipe, state):
        return all(torch.equal(value, state[key]) for key, value in pipe.net.state_dict().items())

    @pytest.mark.slow
    def test_the_base_has_moved(self, here, tuned):
        (here / "base").rename(here / "moved")
        with pytest.raises(InputError) as error:
            ditlab.load("run")
        folder = "run/checkpoints/000000000004"
        assert str(error.value) == (
            f"{folder} holds low-rank updates of the model {here / 'base'}, which does not exist; give its present "
            "place: base=, or train.init_from to resume training"
        )
        pipe = ditlab.load("run", base="moved")
        assert self.same(pipe, tuned)
        assert pipe.config["lora"]["source"] == str(here / "moved")
        assert self.same(ditlab.load("run", base="~/moved"), tuned)

    @pytest.mark.slow
    def test_another_base_is_refused(self, here, tuned):
        other = tiny_pipeline(classes=2)
        with torch.no_grad():
            other.net.x_embedder.proj.bias.add_(1)
        other.save("other")
        with pytest.raises(InputError, match=r"^other is not the model from which run/.* was trained: its wei"):
            ditlab.load("run", base="other")
        assert "other is not the model from which" in self.refused("other")
        shutil.rmtree("base")
        (here / "other").rename(here / "base")  # another model at the recorded place
        with pytest.raises(InputError, match="is not the model from which"):
            ditlab.load("run")

    def refused(self, base):
        with pytest.raises(InputError) as error:
            self.tune(8, base)
        return str(error.value)

    @pytest.mark.slow
    def test_training_resumes_with_the_base_at_its_new_place(self, here, tuned):
        (here / "base").rename(here / "moved")
        assert "train.init_from is base there, moved here, with the same weights\n" in self.tune(8, "moved")
        (here / "fresh").mkdir()
        assert ditlab.load("run").config["lora"]["source"] == str(here / "moved")

    def test_a_base_for_a_complete_model_is_refused(self, here):
        tiny_pipeline().save("base")
        with pytest.raises(InputError, match=r"^base contains all its weights and needs no base; leave it out$"):
            ditlab.load("base", base="base")

    @pytest.mark.slow
    def test_a_moved_model_to_start_from(self, here):
        tiny_pipeline(classes=2).save("base")
        data = {"size": "8", "gray": True}
        train(4, init_from="base", data=data)
        (here / "base").rename(here / "moved")
        train(8, init_from="./base", data=data)  # a resumed run does not need it
        assert "with the same weights" in train(12, init_from="moved", data=data)
        other = tiny_pipeline(classes=2)
        with torch.no_grad():
            other.net.x_embedder.proj.bias.add_(1)
        other.save("other")
        assert "holds another run (train.init_from is moved there, other here, with other weights)" in refused(
            16, init_from="other", data=data
        )


def test_a_setting_that_was_not_set_is_named():
    assert describe_difference("data.range", "", "0,4095") == "data.range is not set there, 0,4095 here"
