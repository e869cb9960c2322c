"""Flux against the vectors of diffusers, in all layouts, and trained from nothing."""

import pytest
import torch
from helpers import perturbed, relative

from ditlab.backbones import create, flux_layouts, name_of
from ditlab.backbones.flux import Flux
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.evaluation import measure

WORDS = {"size": 8, "channels": 3, "width": 32, "depth": 1, "single_depth": 2, "heads": 2, "patch": 2}
WORDS |= {"vocabulary": 11, "text_length": 5, "text_block": True}
STATES = {key: value for key, value in WORDS.items() if key != "vocabulary"} | {"text_width": 12, "pooled_width": 10}
STATES |= {"text_block": False}
GRID = (3, 4)  # tokens of the vectors


def image(packed):
    """Tokens (B, h w, C p p) of the vectors as an image (B, C, h p, w p)."""
    parts = packed.unflatten(2, (-1, 2, 2)).unflatten(1, GRID)  # (B, h, w, C, p, p)
    return parts.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


@pytest.fixture(params=["flux", "flux_guided"])
def published(request, golden):
    """Vectors, their state dict, and a network with these weights for another size."""
    vectors = golden(request.param)
    state = {key.removeprefix("state."): value for key, value in vectors.items() if key.startswith("state.")}
    tensors = flux_layouts.from_diffusers(state)
    net = create("Flux", **flux_layouts.read_sizes(tensors) | {"size": (8, 8)}).eval()
    net.load_state_dict(Flux.from_published(tensors))
    return vectors, state, net


@torch.no_grad()
def test_published_weights_give_published_numbers(published):
    vectors, _, net = published
    text, x, expected = vectors["context"], image(vectors["x"]), image(vectors["out"])
    scale = vectors.get("guidance")
    t = vectors["t"] if scale is None else torch.stack([vectors["t"], scale], dim=1)
    condition = Condition(tokens=text, pooled=vectors["pooled"])
    assert relative(net(x, t, condition), expected) < 1e-5
    assert relative(net(x.transpose(2, 3), t, condition).transpose(2, 3), expected) > 1e-2
    assert relative(net(x, t, Condition(tokens=text, pooled=torch.zeros_like(vectors["pooled"]))), expected) > 1e-2
    if scale is not None:
        assert relative(net(x, torch.stack([vectors["t"], scale + 0.1], dim=1), condition), expected) > 1e-3
        with pytest.raises(
            InputError, match=r"timesteps of shape \(2,\) for a network that also reads scale; give \(B"
        ):
            net(x, vectors["t"], condition)


def test_all_layouts_hold_the_same(published):
    _, state, net = published
    tensors = flux_layouts.from_diffusers(state)
    back = flux_layouts.to_diffusers(tensors)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    again = Flux.to_published(dict(net.state_dict()))
    assert again.keys() == tensors.keys() >= {*Flux.marks}
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    for key in ("extra.weight", "single_transformer_blocks.0.extra.weight", "other_blocks.0.norm.weight"):
        with pytest.raises(InputError, match=rf"{key} is no key of a FluxTransformer2DModel"):
            flux_layouts.from_diffusers(state | {key: torch.zeros(1)})
    with pytest.raises(InputError, match=r"double_blocks\.0\.extra\.weight is no key of a FluxTransformer2DModel"):
        Flux.from_published(tensors | {"double_blocks.0.extra.weight": torch.zeros(1)})


def test_a_network_that_reads_another_image_is_rejected(published):
    tensors = flux_layouts.from_diffusers(published[1])
    width = len(tensors["img_in.weight"])
    with pytest.raises(InputError, match="a Flux with 8 input and 4 output channels, which reads another image too"):
        flux_layouts.read_sizes(tensors | {"img_in.weight": torch.zeros(width, 32)})


@pytest.mark.slow
def test_cost_agrees_with_the_release():
    """Per token 24 D^2 in a block with two streams, and 12 D^2 in one with a single stream, of M keys 2 M D each."""
    cost = measure(lambda: create("Flux-dev"))
    tokens, width = 4096 + 512, 3072
    blocks = 57 * (12 * width**2 * tokens + 2 * tokens**2 * width)
    assert cost.parameters == pytest.approx(11.90e9, rel=2e-4)
    assert cost.gmacs == pytest.approx(blocks / 1e9, rel=2e-3)
    assert cost.tokens == tokens
    with torch.device("meta"):
        dev, schnell = create("Flux-dev"), create("Flux-schnell")
        assert (dev.inputs, schnell.inputs, create("Flux-dev", inputs=()).inputs) == (("scale",), (), ())
        assert [create(**net.config).inputs for net in (dev, schnell, create("Flux-dev", inputs=()))] == [
            ("scale",),
            (),
            (),
        ]
    assert name_of(Flux, dev.config) == "Flux-dev"


def test_axes_of_a_head():
    assert create("Flux", **WORDS | {"width": 256}).axes == (16, 56, 56)
    assert create("Flux", **WORDS | {"axes": (2, 6, 8)}).axes == (2, 6, 8)
    text = create("Flux", **WORDS).positions(4, 4, 5)[:, 16:]
    assert torch.equal(text, torch.stack([torch.ones(5, 16), torch.zeros(5, 16)]))


@pytest.mark.parametrize("options", [WORDS, STATES])
def test_before_training_blocks_are_the_identity_and_the_output_is_zero(options):
    net = create("Flux", **options)
    trace = Trace(["blocks.0", "blocks.2"])
    inputs = net.example(2, torch.Generator().manual_seed(0))
    assert torch.equal(net(*inputs, trace=trace), torch.zeros(2, *net.shape))
    first, last = trace.taps.values()
    assert torch.equal(first, last)
    assert first.shape == (2, net.tokens, 32)


@torch.no_grad()
def test_tokens_that_pass_through_the_middle_blocks_keep_their_positions():
    net = perturbed(create("Flux", **WORDS)).eval()
    inputs = net.example(2, torch.Generator().manual_seed(0))
    image = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    order = torch.cat([image, torch.arange(16, 21)]).expand(2, -1)  # the text keeps its place after the image
    assert relative(net(*inputs, trace=Trace(kept=order)), net(*inputs)) < 1e-5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"text_length": 0, "vocabulary": 0}, "a Flux without text; give text_length, and text_width"),
        ({"text_block": False}, "vocabulary without text_block: words have no order then"),
        ({"size": 9}, "size 9x9 is not divisible by patch 2"),
        ({"width": 34, "heads": 4}, "width 34 must be divisible by heads 4"),
        ({"width": 36, "heads": 12}, "a head must have an even width"),
        ({"axes": (4, 6)}, "axes 4, 6; give three even numbers whose sum is 16"),
        ({"axes": (4, 6, 8)}, "axes 4, 6, 8; give three even numbers whose sum is 16"),
        ({"axes": (6, 5, 5)}, "axes 6, 5, 5; give three even numbers whose sum is 16"),
        ({"single_depth": 0}, "single_depth 0; give 1 or more"),
    ],
)
def test_options_that_do_not_fit_together(options, words):
    with pytest.raises(InputError, match=words):
        create("Flux", **WORDS | options)
