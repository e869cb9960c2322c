"""Options of DiT that later models brought: RMS norm, gated feed-forward layers, rotary positions; routing."""

import pytest
import torch
from helpers import relative, tiny_pipeline
from rich.console import Console

from ditlab.backbones import create
from ditlab.backbones.layers import SwiGLU
from ditlab.backbones.positions import rotated, rotations
from ditlab.checkpoints.published import to_official
from ditlab.config.reader import parse_recipe
from ditlab.core.errors import InputError
from ditlab.core.types import Trace
from ditlab.data import open_dataset
from ditlab.diffusion.objective import Objective
from ditlab.evaluation import measure
from ditlab.training import train
from ditlab.training.aids import active_aids
from ditlab.training.aids.alignment import distance
from ditlab.training.aids.routing import TokenRouting
from ditlab.training.losses import batch_losses, make_context
from ditlab.training.rng import Randomness, RunRandomness

QUIET = Console(quiet=True)
SIZES = {"width": 48, "depth": 6, "heads": 3, "patch": 2, "size": 8, "channels": 1, "classes": 3}
MODERN = {"rms_norm": True, "swiglu": True, "rope": True, "qk_norm": True}


def noisy(**options):
    torch.manual_seed(0)
    net = create("DiT", learn_variance=False, **SIZES, **options)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


def batch(count=4):
    torch.manual_seed(1)
    return torch.randn(count, 1, 8, 8), torch.rand(count) * 1000, torch.arange(count) % 4


def test_rotated_products_depend_on_the_distance_alone():
    turn = rotations(5, 7, 16).double()
    q, k = torch.randn(16).double(), torch.randn(16).double()

    def product(a, b):
        places = [r * 7 + c for r, c in (a, b)]
        return rotated(q, turn[:, places[0]]) @ rotated(k, turn[:, places[1]])

    assert product((0, 1), (2, 3)) == pytest.approx(product((2, 4), (4, 6)).item(), rel=1e-6)
    assert product((0, 1), (2, 3)) != pytest.approx(product((0, 1), (3, 2)).item(), rel=1e-2)
    assert rotated(q, turn[:, 23]).norm() == pytest.approx(q.norm().item(), rel=1e-6)
    assert torch.equal(rotations(2, 2, 16, more=2)[:, 4:], torch.tensor([1.0, 0.0])[:, None, None].expand(2, 2, 16))


@pytest.mark.slow
def test_a_gated_layer_has_about_the_weights_of_a_plain_one():
    layer = SwiGLU(384)
    assert sum(p.numel() for p in layer.parameters()) == pytest.approx(2 * 4 * 384**2, rel=0.01)
    x = torch.randn(2, 384)
    gate, value = layer.w12(x).chunk(2, dim=-1)
    assert relative(layer(x), layer.w3(gate * gate.sigmoid() * value)) < 1e-6
    plain, modern = (measure(lambda o=o: create("DiT-B/2", **o)) for o in ({}, MODERN))
    assert modern.gmacs == pytest.approx(plain.gmacs, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["adaln-zero", "adaln", "in-context", "cross-attention"])
def test_every_conditioning_takes_them_and_uses_positions(condition):
    net = noisy(condition=condition, **MODERN).eval()
    other = noisy(condition=condition, **MODERN | {"rope": False}).eval()
    assert net.state_dict().keys() == other.state_dict().keys()  # rotations are computed, not saved
    with torch.no_grad():
        assert relative(net(*batch()), other(*batch())) > 1e-2
    net(*batch()).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


class TestRouting:
    @pytest.mark.parametrize("options", [{}, MODERN])
    def test_all_tokens_in_any_order_are_as_without(self, options):
        net, given = noisy(**options), batch()
        expected = net(*given)
        trace = Trace(kept=torch.stack([torch.randperm(16) for _ in range(4)]))
        assert relative(net(*given, trace=trace), expected) < 1e-5

    def test_tokens_that_pass_by_are_not_seen_by_the_middle(self):
        net, (x, t, y) = noisy(**MODERN), batch(2)
        trace = Trace([f"blocks.{i}" for i in range(6)], torch.stack([torch.randperm(16)[:8] for _ in range(2)]))
        net(x, t, y, trace=trace)
        seen = [trace.taps[f"blocks.{i}"] for i in range(6)]
        assert [tuple(each.shape[:2]) for each in seen] == [(2, 16), *[(2, 8)] * 4, (2, 16)]
        first, last = seen[0], seen[4]
        joined = first.clone()
        for i in range(2):
            joined[i, trace.kept[i]] = last[i]
        c = net.condition(net.t_embedder(t), net.y_embedder(y))
        assert relative(net.blocks[5](joined, c), seen[5]) < 1e-6

    @pytest.mark.slow
    def test_training_routes_and_sampling_does_not(self, tmp_path):
        recipe = parse_recipe(
            {"model": {"name": "DiT", "width": 48, "depth": 6, "heads": 3, "patch": 2, "rope": True}}
            | {"optim": {"lr": 2e-3}, "sample": {"sampler": "euler", "steps": 2}}
            | {"train": {"images": 64, "batch": 32, "route": 0.5, "precision": "float32", "compile": "never"}}
        )
        pipe = train(recipe, tmp_path, console=QUIET)
        assert "route" not in pipe.net.config

        def kept(first, count):
            return TokenRouting(0.5).kept(pipe.net, Randomness(RunRandomness(0), first, 0, count, 32))

        one, two, other = (kept(place, 32) for place in (0, 0, 32))
        assert one.shape == (32, 8)
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        assert torch.equal(kept(5, 3), one[5:8])
        assert all(len(set(row.tolist())) == 8 for row in one)
        model = {"name": "U-ViT", "width": 48, "depth": 5, "heads": 3, "patch": 2}
        wrong = parse_recipe({"model": model, "train": {"route": 0.5}})
        with pytest.raises(
            InputError,
            match=r"train\.route needs 3 blocks or more .* which U-ViT does not have; leave train\.route out",
        ):
            train(wrong, tmp_path / "no", console=QUIET)


class TestAlignment:
    def test_the_early_block_gets_gradients_and_the_late_one_does_not(self):
        early, late = torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 5, 8, requires_grad=True)
        found = distance(early, late)
        assert found[0].item() == pytest.approx(
            sum(1 - torch.dot(a, b) / a.norm() / b.norm() for a, b in zip(early[0], late[0], strict=True)).item() / 5
        )
        found.sum().backward()
        assert early.grad.abs().sum() > 0
        assert late.grad is None

    @pytest.mark.slow
    def test_it_is_added_to_the_loss(self, tmp_path):
        pipe, data = tiny_pipeline(classes=10), open_dataset("digits")
        settings = {"batch": 8, "layer_sync_weight": 0.25}
        plain, aligned = (
            make_context(pipe, parse_recipe({"train": settings | more})) for more in ({}, {"layer_sync": [0, 1]})
        )
        images = data.fetch(torch.arange(8))
        seen = []
        hooks = [block.register_forward_hook(lambda m, a, out: seen.append(out)) for block in pipe.net.blocks]
        before = batch_losses(plain, images, 0, 0, torch.float32)
        [hook.remove() for hook in hooks]
        after = batch_losses(aligned, images, 0, 0, torch.float32)
        assert list(before.named) == ["regression"]
        assert list(after.named) == ["regression", "layer_sync"]
        assert torch.equal(after.named["regression"], before.total)
        assert relative(after.named["layer_sync"], 0.25 * distance(*seen[:2])) < 1e-4
        assert torch.equal(after.total, after.named["regression"] + after.named["layer_sync"])
        with pytest.raises(InputError, match=r"train\.layer_sync 0 12: DiT-S/2 has the blocks 0 to 11"):
            train(parse_recipe({"train": {"layer_sync": [0, 12]}}), tmp_path / "no", console=QUIET)


def test_the_direction_loss_can_be_enabled():
    objective, recipe = Objective(), parse_recipe({"diffusion": {"direction": 0.5}})
    (aid,) = active_aids(recipe)
    x0, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.2, 0.5, 0.7], dtype=torch.float64)
    said = torch.randn(3, 2, 4, 4)
    wanted = eps - x0
    cosine = (said * wanted).sum(1) / said.norm(dim=1) / wanted.norm(dim=1)
    forward = objective.regress(lambda *a: said, x0, None, t, eps)
    losses = aid.losses(None, forward, Trace())
    assert relative(losses["direction"], 0.5 * (1 - cosine).flatten(1).mean(1)) < 1e-4


def test_impossible_settings_are_rejected():
    with pytest.raises(InputError, match="has rms_norm = False only, and this model True"):
        to_official(tiny_pipeline(rms_norm=True, swiglu=True))
    with pytest.raises(InputError, match="has rope = False only"):
        to_official(tiny_pipeline(rope=True))
    with pytest.raises(InputError, match="rope with 6 channels for each head"):
        create("DiT", learn_variance=False, **SIZES | {"heads": 8}, rope=True)
