"""VideoDiT: its positions, and how it starts from a DiT for images."""

import pytest
import torch
from helpers import inputs, perturbed, relative, tiny_pipeline
from rich.console import Console

import ditlab
from ditlab.backbones import create
from ditlab.backbones.positions import clip_rotations, frame_rotations, rotated
from ditlab.core.errors import InputError
from ditlab.data.base import InMemory
from ditlab.evaluation import measure
from ditlab.training.init_from import transfer

TINY = {"size": (4, 8, 8), "channels": 2, "classes": 3, "learn_variance": False}
TINY |= {"depth": 2, "width": 32, "heads": 2, "patch": 2}
FORMS = [
    {"space_time": attention, "positions": positions, "patch_frames": frames}
    for attention in ("factorized", "full")
    for positions in ("rotary", "sincos")
    for frames in (1, 2)
]


@pytest.mark.parametrize("form", FORMS)
def test_every_weight_matters_and_other_sizes_are_those_of_networks_built_for_them(form):
    torch.manual_seed(0)
    net = perturbed(create("VideoDiT", **TINY | form))
    out = net(*inputs(net))
    (out * torch.randn_like(out)).sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
    other = create("VideoDiT", **TINY | form | {"size": (6, 4, 12)}).eval()
    own = {key: value for key, value in other.state_dict().items() if key == "pos_embed"}
    other.load_state_dict(net.state_dict() | own)
    given = inputs(other)
    with torch.no_grad():
        assert relative(net.eval()(*given), other(*given)) < 1e-6


def test_rotary_positions_depend_on_distances_only():
    table = clip_rotations(3, 4, 5, 64).view(2, 3, 4, 5, 64)
    torch.manual_seed(0)
    q, k = torch.randn(64), torch.randn(64)

    def product(a, b):
        return (rotated(q, table[:, *a]) * rotated(k, table[:, *b])).sum()

    assert torch.allclose(product((0, 1, 1), (1, 2, 3)), product((1, 2, 2), (2, 3, 4)), atol=1e-4)
    assert not torch.allclose(product((0, 1, 1), (1, 2, 3)), product((0, 1, 1), (1, 3, 2)), atol=1e-2)
    assert torch.equal(table[0, :, 2, 3, :16], frame_rotations(3, 16)[0])  # 16, 24 and 24 channels
    assert torch.equal(table[1, 1, 2, :, 16:40], frame_rotations(5, 24)[1])
    assert torch.equal(table[1, 1, :, 3, 40:], frame_rotations(4, 24)[1])


def inflated(**form):
    """A DiT for images, and the network that starts from it."""
    source = tiny_pipeline(channels=2)
    net = create("VideoDiT", **TINY | form | {"positions": "sincos"})
    changes = transfer(net, source.classes, source)
    return source.net, net.eval(), {change.name: change for change in changes}


@pytest.mark.parametrize("attention", ["factorized", "full"])
@pytest.mark.parametrize("frames", [1, 2])
def test_a_network_that_starts_from_a_dit_equals_it_on_one_frame(attention, frames):
    image_net, net, changes = inflated(space_time=attention, patch_frames=frames)
    x, t, y = inputs(image_net, 3)
    with torch.no_grad():
        expected = image_net(x, t, y)
        out = net(x[:, :, None], t, y)
        assert out.shape == (3, 2, 1, 8, 8)
        assert torch.equal(out[:, :, 0], expected) if frames == 1 else relative(out[:, :, 0], expected) < 1e-6
        still = net(x[:, :, None].expand(-1, -1, 4, -1, -1), t, y)
        if attention == "factorized":  # nothing passes between frames yet
            assert relative(still, expected[:, :, None].expand_as(still)) < 1e-6
    assert changes["blocks.0.attn.qkv.weight"].fate == "kept"
    assert changes["x_embedder.proj.weight"][1:] == ("adapted", f"patches of {frames} frames")
    assert {name.split(".")[2] for name, change in changes.items() if change.fate == "new"} == (
        {"time_attn", "time_modulation"} if attention == "factorized" else set()
    )


@pytest.mark.slow
def test_training_starts_from_a_dit_and_reads_its_options(tmp_path):
    tiny_pipeline(channels=2, qk_norm=True).save(tmp_path / "image")
    clips = InMemory(torch.randint(256, (8, 2, 2, 8, 8)).byte(), torch.arange(8) % 3, [f"class {i}" for i in range(3)])
    recipe = {
        "model": {"name": "VideoDiT-XS/2x4x4"},
        "train": {
            "images": 8,
            "batch": 4,
            "precision": "float32",
            "device": "cpu",
            "init_from": str(tmp_path / "image"),
        }
        | {"preview_every": 1000, "compile": "never"},
        "sample": {"sampler": "euler", "steps": 1},
    }
    net = ditlab.train(recipe, tmp_path / "run", data=clips, console=Console(quiet=True)).net
    expected = {"name": "VideoDiT", "depth": 2, "width": 32, "heads": 2, "patch": 2, "patch_frames": 2}
    expected |= {"qk_norm": True, "positions": "sincos", "size": [2, 8, 8]}
    assert {key: net.config[key] for key in expected} == expected
    with pytest.raises(InputError, match=r'has the positions "sincos"; leave model.positions out'):
        ditlab.train(recipe | {"model": recipe["model"] | {"positions": "rotary"}}, tmp_path / "other", data=clips)


def test_other_dits_are_refused_in_one_line():
    kind = type(create("VideoDiT", **TINY))
    source = tiny_pipeline(rope=True).net
    with pytest.raises(InputError, match="a VideoDiT starts from a DiT with rope = False, and this one has True"):
        kind.options_from(source, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": (3, 8, 8), "patch_frames": 2},
            "size 3x8x8; sides must be multiples of 2: give 4x8x8, the nearest one",
        ),
        ({"size": (2, 9, 8)}, "size 2x9x8; sides must be multiples of 1x2x2: give 2x8x8, the nearest one"),
        ({"heads": 8}, "4 channels for each head; choose width and heads so that"),
        ({"space_time": "none"}, 'unknown space_time "none"; choose from: factorized, full'),
        ({"size": 8}, r"size 8x8 for VideoDiT; give \(frames, height, width\), or another family"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        create("VideoDiT", **TINY | options)


def test_each_frame_can_have_its_own_timestep():
    torch.manual_seed(0)
    for frames in (1, 2):
        net = perturbed(create("VideoDiT", **TINY, patch_frames=frames)).eval()
        x, t, y = inputs(net)
        other = t[:, None].repeat(1, 4)
        with torch.no_grad():
            assert relative(net(x, other, y), net(x, t, y)) < 1e-6
            other[:, 0] = 0
            assert relative(net(x, other, y), net(x, t, y)) > 1e-3


def test_a_small_size_and_its_cost():
    cost = measure(lambda: create("VideoDiT-XS/1x2x2", size=(16, 16, 16), channels=4, classes=10, learn_variance=False))
    assert (round(cost.parameters / 1e6, 2), cost.tokens) == (5.72, 64)
