"""Latte against published numbers, in both published layouts, and at other sizes."""

import json
from pathlib import Path

import pytest
import torch
from helpers import inputs, perturbed, relative
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import ditlab
from ditlab.backbones import create, find
from ditlab.checkpoints import convert
from ditlab.core.errors import InputError
from ditlab.evaluation import measure

GOLDEN = Path(__file__).parent.parent / "golden"
TINY = {"size": (3, 8, 8), "channels": 2, "learn_variance": False, "depth": 4, "width": 32, "heads": 2, "patch": 2}


def read(name):
    """The vectors of a file, its state dict, and its constructor arguments."""
    file = GOLDEN / f"{name}.safetensors"
    with safe_open(file, framework="pt") as opened:
        meta = {key: json.loads(value) for key, value in opened.metadata().items() if not key.startswith("_")}
    vectors = load_file(file)
    return vectors, {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}, meta


def same(state, file):
    """Whether a written file has the same tensors, bit for bit."""
    again = torch.load(file) if file.suffix == ".pt" else load_file(file)
    return again.keys() == state.keys() and all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["latte_class", "latte_uncond_nosigma"])
def test_published_numbers_through_the_official_layout(name, tmp_path):
    vectors, state, meta = read(name)
    torch.save({"ema": state, "model": {}}, tmp_path / "theirs.pt")
    pipe = ditlab.load(tmp_path / "theirs.pt", heads=meta["num_heads"])
    assert pipe.net.config["name"] == "Latte"
    assert (pipe.net.size, pipe.net.classes) == ((meta["num_frames"], 8, 8), 10 if name == "latte_class" else 0)
    x, t = vectors["x"].transpose(1, 2), vectors["t"]
    labels = vectors.get("y", torch.zeros(len(t), dtype=torch.long))
    with torch.no_grad():
        assert relative(pipe.net(x, t, labels), vectors["out"].transpose(1, 2)) < 1e-5
        if name == "latte_class":
            null = pipe.net(x, t, torch.full_like(labels, 10))
            assert relative(null, vectors["out_null"].transpose(1, 2)) < 1e-5
    convert(pipe, tmp_path / "again.pt", "official")
    assert same(state, tmp_path / "again.pt")
    with pytest.raises(InputError, match="diffusers' Latte reads a text; convert this model with classes to official"):
        convert(pipe, tmp_path / "folder", "diffusers")


def test_published_numbers_of_text_through_the_layout_of_diffusers(tmp_path):
    vectors, state, meta = read("latte_t2v_diffusers")
    folder = tmp_path / "theirs" / "transformer"
    folder.mkdir(parents=True)
    save_file(state, folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps(meta | {"_class_name": "LatteTransformer3DModel"}))
    pipe = ditlab.load(tmp_path / "theirs")
    condition = ditlab.Condition(tokens=vectors["text"])
    with torch.no_grad():
        assert relative(pipe.net(vectors["x"], vectors["t"], condition), vectors["out"]) < 1e-5
    convert(pipe, tmp_path / "again", "diffusers")
    assert same(state, tmp_path / "again" / "transformer" / "diffusion_pytorch_model.safetensors")
    written = json.loads((tmp_path / "again" / "transformer" / "config.json").read_text())
    assert {key: written[key] for key in meta} == meta
    convert(pipe, tmp_path / "names.pt", "official")
    assert same(state, tmp_path / "names.pt")
    with torch.no_grad():
        net = ditlab.load(tmp_path / "names.pt", heads=2, size=(4, 8, 8)).net
        assert relative(net(vectors["x"], vectors["t"], condition), vectors["out"]) < 1e-5


def test_diffusers_files_that_are_not_supported_are_refused():
    _, state, meta = read("latte_t2v_diffusers")
    kind = ditlab.backbones.BACKBONES["Latte"]
    with pytest.raises(InputError, match="of sample_size 128 has interpolated positions; give one below 128"):
        kind.from_diffusers(state, meta | {"sample_size": 128})
    with pytest.raises(InputError, match=r"proj_in.weight is no key of a LatteTransformer3DModel; give one"):
        kind.from_diffusers(state | {"proj_in.weight": torch.zeros(1)}, meta)


@pytest.mark.parametrize("options", [{"classes": 3}, {"classes": 0, "text_length": 4, "vocabulary": 9}])
def test_other_sizes_give_the_output_of_a_network_that_is_built_for_them(options):
    torch.manual_seed(0)
    net = perturbed(create("Latte", **TINY | options)).eval()
    for size in ((3, 8, 8), (5, 8, 8), (1, 4, 12), (2, 6, 6)):
        other = create("Latte", **TINY | options | {"size": size}).eval()
        own = {key: value for key, value in other.state_dict().items() if key in other.computed}
        other.load_state_dict(net.state_dict() | own)
        with torch.no_grad():
            given = inputs(other)
            assert torch.equal(net(*given), other(*given))


def test_frames_and_positions_see_each_other():
    torch.manual_seed(0)
    net = perturbed(create("Latte", classes=3, **TINY)).eval()
    x, t, y = inputs(net, 1)
    with torch.no_grad():
        before = net(x, t, y)
        x[:, :, 2, 0, 0] += 1
        after = net(x, t, y)
    assert (after - before).abs().amax((0, 1, 3, 4)).min() > 1e-4  # all frames change
    assert (after - before).abs()[0, :, 0, 6:, 6:].amax() > 1e-5  # and in them, all positions


@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [
        pytest.param("S", 32.6, 93.6, marks=pytest.mark.slow),
        pytest.param("B", 129.8, 364.1, marks=pytest.mark.slow),
        pytest.param("L", 457.1, 1285, marks=pytest.mark.slow),
        ("XL", 674.0, 1893),
    ],
)
def test_parameters_and_multiply_accumulates_of_the_sizes(name, millions, gmacs):
    cost, sizes = measure(lambda: create(f"Latte-{name}/2")), find(f"Latte-{name}/2")[1]
    width, pairs = sizes["width"], sizes["depth"] // 2
    positions = (256 + 16) * width  # are parameters in the published code
    assert (cost.parameters + positions) / 1e6 == pytest.approx(millions, abs=0.06)
    # The published code computes the modulations for each of the 256 positions or 16 frames, where one value is enough.
    repeated = pairs * (15 + 255) * 6 * width**2 + 15 * 2 * width**2
    assert cost.gmacs + repeated / 1e9 == pytest.approx(gmacs, rel=5e-4)


@pytest.mark.parametrize(
    ("x", "timesteps", "message"),
    [
        (
            (2, 3, 9, 8),
            1,
            "size 3x9x8; sides must be multiples of 1x2x2: give 3x8x8, the nearest one",
        ),
        ((2, 8, 8), 1, r"input of 2x8x8 for a network of clips with 2 channels; give \(B, 2, frames, height, width\)"),
        ((2, 3, 8, 8), 2, "2 timesteps for each clip of 3 frames; give one for each clip, or one for each frame"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x, timesteps, message):
    net = create("Latte", classes=0, **TINY)
    with pytest.raises(InputError, match=message):
        net(torch.zeros(1, *x), torch.zeros(1, timesteps), torch.zeros(1).long())


def test_each_frame_can_have_its_own_timestep():
    torch.manual_seed(0)
    net = perturbed(create("Latte", classes=3, **TINY)).eval()
    x, t, y = inputs(net)
    with torch.no_grad():
        assert relative(net(x, t[:, None].expand(-1, 3), y), net(x, t, y)) < 1e-6
        other = t[:, None].repeat(1, 3)
        other[:, 0] = 0
        assert relative(net(x, other, y), net(x, t, y)) > 1e-3
