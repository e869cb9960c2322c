"""Processes that share the tokens of an image compute what one process does."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives
from helpers import posix_only, relative
from processes import in_processes

from ditlab.backbones import BACKBONES, create
from ditlab.backbones.token_share import TokenShare
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.inference.pipeline import Pipeline
from ditlab.training.parallel import Place

SIZES = {"size": (8, 8), "channels": 2, "classes": 3, "learn_variance": True, "depth": 2, "width": 32, "heads": 4}
SIZES |= {"patch": 2}
TEXT = {"classes": 0, "learn_variance": False, "text_length": 5, "text_width": 7}
CLIP = {"size": (4, 8, 8), "learn_variance": False}
NETWORKS = {
    "adaln-zero": {"name": "DiT", "condition_grid": True},
    "rope": {"name": "DiT", "rope": True, "qk_norm": True, "condition": "adaln"},
    "in-context": {"name": "DiT", "condition": "in-context", "rope": True},
    "text in-context": {"name": "DiT", "condition": "in-context", "rope": True, **TEXT},
    "cross-attention": {"name": "DiT", "condition": "cross-attention", **TEXT},
    "LightningDiT": {"name": "LightningDiT"},
    "Skip-DiT": {"name": "Skip-DiT", "depth": 4},
    "MMDiT": {"name": "MMDiT", **TEXT, "pooled_width": 6, "dual_blocks": 1, "qk_norm": True, "position_side": 8},
    "MMDiT with a text block": {"name": "MMDiT", **TEXT, "text_block": True, "condition_grid": True},
    "Flux": {"name": "Flux", **TEXT, "single_depth": 2, "pooled_width": 6},
    "VideoDiT": {"name": "VideoDiT", **CLIP},
    "full VideoDiT": {"name": "VideoDiT", **CLIP, "space_time": "full", "positions": "sincos"},
}
FAMILIES = {"DiT", "LightningDiT", "Skip-DiT", "MMDiT", "Flux", "VideoDiT"}


def network(options):
    """A network in double precision all of whose weights have an effect."""
    torch.manual_seed(0)
    net = create(**SIZES | options).double()
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.2)
    return net


def gradient(net, share):
    """The output of a network, and the gradient of all its weights."""
    net.share_tokens(share)
    generator = torch.Generator().manual_seed(1)
    x, timestep, condition = net.example(3, generator)
    if len(net.size) == 3:  # a time for each frame
        timestep = torch.rand(3, net.size[0], generator=generator)
    out = net(x.double(), timestep, condition)
    (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum().backward()
    found = {name: value.grad for name, value in net.named_parameters() if value.grad is not None}
    net.zero_grad()
    return out.detach(), found


def differences():
    """The largest relative difference of outputs and of gradients for each network."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    share, found = Place(torch.device("cpu"), rank, world).in_sequence(world).token_share(), {}
    for name, options in NETWORKS.items():
        net = network(options)
        (expected, exact), (out, shared) = gradient(net, None), gradient(net, share)
        for value in shared.values():
            dist.all_reduce(value)
            value /= world
        same = exact.keys() == shared.keys()
        largest = max(((exact[key] - shared[key]).norm() / exact[key].norm().clamp(min=1e-6)).item() for key in exact)
        found[name] = (relative(out, expected), largest, same)
    dist.destroy_process_group()
    return found


@posix_only
@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_outputs_and_gradients_are_those_of_one_process(world):
    for found in in_processes(world, differences):
        assert isinstance(found, dict), found
        for name, (output, gradients, same) in found.items():
            assert same, name
            assert output < 1e-12, name
            assert gradients < 1e-10, name


def images():
    """The images that a model generates alone, and with another process, as bytes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    place = Place(torch.device("cpu"), dist.get_rank(), 2).in_sequence(2)
    pipe, found = Pipeline(network({"name": "DiT", "channels": 3, "learn_variance": False}).float(), Objective()), []
    for share in (None, place.token_share()):
        pipe.net.share_tokens(share)
        found.append([image.tobytes() for image in pipe([1, 2], seeds=[3, 4], steps=3, sampler="euler").images])
    dist.destroy_process_group()
    return found


@posix_only
def test_two_processes_generate_the_images_of_one():
    for found in in_processes(2, images):
        assert isinstance(found, list), found
        alone, shared = (torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8).int() for part in found)
        assert alone.float().std() > 10
        assert (alone - shared).abs().max() <= 1  # of 255


def test_which_families_can_share_tokens():
    plain = SimpleNamespace(window=0, exits=())
    assert {name for name, kind in BACKBONES.items() if not kind.undivided.fget(plain)} == FAMILIES


@pytest.mark.parametrize(
    ("options", "count", "problem"),
    [
        ({"name": "DiT"}, 3, "is 3, which does not divide the 4 heads of DiT; give a divisor"),
        ({"name": "DiT", "size": (6, 6)}, 2, "is 2, which does not divide the 9 tokens of DiT at 6x6; give a divisor"),
        ({"name": "VideoDiT", **CLIP}, 8, "is 8, which does not divide the 4 heads"),
        ({"name": "VideoDiT", **CLIP, "size": (3, 8, 8)}, 2, "is 2, which does not divide the 3 frames of VideoDiT at"),
        (
            {"name": "DiT", "window": 2},
            2,
            "is 2, but the tokens of DiT cannot be shared, because they attend in windows; omit it",
        ),
        (
            {"name": "DiT", "exits": (0.5,)},
            2,
            "is 2, but the tokens of DiT cannot be shared, because images leave it early; omit it",
        ),
    ],
)
def test_tokens_and_heads_must_be_divisible(options, count, problem):
    net = create(**SIZES | options)
    with pytest.raises(InputError, match=f"parallel.sequence {problem}"):
        net.share_tokens(TokenShare(0, count))
    assert net.token_share is None


def test_an_input_of_another_size_must_be_divisible():
    net = create(**SIZES | {"name": "DiT"})
    net.share_tokens(TokenShare(0, 4))
    with pytest.raises(InputError, match="4 processes cannot share 10 tokens or frames; give another size"):
        net(torch.zeros(1, 2, 4, 10), torch.zeros(1), torch.zeros(1, dtype=torch.long))
