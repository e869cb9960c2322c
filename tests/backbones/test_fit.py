import pytest
import torch
from helpers import inputs, perturbed, relative

import ditlab
from ditlab.backbones import BACKBONES, create
from ditlab.checkpoints import convert
from ditlab.core.errors import InputError
from ditlab.diffusion.process import DDPM, Linear
from ditlab.evaluation import measure

TINY = {"channels": 3, "classes": 3, "learn_variance": False, "width": 32, "depth": 2, "heads": 2}


@pytest.fixture(params=[("FiT", "fit_v1"), ("FiTv2", "fit_v2")], ids=lambda pair: pair[0])
def published(request, golden):
    """The family, a published state dict, and its inputs and output as sequences (B, N, values)."""
    family, name = request.param
    vectors = golden(name)
    state = {k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")}
    if family == "FiT":
        vectors |= {"x": vectors["x"].transpose(1, 2), "out": vectors["out"].transpose(1, 2)}
    else:
        vectors |= {"out": -vectors["out"]}  # its velocity points to the data
    return family, state, vectors


def as_image(tokens, h, w):
    """Patches (N, C p p), positions fastest, as an image (1, C, 2 h, 2 w)."""
    return torch.nn.functional.pixel_shuffle(tokens.T.unflatten(1, (h, w)), 2)[None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "millions", "gmacs"),
    [("FiT-XL/2", 823.6, 156.7), ("FiTv2-XL/2", 671.0, 152.3)],
)
def test_cost_agrees_with_the_published_code(name, millions, gmacs):
    cost = measure(lambda: create(name, learn_variance=name.startswith("FiT-")))
    assert cost.parameters == pytest.approx(millions * 1e6, rel=1e-4)
    assert cost.gmacs == pytest.approx(gmacs, rel=1e-3)


def test_published_numbers_of_padded_batches_of_several_sizes(published):
    family, state, vectors = published
    kind = BACKBONES[family]
    net = create(family, size=8, heads=3, **kind.read_sizes(state))
    net.load_state_dict(kind.from_published(state))
    where = vectors["grid"].flip(1)
    with torch.no_grad():
        out = net.forward_tokens(vectors["x"], vectors["t"], vectors["y"], where, vectors["mask"].bool())
    channels_last = vectors["out"].unflatten(2, (-1, 4)).transpose(2, 3).flatten(2)
    assert relative(out, channels_last) < 1e-5


def test_published_numbers_of_single_images_through_every_layout(published, tmp_path):
    family, state, vectors = published
    torch.save(state, tmp_path / "theirs.pt")
    for i, (h, w) in enumerate(vectors["sizes"].tolist()):
        pipe = ditlab.load(tmp_path / "theirs.pt", heads=3, size=(2 * h, 2 * w))
        x, t, y = as_image(vectors["x"][i, : h * w], h, w), vectors["t"][i : i + 1], vectors["y"][i : i + 1]
        with torch.no_grad():
            assert relative(pipe.net(x, t, y), as_image(vectors["out"][i, : h * w], h, w)) < 1e-5
    process = Linear(clock_rate=-1.0, clock_start=1.0) if family == "FiTv2" else DDPM()
    assert pipe.net.config["name"] == family
    assert pipe.objective.process == process
    convert(pipe, tmp_path / "official", "official")
    back = torch.load(tmp_path / "official")
    assert back.keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in back.items())


def test_the_second_version_is_distinguished_from_the_first(published):
    family, state, _ = published
    assert ditlab.checkpoints.published.family_of(state) == family


@pytest.mark.parametrize("family", ["FiT", "FiTv2"])
def test_a_list_of_images_of_several_sizes_equals_them_one_by_one(family):
    net = perturbed(create(family, size=8, **TINY))
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, *size, generator=generator) for size in ((8, 8), (4, 12), (10, 6))]
    t, y = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 2, 1])
    together = net.forward_packed(images, t, y)
    alone = [net(image[None], t[i : i + 1], y[i : i + 1])[0] for i, image in enumerate(images)]
    assert all(relative(part, single) < 1e-5 for part, single in zip(together, alone, strict=True))
    gradients = []
    for outputs in (together, alone):
        net.zero_grad()
        sum(part.square().sum() for part in outputs).backward()
        gradients.append([value.grad for value in net.parameters()])
    assert all(relative(a, b) < 1e-5 for a, b in zip(*gradients, strict=True) if b.abs().max() > 1e-6)


def test_a_size_that_patches_do_not_divide_is_one_line_in_a_list_too():
    net = create("FiT", size=8, **TINY)
    with pytest.raises(InputError, match=r"size 9x8; sides must be multiples of 2: give 8x8, the nearest one"):
        net.forward_packed([torch.zeros(3, 9, 8)], torch.zeros(1), torch.zeros(1, dtype=torch.long))


@pytest.mark.parametrize("family", ["FiT", "FiTv2"])
def test_initial_output_is_zero_and_weights_fit_any_size(family):
    torch.manual_seed(0)
    net = create(family, size=8, **TINY)
    assert torch.equal(net(*inputs(net)), torch.zeros(2, 3, 8, 8))
    other = perturbed(create(family, size=(4, 12), **TINY))
    net.load_state_dict(other.state_dict())
    x = torch.randn(1, 3, 8, 8)
    early, late = (net(x, torch.tensor([t]), torch.tensor([1])) for t in (100.0, 900.0))
    assert relative(early, late) > 1e-3  # the published code clamps the timestep of the first version at 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 9}, "size 9x9 is not divisible by patch 2; choose another size or patch"),
        ({"heads": 3}, r"width 32 with 3 heads; give a multiple of 12 \(positions in two dimensions\)"),
    ],
)
def test_sizes_that_do_not_fit_together_are_rejected(options, message):
    with pytest.raises(InputError, match=message):
        create("FiT", **{"size": 8} | TINY | options)


def test_other_variants_are_rejected_in_a_line(published):
    family, state, _ = published
    state["blocks.0.attn.q_norm.weight"] = torch.ones(16)
    with pytest.raises(InputError, match=r"FiT with norms of its own \(blocks.0.attn.q_norm.weight\) is not supported"):
        BACKBONES[family].from_published(state)


def test_unknown_heads_are_asked_for(published, tmp_path):
    _, state, _ = published
    torch.save(state, tmp_path / "theirs.pt")
    with pytest.raises(InputError, match="are no published size; give heads=, the number of attention heads"):
        ditlab.load(tmp_path / "theirs.pt")
