import json

import numpy as np
import pytest
from PIL import Image

from ditlab.cli.data import as_options
from ditlab.config.sections import Preparation
from ditlab.config.values import check_folder_name


def test_a_built_in_data_set_is_inspected(ditlab, tmp_path):
    out = ditlab("data", "digits-held-out", "--sheet", tmp_path / "s.png").out
    for text in ("360 images", "8 / 8 / 8", "duplicates", "short side, min / median / max"):
        assert text in out
    assert Image.open(tmp_path / "s.png").size[0] > 100
    values = json.loads(ditlab("data", "digits-held-out", "--json").out)
    assert (values["images"], values["sizes"], len(values["classes"])) == (360, {"8x8": 360}, 10)


@pytest.mark.slow
def test_what_cannot_be_inspected_is_one_line(ditlab, tmp_path):
    assert "give glyphs-SIZE, such as glyphs-32" in ditlab("data", "glyphs", code=2).err
    assert ditlab("train", "digits", "--data.source", "glyphs", "--out", tmp_path / "run", code=2).err == (
        'ditlab: data "glyphs" has no size; give glyphs-SIZE, such as glyphs-32\n'
    )
    assert 'no data "glyps"; give an existing folder of images, or did you mean' in ditlab("data", "glyps", code=2).err


@pytest.mark.parametrize("option", ["--gray", "--grey"])
def test_gray_in_both_spellings(ditlab, tmp_path, option):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(folder / f"{i}.png")
    small = ["--stride=2", "--width=8", "--depth=1", "--images=8", "--batch=4", "--held-out=0.5"]
    small += ["--latent-channels=2", "--device=cpu"]
    shown = ditlab("train-autoencoder", folder, "--out", tmp_path / "ae", "--size=16", option, *small).err
    proposed = f"encode {folder} --size=16 --gray --autoencoder {tmp_path / 'ae'} --out cache"
    assert shown.endswith(f" {proposed}\n")
    config = json.loads((tmp_path / "ae" / "config.json").read_text())
    assert config["picture_channels"] == 1


def test_proposed_commands_read_images_in_the_same_way():
    assert as_options(Preparation()) == ""
    settings = Preparation(size="16x24", range="-50,100", show=(3, 1), max_skipped=0.5, label_column="my label")
    assert (
        as_options(settings) == " --size=16x24 --range=-50,100 --show 3 1 --label-column='my label' --max-skipped=0.5"
    )


def save_images(folder, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(folder / f"{i}.png")


def reading(ditlab, *arguments):
    values = json.loads(ditlab("data", *arguments, "--json").out)
    return values["images"], values["reading"]


@pytest.mark.slow
def test_what_was_read_and_left_out_is_printed(ditlab, tmp_path):
    for name in ("train/cat", "train/dog", "val/cat"):
        save_images(tmp_path / name)
    (tmp_path / "train" / "cat" / "1.dcm").write_bytes(b"")
    assert reading(ditlab, tmp_path) == (
        8,
        {
            "conditions": "2 classes from folders",
            "split": "train (also there: val)",
            "notes": [],
            "left_out": {"not an image (.dcm)": {"count": 1, "example": "cat/1.dcm"}},
        },
    )
    out = ditlab("data", tmp_path).out
    for text in ("2 classes from folders", "train (also there: val)", "not an image (.dcm)", "cat/1.dcm"):
        assert text in out
    assert reading(ditlab, tmp_path, "--split=val", "--label-column=none")[0] == 4
    assert reading(ditlab, "digits")[1]["conditions"] == "10 classes from the data set"


def test_the_settings_are_those_of_training(ditlab, tmp_path):
    save_images(tmp_path / "images")
    options = ("--size=32x24", "--fit=letterbox", "--gray", "--min-side=4", "--flip")
    assert json.loads(ditlab("data", tmp_path / "images", *options, "--json").out)["enlarged"] == 4
    ditlab("data", tmp_path / "images", *options, "--sheet", tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == (4 + 4 * (48 + 4), 4 + 64 + 4)
    ditlab("data", tmp_path / "images", "--size=8", "--export", tmp_path / "out", "--count=2")
    assert [Image.open(file).size for file in (tmp_path / "out").iterdir()] == [(8, 8)] * 2
    error = ditlab("data", tmp_path / "images", "--image-column=x", code=2).err
    assert 'image_column is "x", which has no effect on' in error


def test_nothing_is_written_into_the_source(ditlab, tmp_path):
    save_images(tmp_path / "images")
    for option, what in (("--sheet", "the contact sheet"), ("--export", "the exported images")):
        error = ditlab("data", tmp_path / "images", option, tmp_path / "images" / "new", code=2).err
        assert f"images, so {what} would become part of it; give a path outside" in error
    for options, message in (
        (("--export", tmp_path), "is not empty; give another --export"),
        (("--export", tmp_path / "out", "--count=0"), "count is 0; give 1 or more"),
        (("--export", tmp_path / "out", "--count=-1"), "count is -1; give 1 or more"),
    ):
        assert message in ditlab("data", tmp_path / "images", *options, code=2).err
    assert not (tmp_path / "out").exists()
    error = ditlab("encode", "x", "--autoencoder=y", "--out=./x", code=2).err
    assert error == "ditlab: x is the source and the output; give another --out\n"


@pytest.mark.slow
def test_the_output_of_a_command_is_not_its_input(ditlab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path, 8)
    small = ["--model.width=32", "--model.depth=1", "--model.heads=1", "--train.batch=4", "--train.device=cpu"]
    small += ["--train.precision=float32", "--train.compile=never", "--train.preview-every=4"]
    mine = ["--data.source=.", "--data.size=8", "--sample.guidance=1", "--out=runs/x"]
    left_out = {"written by ditlab": {"count": 1, "example": "runs/x"}}
    for images in (4, 8):  # the second command resumes in a folder that lies in its source
        ditlab("train", "digits", *mine, f"--train.images={images}", *small)
        assert reading(ditlab, ".") == (
            8, {"conditions": "unconditional", "split": "", "notes": [], "left_out": left_out},
        )  # fmt: skip
    for images in (4, 8):  # the lock makes the folder before the data are opened
        ditlab("train", "digits", "--out=digits", f"--train.images={images}", *small)


@pytest.mark.slow
def test_an_autoencoder_in_a_folder_with_the_name_of_its_data(ditlab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--stride=2", "--width=8", "--depth=1", "--images=4", "--batch=4", "--latent-channels=2", "--device=cpu"]
    for _ in range(2):
        done = ditlab("train-autoencoder", "digits-held-out", "--out=digits-held-out", *small).err
        assert "on 18 held-out images" in done


@pytest.mark.slow
def test_nothing_is_written_where_a_pattern_matches(ditlab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "a" / "0.png")
    for pattern in ("*/*.png", "{a,b}/*", "./a/*.png"):
        assert ditlab("data", pattern, "--sheet", "a/sheet.png", code=2).err == (
            f"ditlab: a/sheet.png matches {pattern}, so the contact sheet would become part of it; give another path\n"
        )
        assert "a matches" in ditlab("data", pattern, "--export", "a", code=2).err
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["0.png"]
    ditlab("data", "a/*.png", "--sheet", "sheet.png")
    ditlab("data", "a/*.png", "--export", "out")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sample", "model", "--out", "s13.npz"),
         "s13.npz is named like a file, but a folder is written; give s13, with --npz for one .npz file in it"),
        (("sample", "model", "--out", "a/x.npy"),
         "a/x.npy is named like a file, but a folder is written; give a/x, with --format npy for .npy files in it"),
        (("sample", "model", "--out", "x.png"), "x.png is named like a file, but a folder is written; give x"),
        (("encode", "digits", "--autoencoder", "a", "--out", "c.safetensors"),
         "Invalid value for --out: c.safetensors is named like a file, but a folder is written; give c"),
        (("data", "digits", "--export", "x.PNG"),
         "Invalid value for --export: x.PNG is named like a file, but a folder is written; give x"),
        (("train", "digits", "--out", "run.pt"),
         "Invalid value for --out: run.pt is named like a file, but a folder is written; give run"),
        (("convert", "model", "b.pt", "--to", "diffusers"),
         "b.pt is named like a file, but a folder is written; give b"),
    ],
)  # fmt: skip
def test_a_folder_that_is_named_like_a_file(ditlab, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert ditlab(*arguments, code=2).err == f"ditlab: {line}\n"
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_exists_may_have_any_name(tmp_path):
    (tmp_path / "run.png").mkdir()
    for name in ("run.png", "run.v2", "dit-s.2"):
        assert check_folder_name(tmp_path / name) == tmp_path / name


def test_a_range_and_channels_are_settings_of_sample_files_too(ditlab, tmp_path):
    """The contact sheet shows channel 3, in which images have the numbers 0, 50 and 100, from 0 to 100."""
    bands = np.full((3, 8, 9, 4), 7, np.int16)
    bands[..., 2] = np.array([0, 50, 100])[:, None, None]
    np.savez(tmp_path / "x.npz", bands)
    (tmp_path / "bands").mkdir()
    for i, image in enumerate(bands):
        np.save(tmp_path / "bands" / f"{i}.npy", image)
    for source in ("x.npz", "bands"):
        sheet = tmp_path / f"{source}.png"
        ditlab("data", tmp_path / source, "--range", "0,100", "--show", 3, "--size", "8x9", "--sheet", sheet)
        colors = {color for _, color in Image.open(sheet).convert("RGB").getcolors(1 << 20)}
        assert {(0, 0, 0), (128, 128, 128), (255, 255, 255)} <= colors
        line = "show is 5; give one or three channels from 1 to 4" if source == "x.npz" else "shown channels 5; give"
        assert line in ditlab("data", tmp_path / source, "--show", 5, "--sheet", sheet, code=2).err


def test_images_that_cannot_be_read_are_left_out_of_an_export(ditlab, tmp_path):
    for name, shades in {"a": (10, 20, 30), "b": (110, 120, 130)}.items():
        (tmp_path / "images" / name).mkdir(parents=True)
        for shade in shades:
            Image.new("L", (8, 8), shade).save(tmp_path / "images" / name / f"{shade}.png")
    broken = tmp_path / "images" / "a" / "30.png"  # the next image has another class
    broken.write_bytes(broken.read_bytes()[:50])
    out = tmp_path / "out"
    shown = ditlab("data", tmp_path / "images", "--export", out).err
    assert shown.startswith(f"data: {tmp_path / 'images'}: 6 images of 8x8 pixels, gray, uint8, 0..255\n")
    assert shown.endswith(f"wrote 5 images to {out}; 1 image could not be read\n")
    pixels = {str(path.relative_to(out)): Image.open(path).getpixel((0, 0)) for path in sorted(out.rglob("*.png"))}
    assert pixels == {
        "a/000000.png": 10, "a/000001.png": 20, "b/000002.png": 110, "b/000003.png": 120, "b/000004.png": 130
    }  # fmt: skip


def test_an_export_that_fails_leaves_nothing(ditlab, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(4):
        file = tmp_path / "images" / f"{i}.png"
        Image.new("L", (8, 8), i).save(file)
        if i:
            file.write_bytes(file.read_bytes()[:50])
    assert "images cannot be read" in ditlab("data", tmp_path / "images", "--export", tmp_path / "out", code=2).err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_reference_reports_images_that_cannot_be_read(ditlab, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.new("L", (8, 8), 40 * i).save(tmp_path / "images" / f"{i}.png")
    broken = tmp_path / "images" / "3.png"
    broken.write_bytes(broken.read_bytes()[:50])
    out = tmp_path / "reference.npz"
    shown = ditlab("reference", tmp_path / "images", "--features", "digits", "--keep", 2, "--out", out).err
    assert shown.endswith(
        f"5 images in the features digits: {out}; 1 image could not be read: {tmp_path / 'reference.skipped.csv'}\n"
    )
