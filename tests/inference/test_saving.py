import json
import os
import shutil

import pytest
import torch
from helpers import posix_only, tiny_pipeline
from PIL import Image

import ditlab
from ditlab.autoencoders import create_autoencoder
from ditlab.autoencoders.io import save_autoencoder
from ditlab.config.sections import Recipe
from ditlab.core import io, weights
from ditlab.core.errors import InputError
from ditlab.core.io import held, replacing
from ditlab.evaluation.memorization import check_target as check_memorization
from ditlab.evaluation.references import check_target as check_reference
from ditlab.inference.tune import check_target as check_schedules
from ditlab.report.sheets import check_sheet, save_sheet


def changed():
    pipe = tiny_pipeline()
    with torch.no_grad():
        next(pipe.net.parameters()).add_(1)
    return pipe


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_model_is_replaced_on_request_only(tmp_path):
    folder = tiny_pipeline().save(tmp_path / "model")
    before = contents(folder)
    with pytest.raises(InputError) as caught:
        changed().save(folder)
    assert str(caught.value) == (
        f"{folder} holds a model; give another folder, or set overwrite=True to replace the model"
    )
    assert contents(folder) == before
    assert changed().save(folder, overwrite=True) == folder
    assert contents(folder)["model.safetensors"] != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_replaced_model_leaves_no_file_of_the_earlier_one(tmp_path):
    autoencoder = create_autoencoder(kind="patch", picture_channels=3, latent_channels=1, stride=2, width=8, depth=1)
    with_autoencoder = tiny_pipeline()
    with_autoencoder.autoencoder = autoencoder
    folder = with_autoencoder.save(tmp_path / "model")
    assert (folder / "autoencoder.safetensors").exists()
    tiny_pipeline().save(folder, overwrite=True)
    names = ["README.md", "config.json", "manifest.json", "model.safetensors", "model_index.json", "pipeline.py"]
    assert sorted(contents(folder)) == names


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_content_is_left_alone(tmp_path, overwrite):
    def refused(folder, words):
        with pytest.raises(InputError, match=words) as caught:
            tiny_pipeline().save(folder, overwrite=overwrite)
        assert "\n" not in str(caught.value)

    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "cat.jpg").write_text("a cat")
    refused(photos, r"holds other files \(cat.jpg\), which would be lost; give another folder")
    (tmp_path / "file").write_text("text")
    refused(tmp_path / "file", "is a file; give a folder")
    refused(tmp_path / ("x" * 300), "^cannot write .*: File name too long; free some space or give another path$")
    model = tiny_pipeline().save(tmp_path / "model")
    (model / "evaluations").mkdir()
    refused(model, r"holds other files \(evaluations\), which would be lost")
    checkpoint = tiny_pipeline().save(tmp_path / "checkpoint")
    (checkpoint / "state.pt").write_text("moments")
    refused(checkpoint, r"holds other files \(state.pt\)")
    third_party = tmp_path / "third-party"
    third_party.mkdir()
    (third_party / "model.safetensors").write_text("weights")
    refused(third_party, "no model at")
    (third_party / "config.json").write_text('{"_class_name": "DiTTransformer2DModel"}')
    refused(third_party, "was not written by ditlab")
    with held(tmp_path / "busy"):
        refused(tmp_path / "busy", "is in use by another process; give another folder")
    assert (photos / "cat.jpg").read_text() == "a cat"
    assert (third_party / "model.safetensors").read_text() == "weights"


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is the current folder, which cannot be replaced; give a folder in it"):
        tiny_pipeline().save(".")


@posix_only
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    tiny_pipeline().save(tmp_path / "link")
    tiny_pipeline().save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert ditlab.load(tmp_path / "disk").classes == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("step", ["write_tensors", "replace", "second replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_earlier_model_whole(tmp_path, monkeypatch, step, error):
    folder = tiny_pipeline().save(tmp_path / "model")
    before = contents(folder)
    real, calls = os.replace, []

    def fail(*arguments, **options):
        raise error

    def replace(source, target):
        if "model.safetensors" not in str(source):  # the folders: first the old one, then the new one
            calls.append(target)
            if len(calls) == (1 if step == "replace" else 2):
                fail()
        real(source, target)

    if step == "write_tensors":
        monkeypatch.setattr(weights, "save_file", fail)
    else:
        monkeypatch.setattr(io.os, "replace", replace)
    expected = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        changed().save(folder, overwrite=True)
    if expected is InputError:
        assert str(caught.value) == (
            f"cannot write {folder}: No space left on device; free some space or give another path"
        )
    monkeypatch.undo()
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_process_that_was_killed_between_the_two_renames(tmp_path, monkeypatch):
    folder = tiny_pipeline().save(tmp_path / "model")
    before = contents(folder)
    os.replace(folder, aside := tmp_path / ".model.123-456.old.part")
    with pytest.raises(InputError) as caught:
        ditlab.load(folder)
    assert str(caught.value) == f"saving {folder} was interrupted; rename {aside}, the earlier model, to it"
    with pytest.raises(InputError, match="holds a model; give another folder, or set overwrite=True"):
        changed().save(folder)
    assert contents(folder) == before
    changed().save(folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_replacing_takes_files_and_folders(tmp_path):
    for name, write in (("file", lambda draft: draft.write_text("a")), ("folder", lambda draft: draft.mkdir())):
        with replacing(tmp_path / "parent" / name) as draft:
            write(draft)
            assert not (tmp_path / "parent" / name).exists()
        assert (tmp_path / "parent" / name).exists()
    with pytest.raises(OSError, match="directory"), replacing(tmp_path / "parent" / "folder") as draft:
        draft.write_text("a file does not replace a folder")
    assert sorted(path.name for path in (tmp_path / "parent").iterdir()) == ["file", "folder"]


def test_a_recipe_is_replaced_on_request_only(tmp_path):
    file = Recipe().save(tmp_path / "mine.toml")
    with pytest.raises(InputError) as caught:
        Recipe().save(file)
    assert str(caught.value) == f"{file} exists; give another name, or set overwrite=True to replace the file"
    Recipe().override({"train": {"images": 64}}).save(file, overwrite=True)
    assert Recipe.load(file).train.images == 64


def test_an_autoencoder_does_not_replace_another_model(tmp_path):
    autoencoder = create_autoencoder(kind="patch", picture_channels=3, latent_channels=1, stride=2, width=8, depth=1)
    folder = tiny_pipeline().save(tmp_path / "model")
    before = contents(folder)
    with pytest.raises(InputError, match="holds another model; give another folder for the autoencoder"):
        save_autoencoder(autoencoder, folder)
    assert contents(folder) == before
    save_autoencoder(autoencoder, save_autoencoder(autoencoder, tmp_path / "autoencoder"))


@pytest.mark.parametrize(
    ("check", "name", "words"),
    [
        (check_sheet, "a.png", "a.png exists and is no contact sheet of ditlab; give another name"),
        (check_memorization, "a.png", "a.png exists and is no contact sheet of ditlab; give another name"),
        (check_memorization, "b.png", "b.json exists and holds no result of this test; give another name"),
        (check_reference, "c.npz", "c.npz exists and is no reference of ditlab; give another name"),
        (check_schedules, "b.json", "b.json exists and holds no schedules; give another name"),
    ],
)
def test_files_of_others_are_not_replaced(tmp_path, check, name, words):
    import numpy as np

    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "b.json").write_text('{"a": 1}')
    np.savez(tmp_path / "c.npz", arr_0=np.zeros(2))
    with pytest.raises(InputError, match=words):
        check(tmp_path / name)


def test_own_files_are_replaced(tmp_path):
    check_sheet(tmp_path / "a.png")
    for _ in range(2):
        save_sheet(Image.new("L", (8, 8)), tmp_path / "a.png")
        check_sheet(tmp_path / "a.png")
    (tmp_path / "b.json").write_text(json.dumps({"grids": {}}))
    check_schedules(tmp_path / "b.json")
    shutil.copy(tmp_path / "a.png", tmp_path / "c.png")
    (tmp_path / "c.json").write_text(json.dumps({"protocol": {}}))
    check_memorization(tmp_path / "c.png")
    (tmp_path / "c.json").write_text("{damaged")
    check_memorization(tmp_path / "c.png")
    (tmp_path / "c.png").unlink()
    with pytest.raises(InputError, match=r"c\.json exists and holds no result"):
        check_memorization(tmp_path / "c.png")


def test_names_in_the_model_card_show_as_they_are(tmp_path):
    pipe = tiny_pipeline()
    pipe.classes = ["a\n---\n# b", "`|<script>alert(1)</script>", "\x1b[2J**\u2028"]
    pipe.config["note"] = "\n\n<img src=x onerror=y> [a](javascript:b)"
    pipe.config["license"] = "mit\n---\n<b>"
    folder = pipe.save(tmp_path / "m_{x}`")
    card = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    assert card[3:6] == ['license: "mit\\n---\\n<b>"', "---", "# m\\_{x}\\`"]
    classes = "a\\\\n---\\\\n\\# b, \\`\\|&lt;script&gt;alert(1)&lt;/script&gt;, \\\\x1b\\[2J\\*\\*\\\\u2028"
    assert f"- network: DiT-S/2, input 1x8x8, 3 classes ({classes})" in card
    assert "- note: \\\\n\\\\n&lt;img src=x onerror=y&gt; \\[a\\](javascript:b)" in card
    assert "pipe('a\\n---\\n# b', seeds=range(4)).images" in card
    assert card.count("---") == 2
