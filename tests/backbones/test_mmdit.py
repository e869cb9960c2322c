"""MM-DiT against the vectors of Stability's code and of diffusers, and trained from nothing."""

import pytest
import torch
from helpers import perturbed, relative

from ditlab.backbones import create, mmdit_layouts
from ditlab.backbones.mmdit import MMDiT
from ditlab.core.errors import InputError
from ditlab.core.types import Condition, Trace
from ditlab.evaluation import measure

VECTORS = ["sd3_dual", "sd3_qknorm_original", "sd3_release_fp16"]
WORDS = {"size": 8, "channels": 3, "width": 32, "depth": 3, "heads": 2, "patch": 2, "vocabulary": 11, "text_length": 5}
WORDS |= {"text_block": True}
STATES = {"size": 8, "channels": 4, "width": 32, "depth": 2, "heads": 2, "patch": 2, "qk_norm": True} | {
    "text_length": 6,
    "text_width": 12,
    "pooled_width": 10,
    "position_side": 8,
}


@pytest.fixture(params=VECTORS)
def published(request, golden):
    """Vectors, and a network with their weights."""
    vectors = golden(request.param)
    state = {key.removeprefix("state."): value for key, value in vectors.items() if key.startswith("state.")}
    state = {key.removeprefix(mmdit_layouts.PREFIX): value.float() for key, value in state.items()}
    if MMDiT.diffusers_marks[0] in state:
        state = mmdit_layouts.from_diffusers(state)
    net = create("MMDiT", **{"heads": 3} | mmdit_layouts.read_sizes(state)).eval()
    net.load_state_dict(state)
    return vectors, net


@torch.no_grad()
def test_published_weights_give_published_numbers(published):
    """With 1e-4 the exact GELU would pass for the approximation by tanh."""
    vectors, net = published
    x, t, text, pooled = (vectors[key] for key in ("x", "t", "context", "pooled"))
    assert relative(net(x, t, Condition(tokens=text, pooled=pooled)), vectors["out"]) < 1e-5
    assert relative(net(x, t.round(), Condition(tokens=text, pooled=pooled)), vectors["out"]) > 1e-5
    if "out_zero_text" in vectors:
        nothing = Condition(tokens=torch.zeros_like(text), pooled=torch.zeros_like(pooled))
        assert relative(net(x, t, nothing), vectors["out_zero_text"]) < 1e-5


@pytest.mark.slow
def test_cost_agrees_with_the_releases():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in create(f"MMDiT-{name}").parameters()) for name in ("SD3.5-medium", "SD3.5-large")
        ]
    assert sizes == [pytest.approx(2.243e9, rel=2e-4), pytest.approx(8.057e9, rel=2e-4)]
    cost = measure(lambda: create("MMDiT-SD3-medium"))
    assert cost.gmacs == pytest.approx(4216, rel=1e-3)
    assert cost.parameters == pytest.approx(2.028e9, rel=2e-4)
    assert cost.tokens == 4096 + 154


def test_the_table_of_positions_is_the_published_one(golden):
    net = create("MMDiT", **STATES | {"width": 48, "size": 16, "position_side": 12, "heads": 3})
    assert torch.allclose(net.pos_embed, golden("sd3_dual")["state.pos_embed.pos_embed"], atol=1e-5)


@torch.no_grad()
def test_other_sizes_take_the_center_of_the_table():
    net = perturbed(create("MMDiT", **STATES)).eval()
    table = net.pos_embed.view(8, 8, -1)
    assert torch.equal(net.positions(3, 4), table[2:5, 2:6].flatten(0, 1)[None])
    _, t, text = net.example(2, torch.Generator().manual_seed(0))
    assert net(torch.randn(2, 4, 6, 16), t, text).shape == (2, 4, 6, 16)
    for shape, line in (
        ((4, 18, 8), "size 18x8; this network has positions for sides up to 16"),
        ((4, 7, 8), "size 7x8; sides must be multiples of 2: give 8x8, the nearest one"),
        ((3, 8, 8), "input of 3x8x8 for a network made for 4x8x8"),
    ):
        with pytest.raises(InputError, match=line):
            net(torch.randn(2, *shape), t, text)


@pytest.mark.parametrize("options", [WORDS, STATES, STATES | {"dual_blocks": 1}])
def test_before_training_blocks_are_the_identity_and_the_output_is_zero(options):
    net = create("MMDiT", **options)
    trace = Trace(["blocks.0", f"blocks.{net.config['depth'] - 1}"])
    inputs = net.example(2, torch.Generator().manual_seed(0))
    assert torch.equal(net(*inputs, trace=trace), torch.zeros(2, *net.shape))
    first, last = trace.taps.values()
    assert torch.equal(first, last)
    assert first.shape == (2, net.tokens, 32)


@torch.no_grad()
def test_padding_changes_nothing_and_order_matters_with_positions_only():
    for options, ordered in ((WORDS, True), (STATES, False)):
        net = perturbed(create("MMDiT", **options), 0.2).eval()
        x, t, text = net.example(2, torch.Generator().manual_seed(0))
        mask = torch.ones_like(text.mask)
        mask[:, 3:] = False
        out = net(x, t, Condition(tokens=text.tokens, mask=mask, pooled=text.pooled))
        short = Condition(tokens=text.tokens[:, :3], pooled=text.pooled)
        assert relative(net(x, t, short), out) < 1e-5
        assert relative(net(x, t, text), out) > 1e-3
        turned = Condition(tokens=text.tokens[:, :3].flip(1), pooled=text.pooled)
        assert (relative(net(x, t, turned), out) > 1e-4) == ordered


@torch.no_grad()
def test_conditions_are_sliced_and_joined():
    net = perturbed(create("MMDiT", **STATES)).eval()
    x, t, text = net.example(3, torch.Generator().manual_seed(0))
    together = net(x, t, text)
    apart = torch.cat([net(x[i : i + 1], t[i : i + 1], text[i : i + 1]) for i in range(3)])
    assert relative(apart, together) < 1e-5
    joined = text[:1].joined(text[1:]).to("cpu", torch.float64)
    assert relative(net(x, t, joined), together) < 1e-6


def test_tokens_that_pass_through_the_middle_blocks_keep_the_text():
    net = perturbed(create("MMDiT", **WORDS)).eval()
    inputs = net.example(2, torch.Generator().manual_seed(0))
    everything = torch.arange(21).expand(2, -1)
    assert relative(net(*inputs, trace=Trace(kept=everything)), net(*inputs)) < 1e-6
    trace = Trace(["blocks.0", "blocks.1"], kept=torch.cat([everything[:, :4], everything[:, 16:]], dim=1))
    net(*inputs, trace=trace)
    assert [tokens.shape[1] for tokens in trace.taps.values()] == [21, 9]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vocabulary": 0}, "text_width 0 and vocabulary 0; give one of them"),
        ({"text_width": 8}, "text_width 8 and vocabulary 11; give one of them"),
        ({"text_length": 0}, "a text condition without tokens; set text_length"),
        ({"text_length": 0, "vocabulary": 0}, "an MMDiT without text; give text_length, and text_width"),
        ({"text_block": False}, "vocabulary without text_block: words have no order then"),
        ({"classes": 3}, "3 classes for a network that reads text; give classes = 0"),
        ({"dual_blocks": 4}, "dual_blocks 4; give 0 to 3"),
        ({"position_side": 3}, r"size 8x8 has more than 3 patches of 2 a side \(position_side\); give at most 6"),
        ({"position_side": 9, "condition_grid": True}, "condition_grid is for one size"),
        ({"size": 9}, "size 9x9 is not divisible by patch 2"),
        ({"width": 34}, "width 34 must be divisible by heads 2 and by 4"),
    ],
)
def test_options_that_do_not_fit_together(options, words):
    with pytest.raises(InputError, match=words):
        create("MMDiT", **WORDS | options)


def test_conditions_that_do_not_fit():
    net = create("MMDiT", **STATES)
    x, t, text = net.example(1)
    for condition, words in (
        (torch.zeros(1), "a condition with labels for a network that reads text; give tokens"),
        (Condition(label=torch.zeros(1)), "a condition with label for a network that reads text; give tokens"),
        (Condition(tokens=text.tokens), "a pooled vector that is missing; this network needs one of 10 values"),
        (Condition(tokens=text.tokens, pooled=torch.zeros(1, 9)), "a pooled vector of 9 values"),
        (Condition(tokens=torch.zeros(1, 4, 13)), r"tokens of shape \(1, 4, 13\).*reads \(B, L, 12\) of states"),
    ):
        with pytest.raises(InputError, match=words):
            net(x, t, condition)


def test_both_layouts_hold_the_same(golden):
    state = {key[6:]: value for key, value in golden("sd3_dual").items() if key.startswith("state.")}
    ours = mmdit_layouts.from_diffusers(state)
    back = mmdit_layouts.to_diffusers(ours)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert {key.removeprefix(mmdit_layouts.PREFIX) for key in MMDiT.to_published(ours)} == ours.keys()
    with pytest.raises(InputError, match=r"extra\.weight is no key of an SD3Transformer2DModel"):
        mmdit_layouts.from_diffusers(state | {"extra.weight": torch.zeros(1)})
