"""ClipHourglass: attention reaches other frames, and the weights do not depend on the size of clips."""

import pytest
import torch
from helpers import inputs, perturbed, relative

from ditlab.backbones import create
from ditlab.core.errors import InputError

TINY = {"size": (4, 8, 8), "channels": 2, "classes": 3, "learn_variance": False}
TINY |= {"depth": 1, "width": 32, "heads": 2, "outer": [16], "patch": 2}
FORMS = [{"space_time": attention, "patch_frames": frames} for attention in ("factorized", "full") for frames in (1, 2)]


@pytest.mark.parametrize("form", FORMS)
def test_other_sizes_are_those_of_networks_built_for_them(form):
    torch.manual_seed(0)
    net = perturbed(create("ClipHourglass", **TINY | form)).eval()
    other = create("ClipHourglass", **TINY | form | {"size": (6, 4, 12)}).eval()
    other.load_state_dict(net.state_dict())
    given = inputs(other)
    with torch.no_grad():
        assert torch.equal(net(*given), other(*given))


@pytest.mark.parametrize("form", FORMS)
def test_all_frames_see_each_other_and_only_blocks_of_the_inner_grid_mix_them(form):
    torch.manual_seed(0)
    net = perturbed(create("ClipHourglass", **TINY | form)).eval()
    x, t, y = inputs(net, 1)
    changed = x.clone()
    changed[:, :, 3] += 1
    with torch.no_grad():
        difference = (net(changed, t, y) - net(x, t, y)).abs().amax((0, 1, 3, 4))
        for block in net.blocks:
            block.register_forward_hook(lambda module, arguments, out: arguments[0])  # leaves blocks out
        alone = (net(changed, t, y) - net(x, t, y)).abs().amax((0, 1, 3, 4))
    assert (difference > 1e-5).all()
    group = form["patch_frames"]
    assert torch.equal(alone > 0, torch.arange(4) // group == 3 // group)


def test_an_image_is_a_clip_of_one_frame_and_frames_have_times_of_their_own():
    torch.manual_seed(0)
    net = perturbed(create("ClipHourglass", **TINY)).eval()
    x, t, y = inputs(net)
    with torch.no_grad():
        image = net(x[:, :, :1], t, y)
        still = net(x[:, :, :1].expand(-1, -1, 2, -1, -1), t, y)
        assert torch.equal(image, still[:, :, :1])
        times = t[:, None].expand(-1, 4)
        assert relative(net(x, times, y), net(x, t, y)) < 1e-6
        times = times + torch.tensor([0.0, 0.0, 50.0, 50.0])
        assert relative(net(x, times, y), net(x, t, y)) > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (3, 8, 8)}, "size 3x8x8; sides must be multiples of 2x4x4: give 4x8x8"),
        ({"size": (4, 8, 6)}, "size 4x8x6; sides must be multiples of 2x4x4: give 4x8x8"),
        ({"outer_depth": -1}, "outer_depth -1; give 0 or more"),
        ({"space_time": "both"}, 'unknown space_time "both"'),
        ({"heads": 8}, "4 channels for each head"),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=message):
        create("ClipHourglass", **TINY | options)
