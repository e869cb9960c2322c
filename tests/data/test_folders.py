"""Folders of images: parts, clutter, tables of metadata, captions, patterns, and what ditlab wrote itself."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from helpers import posix_only
from PIL import Image, features
from rich.console import Console

from ditlab.config.sections import Preparation
from ditlab.core.errors import InputError
from ditlab.data import open_dataset, parse_source
from ditlab.data.export import folder_names
from ditlab.data.images import write_folder
from ditlab.data.parse import Builtin, ImageFiles
from ditlab.data.reading import LeftOut
from ditlab.data.sources import open_source
from ditlab.data.sources.files import readable
from ditlab.data.survey import survey


def save(path, value=0, size=(12, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 0)).save(path, **options)


def names(source):
    return [source.name(i) for i in range(len(source))]


def opened(path, **settings):
    return open_source(str(path), Preparation(**settings))


class TestKinds:
    def test_every_kind_of_image_is_read(self, tmp_path):
        kinds = {"a.jfif": "JPEG", "b.jpe": "JPEG", "c.tga": "TGA", "d.apng": "PNG", "e.JPG": "JPEG", "f.pbm": "PPM",
                 "g.dib": "DIB", "h.pcx": "PCX"}  # fmt: skip
        kinds |= {"i.avif": "AVIF"} if features.check("avif") else {}
        for name, kind in kinds.items():
            save(tmp_path / name, format=kind)
        source = opened(tmp_path)
        assert names(source) == sorted(kinds)
        assert [source.read(i).size for i in range(len(source))] == [(12, 8)] * len(kinds)
        assert source.reading.left_out == {}

    def test_other_files_are_counted(self, tmp_path):
        for i in range(3):
            save(tmp_path / "cat" / f"{i}.jpg")
        for name in ("0.dcm", "1.dcm", "a.heic", "b.HEIF", "c.jxl", "m.mp4", "s.tar.gz", "Makefile", "r.txt"):
            (tmp_path / "cat" / name).write_bytes(b"x")
        (tmp_path / "notes.pdf").write_bytes(b"x")
        assert opened(tmp_path).reading.left_out == {
            "not an image (.pdf)": LeftOut(1, "notes.pdf"),
            "not an image (.dcm)": LeftOut(2, "cat/0.dcm"),
            "not an image (no suffix)": LeftOut(1, "cat/Makefile"),
            "needs the package pillow-heif (.heic)": LeftOut(1, "cat/a.heic"),
            "needs the package pillow-heif (.heif)": LeftOut(1, "cat/b.HEIF"),
            "needs the package pillow-jxl-plugin (.jxl)": LeftOut(1, "cat/c.jxl"),
            "not an image (.mp4)": LeftOut(1, "cat/m.mp4"),
            "not an image (.tar.gz)": LeftOut(1, "cat/s.tar.gz"),
            "not an image (.txt)": LeftOut(1, "cat/r.txt"),
        }

    def test_a_folder_of_other_files_says_what_they_are(self, tmp_path):
        (tmp_path / "a.heic").write_bytes(b"x")
        with pytest.raises(
            InputError, match=r"no images in .* \(1 needs the package pillow-heif \(\.heic\): a\.heic\)"
        ):
            opened(tmp_path)

    def test_plug_ins_of_pillow_are_used(self, tmp_path, monkeypatch):
        (tmp_path / "pillow_heif.py").write_text(
            "from PIL import Image\ndef register_heif_opener():\n    Image.register_extension('HEIF', '.heic')\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(Image, "EXTENSION", dict(Image.EXTENSION))
        readable.cache_clear()
        try:
            assert ".heic" in readable()
            assert ".heif" not in readable()
        finally:
            readable.cache_clear()
            sys.modules.pop("pillow_heif", None)

    def test_arrays_are_listed(self, tmp_path):
        np.save(tmp_path / "a.npy", np.zeros((8, 8), np.uint8))
        assert names(opened(tmp_path)) == ["a.npy"]
        save(tmp_path / "a.png")
        np.save(tmp_path / "b.npy", np.zeros((8, 8), np.uint8))
        source = opened(tmp_path)
        assert names(source) == ["a.png", "b.npy"]
        assert source.reading.left_out == {"array beside an image of the same name": LeftOut(1, "a.npy")}


class TestClutter:
    def test_clutter_is_skipped_and_counted(self, tmp_path):
        save(tmp_path / "cat" / "1.png")
        for name in ("@eaDir", "__MACOSX", ".ipynb_checkpoints", ".thumbnails", "lost+found"):
            save(tmp_path / name / "1.png")
            save(tmp_path / "cat" / name / "1.png")
        for name in ("Thumbs.db", "._1.png", ".hidden.png", ".DS_Store"):
            (tmp_path / "cat" / name).write_bytes(b"x")
        source = opened(tmp_path)
        assert (names(source), source.classes) == (["cat/1.png"], ["cat"])
        assert source.reading.left_out == {
            "hidden": LeftOut(2 + 3 + 2, ".ipynb_checkpoints"),
            "system file or folder": LeftOut(3 + 1 + 3, "@eaDir"),
        }

    def test_a_flat_folder_with_clutter_is_flat(self, tmp_path):
        save(tmp_path / "1.png")
        save(tmp_path / "@eaDir" / "1.png")
        (tmp_path / "documents").mkdir()
        source = opened(tmp_path)
        assert (names(source), source.reading.conditions) == (["1.png"], "unconditional")
        assert source.reading.left_out["folder without images"] == LeftOut(1, "documents")

    def test_an_empty_class_is_dropped(self, tmp_path):
        for name in ("a", "c"):
            save(tmp_path / name / "1.png")
        (tmp_path / "b").mkdir()
        source = opened(tmp_path)
        assert (source.classes, source.labels.tolist()) == (["a", "c"], [0, 1])
        assert source.reading.conditions == "2 classes from folders"
        assert source.reading.left_out == {"folder without images": LeftOut(1, "b")}

    def test_a_folder_that_cannot_be_opened_is_counted(self, tmp_path, monkeypatch):
        save(tmp_path / "a" / "1.png")
        (tmp_path / "b").mkdir()
        scan = os.scandir
        monkeypatch.setattr(os, "scandir", lambda path: scan(path if str(path)[-2:] not in ("/b", "b/") else "missing"))
        source = opened(tmp_path)
        assert source.reading.left_out == {"cannot be opened": LeftOut(1, "b/")}

    def test_images_beside_class_folders(self, tmp_path):
        save(tmp_path / "a" / "1.png")
        save(tmp_path / "1.png")
        with pytest.raises(InputError, match=r"1\.png lies beside the class folders; move it into one of them"):
            opened(tmp_path)
        source = opened(tmp_path, label_column="none")
        assert (names(source), source.classes) == (["1.png", "a/1.png"], [])
        assert source.reading.notes == ["labels are ignored; class folders: 1"]

    def test_small_images_are_allowed_on_request(self, tmp_path):
        save(tmp_path / "1.png", size=(6, 5))
        with pytest.raises(InputError, match="the only image cannot be read"):
            open_dataset(str(tmp_path), Preparation(size="8", max_skipped=1)).fetch(torch.tensor([0]))
        dataset = open_dataset(str(tmp_path), Preparation(min_side=5))
        assert dataset.fetch(torch.tensor([0])).x.shape == (1, 3, 5, 6)
        assert survey(opened(tmp_path, min_side=5), Console(quiet=True)).sizes == {"5x6": 1}
        assert opened(tmp_path, min_side=5).read(0).size == (6, 5)


class TestSplits:
    @pytest.fixture
    def divided(self, tmp_path):
        for part, count in (("Train", 3), ("valid", 2), ("testing", 1)):
            for name in ("cat", "dog"):
                for i in range(count):
                    save(tmp_path / part / name / f"{i}.png")
        (tmp_path / "README.md").write_text("x")
        (tmp_path / "annotations").mkdir()
        return tmp_path

    def test_the_train_part_is_read(self, divided):
        source = opened(divided)
        assert (len(source), source.classes) == (6, ["cat", "dog"])
        assert source.reading.split == "Train (also there: testing, valid)"
        assert source.reading.conditions == "2 classes from folders"
        assert source.reading.left_out == {"not an image (.md)": LeftOut(1, "README.md")}

    @pytest.mark.parametrize(
        ("wanted", "count"), [("val", 4), ("validation", 4), ("valid", 4), ("test", 2), ("train", 6)]
    )
    def test_other_parts_are_read_on_request(self, divided, wanted, count):
        assert len(opened(divided, split=wanted)) == count

    def test_folders_of_these_names_can_be_classes(self, divided):
        source = opened(divided, split="none")
        assert (source.classes, source.reading.split) == (["Train", "testing", "valid"], "")

    def test_an_unknown_part(self, divided):
        with pytest.raises(InputError, match=r'unknown split of .*: "x"; choose from: Train, testing, valid'):
            opened(divided, split="x")
        save(divided / "dev" / "1.png")
        with pytest.raises(
            InputError, match=r'several parts of this kind in .*: "val"; choose from: Train, dev, testing'
        ):
            opened(divided, split="val")
        with pytest.raises(InputError, match=r'split is "val", but .*cat has no folders train and val; remove split'):
            opened(divided / "Train" / "cat", split="val")

    @pytest.mark.parametrize("others", [("cat",), (), ("cat", "val")])
    def test_other_folders_are_classes(self, tmp_path, others):
        for name in ("train", *others):
            save(tmp_path / name / "1.png")
        source = opened(tmp_path)
        assert (source.classes, source.reading.split) == (sorted({"train", *others}), "")

    def test_flat_parts_and_images_beside_them(self, tmp_path):
        for part in ("train", "test"):
            save(tmp_path / part / f"{part}.png")
        source = opened(tmp_path)
        assert (names(source), source.classes) == (["train.png"], [])
        save(tmp_path / "1.png")
        with pytest.raises(InputError, match=r"1\.png lies beside the folders test, train; move it into one of them"):
            opened(tmp_path)

    def test_a_part_is_the_held_out_set_of_the_other(self, divided):
        spec = parse_source(str(divided))
        assert spec.held_out() == ImageFiles(str(divided / "valid"))
        assert len(spec.held_out().images()) == 4
        for part in ("valid", "none"):
            assert parse_source(str(divided), Preparation(split=part)).held_out() is None
        assert parse_source(str(divided / "Train")).held_out() is None

    def test_a_table_lists_the_images_of_all_parts(self, tmp_path):
        for part in ("train", "val"):
            save(tmp_path / "data" / part / "1.png")
        table = tmp_path / "l.csv"
        table.write_text("file,label\ntrain/1.png,a\nval/1.png,b\n")
        settings = Preparation(labels=str(table))
        assert names(open_source(str(tmp_path / "data"), settings)) == ["train/1.png", "val/1.png"]
        assert parse_source(str(tmp_path / "data"), settings).held_out() is None
        table.write_text("file,label\n1.png,b\n")
        source = opened(tmp_path / "data", labels=str(table), split="val")
        assert (names(source), source.classes, source.reading.split) == (["1.png"], ["b"], "val (also there: train)")


class TestMetadata:
    def test_labels_and_captions_from_metadata(self, tmp_path):
        for i in range(3):
            save(tmp_path / "train" / "sub" / f"{i}.png")
            save(tmp_path / "test" / f"{i}.png")
        lines = [{"file_name": f"./sub/{i}.png", "label": "ab"[i % 2], "text": f"text\u2028{i}"} for i in range(3)]
        table = tmp_path / "train" / "metadata.jsonl"
        table.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
        source = opened(tmp_path)
        assert (source.classes, source.labels.tolist()) == (["a", "b"], [0, 1, 0])
        assert source.columns["caption"].values == ["text\u20280", "text\u20281", "text\u20282"]
        assert source.reading.conditions == "2 classes from column label of metadata.jsonl"
        assert source.reading.notes == [
            "metadata.jsonl has labels, so the folders are not classes (1); rename it to use the folders",
            "captions of 3 images from column text of metadata.jsonl",
        ]
        assert source.reading.left_out == {}

    def test_class_folders_stay_if_the_metadata_have_no_labels(self, tmp_path):
        for name in ("cat", "dog"):
            save(tmp_path / name / "1.png")
        (tmp_path / "metadata.csv").write_text("file_name,text,kind\ncat/1.png,a cat,x\ndog/1.png,,y\n")
        source = opened(tmp_path)
        assert (source.classes, source.columns["caption"].values) == (["cat", "dog"], ["a cat", ""])
        assert source.reading.notes == ["captions of 1 image from column text of metadata.csv"]
        assert opened(tmp_path, label_column="kind").classes == ["x", "y"]
        assert opened(tmp_path, caption_column="kind").columns["caption"].values == ["x", "y"]
        with pytest.raises(InputError, match=r'metadata\.csv has no label column "z" \(it has text, kind\)'):
            opened(tmp_path, label_column="z")

    def test_metadata_that_do_not_fit(self, tmp_path):
        for i in range(3):
            save(tmp_path / f"{i}.png")
        (tmp_path / "metadata.csv").write_text("file_name,label\n0.png,a\n9.png,a\n1.png,b\n")
        with pytest.raises(
            InputError, match=r'2\.png has no label \(1 without one\); correct .*, or set label_column to "none"'
        ):
            opened(tmp_path)
        assert opened(tmp_path, label_column="none").classes == []
        (tmp_path / "2.png").unlink()
        assert opened(tmp_path).reading.left_out == {"row of metadata.csv without an image": LeftOut(1, "9.png")}
        (tmp_path / "metadata.csv").unlink()
        with pytest.raises(InputError, match=r'label_column is "x", but .* has no metadata\.csv; correct or remove it'):
            opened(tmp_path, label_column="x")

    def test_a_table_about_something_else_is_counted(self, tmp_path):
        save(tmp_path / "1.png")
        (tmp_path / "metadata.csv").write_text("id,url\n1,x\n")
        source = opened(tmp_path)
        assert (source.classes, source.reading.notes) == ([], [])
        assert source.reading.left_out == {"table without a column of file names": LeftOut(1, "metadata.csv")}

    def test_text_files_beside_images_are_captions(self, tmp_path):
        for i in range(3):
            save(tmp_path / "cat" / f"{i}.v1.png")
        (tmp_path / "cat" / "0.v1.txt").write_text("\ufeffnull\n")
        (tmp_path / "cat" / "2.v1.TXT").write_text("grün", encoding="utf-8")
        (tmp_path / "cat" / "9.txt").write_text("x")
        source = opened(tmp_path)
        assert list(source.columns["caption"].values) == ["null", "", "grün"]
        assert source.reading.notes == ["captions from 2 text files beside the images"]
        assert source.reading.left_out == {"not an image (.txt)": LeftOut(1, "cat/9.txt")}
        without = opened(tmp_path, caption_column="none")
        assert list(without.columns) == ["label"]
        assert without.reading.notes == ["2 text files beside the images are not read"]


class TestPatterns:
    def test_images_by_pattern(self, tmp_path):
        for name in ("a/10.jpg", "a/9.jpg", "a/1.png", "b/1.jpg"):
            save(tmp_path / name)
        (tmp_path / "a" / "1.txt").write_text("x")
        source = open_source(f"{tmp_path}/a/*.jpg")
        assert (names(source), source.classes) == (["9.jpg", "10.jpg"], [])
        assert [source.read(i).size for i in range(2)] == [(12, 8)] * 2
        source = open_source(f"{tmp_path}/a/*")
        assert source.reading.left_out == {"not an image (.txt)": LeftOut(1, f"{tmp_path}/a/1.txt")}
        source = open_source(f"{tmp_path}/?/*.jpg")
        assert names(source) == ["a/9.jpg", "a/10.jpg", "b/1.jpg"]
        assert source.reading.notes == [
            "folders are not classes in a pattern; give their folder to read them as classes"
        ]
        assert names(open_source(f"{tmp_path}/a/{{09..10}}.jpg".replace("09", "9"))) == ["9.jpg", "10.jpg"]
        assert isinstance(parse_source(f"{tmp_path}/a/*.jpg"), ImageFiles)

    def test_patterns_that_match_nothing_useful(self, tmp_path):
        save(tmp_path / "a" / "1.jpg")
        for pattern, problem in (("*", "only folders match"), ("x*", "no file matches")):
            with pytest.raises(
                InputError, match=f"{problem} .*; give a pattern of image files, or the folder that holds"
            ):
                open_source(f"{tmp_path}/{pattern}")

    def test_a_folder_may_have_such_a_name(self, tmp_path):
        save(tmp_path / "[a]{1,2}*" / "1.jpg")
        assert names(open_source(f"{tmp_path}/[a]{{1,2}}*")) == ["1.jpg"]


class TestOutputs:
    """What ditlab wrote is not read as images of the source in whose folder it lies."""

    @pytest.mark.parametrize(
        "files",
        [
            ("recipe.toml", "metrics.jsonl", "previews/1.png"),
            ("recipe.toml", ".lock", "previews/1.png"),
            ("config.json", "autoencoder.safetensors", "reconstructions.png"),
            ("settings.json", "training.pt", "reconstructions.png"),
            ("settings.json", "grid.png", "any-seed0.png"),
            ("study.json", "results.jsonl", "plots/1.png"),
            ("description.json", "index.json", "1.png"),
        ],
    )
    def test_outputs_in_the_source(self, tmp_path, files):
        save(tmp_path / "1.png")
        folder = tmp_path / "out" / "x"
        folder.mkdir(parents=True)
        for name in files:
            save(folder / name) if name.endswith("png") else (folder / name).write_text("{}")
        source = opened(tmp_path)
        assert (names(source), source.classes) == (["1.png"], [])
        assert source.reading.left_out == {"written by ditlab": LeftOut(1, "out/x")}

    def test_generated_images_are_read_on_request(self, tmp_path):
        for name in ("a-seed0.png", "a-seed1.png", "grid.png"):
            save(tmp_path / name)
        (tmp_path / "settings.json").write_text("{}")
        source = opened(tmp_path)
        assert names(source) == ["a-seed0.png", "a-seed1.png"]
        assert source.reading.left_out["written by ditlab"] == LeftOut(1, "grid.png")

    def test_a_run_is_no_source(self, tmp_path):
        save(tmp_path / "previews" / "1.png")
        for name in ("recipe.toml", "metrics.jsonl"):
            (tmp_path / name).write_text("")
        with pytest.raises(InputError, match="was written by ditlab and is no folder of images; give the folder of"):
            opened(tmp_path)
        assert len(opened(tmp_path / "previews")) == 1
        save(tmp_path / "reconstructions.png")
        with pytest.raises(InputError, match="was written by ditlab and is no folder of images"):
            opened(tmp_path)

    def test_a_built_in_data_set_goes_before_such_a_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "digits").mkdir()
        assert isinstance(parse_source("digits"), Builtin)
        (tmp_path / "digits" / ".lock").write_text("process 1")
        assert isinstance(parse_source("digits"), Builtin)
        for name in ("recipe.toml", "metrics.jsonl"):
            (tmp_path / "digits" / name).write_text("")
        save(tmp_path / "digits" / "previews" / "1.png")
        assert isinstance(parse_source("digits"), Builtin)
        save(tmp_path / "glyphs-16" / "1.png")
        source = parse_source("glyphs-16").images()
        assert source.reading.notes == ["the folder glyphs-16 is read, and not the built-in data set of this name"]


class TestExport:
    @pytest.mark.parametrize(
        ("names", "folders"),
        [
            (["cat", "große Katze", "犬"], ["cat", "große Katze", "犬"]),
            (["a/b", "a\\b", "a_b"], ["a_b", "a_b_2", "a_b_3"]),
            (["..", ".", "", ".hidden"], ["_", "__2", "__3", "_hidden"]),
            (["A", "a"], ["A", "a_2"]),
            (["x\x00y", "con", "end. ", "\ud800"], ["x_y", "_con", "end", "_"]),
            (["é" * 300], ["é" * 100]),
        ],
    )
    def test_class_names_become_folder_names(self, names, folders):
        assert folder_names(names) == folders

    def test_classes_stay_apart(self, tmp_path):
        for i in range(3):
            save(tmp_path / "data" / f"{i}.png", i)
        table = tmp_path / "l.jsonl"
        table.write_text("".join(json.dumps({"file": f"{i}.png", "label": name}) + "\n"
                                 for i, name in enumerate(("../up", "a/b", "x" * 400))))  # fmt: skip
        dataset = open_dataset(str(tmp_path / "data"), Preparation(labels=str(table)))
        write_folder(dataset, tmp_path / "out", 3)
        assert len(list((tmp_path / "out").rglob("*.png"))) == 3
        source = opened(tmp_path / "out")
        assert sorted(source.classes) == ["_-up".replace("-", "_"), "a_b", "x" * 200]
        assert not (tmp_path / "up").exists()

    def test_a_flat_folder(self, tmp_path):
        for i in range(3):
            save(tmp_path / "flat" / f"{i}.png", i)
            (tmp_path / "flat" / f"{i}.txt").write_text("caption")
        write_folder(open_dataset(str(tmp_path / "flat")), tmp_path / "out", 2)
        assert names(opened(tmp_path / "out")) == ["000000.png", "000001.png"]


@posix_only
def test_a_pipe_is_not_waited_for(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "0.png")
    (tmp_path / "link.png").symlink_to("0.png")
    (tmp_path / "dead.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    left_out = {"not a regular file, such as a pipe or a device": 1}
    for text in (str(tmp_path), f"{tmp_path}/*.png"):
        source = open_source(text)
        assert sorted(source.name(i) for i in range(len(source))) == ["0.png", "dead.png", "link.png"]
        assert {reason: left.count for reason, left in source.reading.left_out.items()} == left_out
