"""Networks at other sizes than the one they were made for."""

from typing import Any

import pytest
import torch

from ditlab.backbones import Backbone, create
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace

DIT = {"depth": 2, "width": 32, "heads": 2}
MMDIT = DIT | {"patch": 2, "text_length": 3, "text_width": 8, "pooled_width": 8, "classes": 0}
ANY: dict[str, tuple[str, tuple[int, int], dict[str, Any]]] = {
    "sin-cos": ("DiT-S/2", (8, 8), DIT),
    "rotary": ("DiT-S/2", (8, 8), DIT | {"rope": True}),
    "in-context": ("DiT-S/2", (8, 8), DIT | {"rope": True, "condition": "in-context"}),
    "exits": ("DiT-S/2", (8, 8), DIT | {"rope": True, "exits": (1.0, 0.5)}),
    "skips": ("Skip-DiT-S/2", (8, 8), DIT | {"rope": True, "depth": 4}),
    "LightningDiT": ("LightningDiT-B/2", (8, 8), DIT),
    "FiT": ("FiT-XL/2", (8, 8), DIT),
    "Hourglass": ("Hourglass-XS", (16, 16), DIT | {"condition_grid": False, "outer": (16,)}),
    "PixArt": ("PixArt-XL/2-MS", (8, 8), DIT | {"width": 48, "text_length": 0, "text_width": 0, "position_grid": 4}),
    "U-DiT": ("U-DiT-S", (16, 16), {"width": 16, "heads": 2}),
    "DiC": ("DiC-S", (16, 16), {"width": 32}),
    "PDE-Transformer": ("PDE-Transformer-S", (16, 16), {"width": 16, "heads": 2, "patch": 1, "window": 2}),
    "MMDiT": ("MMDiT-S/2", (8, 8), MMDIT | {"condition_grid": False}),
    "Flux": ("Flux-S/2", (8, 8), MMDIT | {"condition_grid": False, "single_depth": 2}),
}


def made(family: str, size: tuple[int, int] | None = None) -> Backbone:
    name, built, options = ANY[family]
    return create(name, **{"size": size or built, "channels": 3, "classes": 4, "learn_variance": False, **options})


@pytest.mark.slow
@pytest.mark.parametrize("family", ANY)
def test_a_network_equals_one_that_was_made_for_the_size(family: str) -> None:
    net = made(family).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    size = (2 * net.size[0], net.size[1])
    other = made(family, size).eval()
    with torch.no_grad():
        for target, source in zip(other.parameters(), net.parameters(), strict=True):
            target.copy_(source)
        x, t, condition = net.example(2, generator, size)
        timestep = 900 * t
        assert torch.equal(net(x, timestep, condition), other(x, timestep, condition))
        assert net(*net.example(1)).shape[2:] == net.size
    wrong = (size[0] + 1, size[1])
    steps = net.side_multiples[0]
    line = f"size {wrong[0]}x{wrong[1]}; sides must be multiples of {steps}: give {size[0]}x{size[1]}, the nearest one"
    if steps > 2:
        with pytest.raises(InputError, match=line):
            net(torch.zeros(1, 3, *wrong), t[:1], condition[:1])


def test_routed_tokens_keep_their_rotary_positions() -> None:
    """All tokens, routed in the order of their positions, give the same as without routing."""
    net = made("rotary").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    x, t, condition = net.example(2, generator, (8, 16))
    kept = torch.arange(32).expand(2, -1)
    with torch.no_grad():
        expected = net(x, t, condition)
        assert (net(x, t, condition, trace=Trace(kept=kept)) - expected).abs().max() < 1e-5


def test_positions_have_a_longest_side() -> None:
    options = DIT | {"position_side": 6, "text_width": 8, "pooled_width": 8}
    net = create("MMDiT-SD3-medium", size=8, channels=3, **options)
    assert net.longest_side == 12
    with pytest.raises(InputError, match="size 14x8; this network has positions for sides up to 12"):
        net.check_size((14, 8))
    net.check_size((12, 4))


def test_the_resolution_that_pixart_embeds_is_that_of_its_input() -> None:
    net = made("PixArt")
    x, t, condition = net.example(2, size=(16, 8))
    stated = Condition(label=condition.label, resolution=torch.tensor([[128.0, 64.0]] * 2))
    other = Condition(label=condition.label, resolution=torch.tensor([[64.0, 64.0]] * 2))
    torch.nn.init.normal_(net.final_layer.linear.weight)
    assert torch.equal(net(x, t, condition), net(x, t, stated))
    assert not torch.equal(net(x, t, condition), net(x, t, other))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("U-ViT-S/2", DIT | {"depth": 3}, "it has a learned position for each patch"),
        ("DiT-S/2", DIT | {"condition_grid": True}, "condition_grid has a value for each position"),
        ("DyDiT-S/2", DIT, "its budget is counted for one number of tokens"),
    ],
)
def test_a_network_for_one_size_says_why(name: str, options: dict[str, Any], reason: str) -> None:
    net = create(name, size=8, channels=3, classes=4, learn_variance=False, **options)
    with pytest.raises(InputError, match=f"size 8x16 for a network of 8x8: {reason}; give 8x8"):
        net.check_size((8, 16))
    with pytest.raises(InputError, match="input of 3x8x16 for a network made for 3x8x8"):
        net(torch.zeros(1, 3, 8, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))
