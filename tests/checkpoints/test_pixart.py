"""PixArt against published numbers, in both published layouts."""

import json
from pathlib import Path

import pytest
import torch
from helpers import relative
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.backbones import create
from ditlab.checkpoints import convert
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.diffusion.process import DDPM
from ditlab.inference.pipeline import Pipeline

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(params=["pixart", "pixart_ms"])
def model(request, tmp_path):
    """A folder as diffusers writes it, its vectors and its weights."""
    file = GOLDEN / f"{request.param}.safetensors"
    with safe_open(file, framework="pt") as opened:
        config = {
            key: json.loads(value) for key, value in opened.metadata().items() if key not in ("class", "diffusers")
        }
    vectors = load_file(file)
    state = {key.removeprefix("state."): value for key, value in vectors.items() if key.startswith("state.")}
    folder = tmp_path / "theirs" / "transformer"
    folder.mkdir(parents=True)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    config |= {"_class_name": "PixArtTransformer2DModel", "norm_type": "ada_norm_single"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder.parent, vectors, state


def check(pipe, vectors):
    """Compare the network with the published numbers."""
    text = {"tokens": vectors["context"], "resolution": vectors.get("resolution")}
    with torch.no_grad():
        out = pipe.net(vectors["x"], vectors["t"], ditlab.Condition(**text, mask=vectors["mask"].bool()))
        assert relative(out, vectors["out"]) < 1e-5
        assert relative(pipe.net(vectors["x"], vectors["t"], ditlab.Condition(**text)), vectors["out_no_mask"]) < 1e-5


def test_published_numbers_through_every_layout(model, tmp_path):
    folder, vectors, state = model
    pipe = ditlab.load(folder, size=(8, 12))
    assert pipe.net.config["name"] == "PixArt"
    assert (pipe.objective.process, pipe.objective.target, pipe.objective.learn_variance) == (DDPM(), "eps", True)
    check(pipe, vectors)
    convert(pipe, tmp_path / "official.pt", "official")
    official = ditlab.load(tmp_path / "official.pt", heads=3, size=(8, 12), position_grid=8)
    check(official, vectors)
    convert(official, tmp_path / "own", "ditlab")
    check(ditlab.load(tmp_path / "own"), vectors)
    convert(ditlab.load(folder), tmp_path / "again", "diffusers")
    again = load_file(tmp_path / "again" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    check(ditlab.load(tmp_path / "again", size=(8, 12)), vectors)


def test_written_folders_are_read_by_diffusers(model, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    folder, vectors, _ = model
    pipe = ditlab.load(folder)
    convert(pipe, tmp_path / "out", "diffusers")
    other = diffusers.PixArtTransformer2DModel.from_pretrained(tmp_path / "out" / "transformer")
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(3, 4, 16, 16, generator=generator), vectors["t"]
    mask, sizes = (
        vectors["mask"],
        {"resolution": vectors.get("resolution"), "aspect_ratio": vectors.get("aspect_ratio")},
    )
    text = ditlab.Condition(tokens=vectors["context"], mask=mask.bool(), resolution=sizes["resolution"])
    with torch.no_grad():
        out = other(x, vectors["context"], t, sizes, encoder_attention_mask=mask).sample
        assert relative(pipe.net(x, t, text), out) < 1e-5


def official(**options):
    """A small PixArt, its file in the official layout, and its state dict."""
    sizes = {"size": 8, "channels": 4, "depth": 2, "width": 24, "heads": 2, "patch": 2}
    torch.manual_seed(0)
    net = create("PixArt", **sizes | {"text_length": 3, "text_width": 5, "null_caption": True} | options)
    with torch.no_grad():
        for value in (*net.parameters(), net.y_embedder.y_embedding):
            value.add_(0.1 * torch.randn_like(value))
    return net


def test_official_files_are_written_as_they_were_read(tmp_path):
    net = official(position_grid=4, interpolation=2.0)
    state = net.state_dict()
    assert {"pos_embed", "y_embedder.y_embedding", "t_block.1.weight"} <= state.keys()
    torch.save({"state_dict": state}, tmp_path / "theirs.pth")
    pipe = ditlab.load(tmp_path / "theirs.pth", heads=2)
    assert pipe.net.config == net.config | {"resolution": 0}
    convert(pipe, tmp_path / "again.pth", "official")
    again = torch.load(tmp_path / "again.pth")
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    larger = ditlab.load(tmp_path / "theirs.pth", heads=2, size=(8, 16)).net
    expected = create(**net.config | {"size": (8, 16)}).pos_embed
    assert torch.allclose(larger.pos_embed, expected)
    assert not torch.equal(larger.pos_embed[:, :8], net.pos_embed[:, :8])


def test_the_average_of_a_training_checkpoint_is_read(tmp_path):
    first, second = official().state_dict(), official(patch=2, depth=2).state_dict()
    second["final_layer.linear.bias"] = second["final_layer.linear.bias"] + 1
    torch.save({"state_dict": first, "state_dict_ema": second, "epoch": 1}, tmp_path / "a.pth")
    for weights, state in (("ema", second), ("model", first)):
        net = ditlab.load(tmp_path / "a.pth", heads=2, weights=weights).net
        assert torch.equal(net.final_layer.linear.bias, state["final_layer.linear.bias"])


def test_the_published_size():
    with torch.device("meta"):
        for name, parameters in (("PixArt-XL/2", 610_856_096), ("PixArt-XL/2-MS", 611_349_152)):
            net = create(name)
            assert sum(value.numel() for value in net.parameters()) == parameters
            assert (net.classes, net.text.length, net.text.width) == (0, 120, 4096)


def test_models_that_the_layouts_lack_are_reported_in_one_line(tmp_path):
    sizes = {"channels": 4, "depth": 2, "width": 24, "heads": 2, "patch": 2, "text_length": 3}
    eps = Objective(DDPM(), "eps", learn_variance=True)
    words = Pipeline(create("PixArt", size=8, vocabulary=9, **sizes), eps)
    with pytest.raises(InputError, match="has vocabulary = False only, and this model 9; convert to ditlab instead"):
        convert(words, tmp_path / "a.pt", "official")
    wide = Pipeline(create("PixArt", size=(8, 16), text_width=5, **sizes), eps)
    with pytest.raises(InputError, match="size 8x16 is not square, and diffusers stretches"):
        convert(wide, tmp_path / "a", "diffusers")
    with pytest.raises(InputError, match=r"y_embedder.q is no key of a PixArt"):
        type(words.net).from_diffusers(
            {"y_embedder.q": torch.zeros(1)}, {"sample_size": 8, "patch_size": 2, "num_attention_heads": 2}
        )
