"""STDiT3 against published numbers, and its conditions."""

from dataclasses import replace

import pytest
import torch
from helpers import inputs, perturbed, relative

import ditlab
from ditlab.backbones import create
from ditlab.checkpoints import convert
from ditlab.diffusion.process import Linear
from ditlab.evaluation import measure

TINY = {"size": (3, 8, 8), "channels": 2, "classes": 3, "learn_variance": False}
TINY |= {"depth": 2, "width": 32, "heads": 2, "patch": 2}


@pytest.fixture
def published(golden):
    """The vectors, the state dict, and the condition."""
    vectors = golden("stdit3")
    state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
    condition = ditlab.Condition(
        tokens=vectors["y"][:, 0],
        mask=vectors["mask"].bool(),
        fps=vectors["fps"],
        resolution=torch.stack([vectors["height"], vectors["width"]], dim=1),
    )
    return vectors, state, condition


def test_published_numbers_with_the_whole_output_layer(published):
    vectors, state, condition = published
    sizes = {"channels": 4, "classes": 0, "learn_variance": True, "depth": 2, "width": 48, "heads": 4, "patch": 2}
    net = create("STDiT3", size=(3, 7, 10), text_length=6, text_width=20, null_caption=True, **sizes)
    net.load_state_dict(state)
    x, t, kept = vectors["x"], vectors["timestep"], vectors["x_mask"]
    with torch.no_grad():
        assert relative(net(x, t, condition), vectors["out"]) < 1e-5
        by_frame = torch.where(kept, t[:, None], torch.zeros(1))
        out, expected = (clip.transpose(1, 2)[kept] for clip in (net(x, by_frame, condition), vectors["out_x_mask"]))
        assert relative(out, expected) < 1e-5  # the published head normalizes given frames twice; nobody reads them
        assert relative(net(x[:, :, :1], t, condition), vectors["out_first_frame_only"]) < 1e-5
    table = net.table(ditlab.backbones.video.Grid(3, 4, 5), float((144 * 256) ** 0.5))
    assert (table - vectors["position_table"]).abs().max() < 1e-5


def test_published_files_are_read_and_written(published, tmp_path):
    vectors, state, condition = published
    torch.save(state, tmp_path / "theirs.pt")
    pipe = ditlab.load(tmp_path / "theirs.pt")
    assert "weights do not state the input size; using 5x32x32, give size= for another" in pipe.config["note"]
    assert (pipe.objective.process, pipe.objective.target) == (Linear(), "velocity")
    with torch.no_grad():
        out = pipe.net(vectors["x"], vectors["timestep"], condition)
    assert relative(-out, vectors["out"][:, :4]) < 1e-5  # their velocity points to the data
    convert(pipe, tmp_path / "again.pt", "official")
    again = torch.load(tmp_path / "again.pt")
    assert again.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.items())


@pytest.mark.slow
def test_sizes_of_the_published_models():
    cost = measure(lambda: create("STDiT3-XL/2", size=(5, 18, 32), learn_variance=True))
    assert cost.parameters / 1e6 == pytest.approx(1207.6, abs=0.05)
    assert cost.gmacs == pytest.approx(830, rel=2e-3)


def test_rate_and_resolution_matter_and_have_defaults():
    torch.manual_seed(0)
    net = perturbed(create("STDiT3", **TINY)).eval()
    x, t, y = inputs(net)
    plain = ditlab.Condition(label=y)
    with torch.no_grad():
        out = net(x, t, plain)
        rates, sides = torch.full((2,), 24.0), torch.full((2, 2), 64.0)
        assert torch.equal(net(x, t, replace(plain, fps=rates, resolution=sides)), out)
        assert relative(net(x, t, replace(plain, fps=rates / 3)), out) > 1e-3
        mixed = net(x, t, replace(plain, resolution=sides * torch.tensor([[1.0], [2.0]])))
        assert relative(mixed[:1], out[:1]) < 1e-6
        assert relative(mixed[1:], out[1:]) > 1e-3
        image = net(x[:, :, :1], t, plain)
        assert torch.equal(net(x[:, :, :1], t, replace(plain, fps=5 * rates)), image)


def test_nothing_passes_between_frames_before_training():
    torch.manual_seed(0)
    net = create("STDiT3", **TINY).eval()
    perturbed(net.final_layer)
    perturbed(net.t_block)
    x, t, y = inputs(net, 1)
    with torch.no_grad():
        out = net(x, t, y)
        x[:, :, 1] += 1
        change = (net(x, t, y) - out).abs().amax((0, 1, 3, 4))
    assert change[1] > 1e-3
    assert change[[0, 2]].max() == 0
