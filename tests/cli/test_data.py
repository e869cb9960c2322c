import json

import pytest
from PIL import Image


def test_a_built_in_data_set_is_inspected(ditlab, tmp_path):
    out = ditlab("data", "digits-held-out", "--sheet", tmp_path / "s.png").out
    for text in ("360 images", "8 / 8 / 8", "duplicates", "short side, min / median / max"):
        assert text in out
    assert Image.open(tmp_path / "s.png").size[0] > 100
    values = json.loads(ditlab("data", "digits-held-out", "--json").out)
    assert (values["images"], values["sizes"], len(values["classes"])) == (360, {"8x8": 360}, 10)


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
    ditlab("train-autoencoder", folder, "--out", tmp_path / "ae", "--size=16", option, *small)
    config = json.loads((tmp_path / "ae" / "config.json").read_text())
    assert config["picture_channels"] == 1
