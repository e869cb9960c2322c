import pytest
import torch
from helpers import inputs, perturbed, tiny_pipeline

from ditlab.backbones import create, names
from ditlab.backbones.layers import unpatchify
from ditlab.checkpoints.published import family_of
from ditlab.evaluation import measure
from ditlab.training.init_from import summary, transfer

TINY = {"size": 8, "channels": 3, "classes": 3, "width": 32, "depth": 4, "heads": 2, "patch": 2}


def test_cost_agrees_with_the_paper():
    skip, plain = (measure(lambda name=name: create(name)) for name in ("Skip-DiT-XL/2", "DiT-XL/2"))
    assert skip.parameters == pytest.approx(712.4e6, rel=5e-3)
    assert skip.gmacs - plain.gmacs == pytest.approx(9.5, abs=0.05)
    assert skip.gmacs == pytest.approx(128.2, rel=5e-3)
    assert skip.tokens == plain.tokens == 256


def test_names_are_those_of_dit():
    assert {name for name in names() if name.startswith("Skip-")} == {
        f"Skip-{name}" for name in names() if name.startswith("DiT-")
    }


def test_initial_output_is_zero_and_skips_keep_the_initialisation_of_torch():
    net = create("Skip-DiT-S/2", depth=2)
    out = net(*inputs(net))
    assert out.shape == (2, 8, 32, 32)
    assert torch.equal(out, torch.zeros_like(out))
    linear = net.skip_linears[0].linear
    bound = 1 / 768**0.5  # uniform within it
    assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert linear.weight.abs().amax() <= bound
    assert linear.bias.abs().sum() > 0
    assert (net.skip_norms[0].weight == 1).all()
    assert net.skip_norms[0].eps == 1e-6


@pytest.mark.parametrize(
    ("depth", "joins"),
    [(4, {2: 1, 3: 0}), (5, {3: 1, 4: 0})],  # block that joins -> block whose output it joins
)
def test_each_block_joins_its_mirror_image(depth, joins):
    net = perturbed(create("Skip-DiT", **TINY | {"depth": depth}))
    x, t, y = inputs(net)
    c = net.t_embedder(t) + net.y_embedder(y)
    z, outputs = net.x_embedder(x) + net.pos_embed, []
    for i, block in enumerate(net.blocks):
        if i in joins:
            j = list(joins).index(i)
            z = net.skip_linears[j].linear(net.skip_norms[j](torch.cat([z, outputs[joins[i]]], -1)))
        z = block(z, c)
        outputs.append(z)
    assert len(net.skip_linears) == len(joins)
    expected = unpatchify(net.final_layer(z, c), 4, 4, 2)
    assert torch.allclose(net(x, t, y), expected, atol=1e-5)


def test_keys_are_published_and_those_of_a_dit_with_the_skips():
    net, plain = create("Skip-DiT", **TINY), create("DiT", **TINY)
    assert family_of(net.state_dict()) == "Skip-DiT"
    assert family_of(plain.state_dict()) == "DiT"
    new = {f"skip_norms.{j}.{part}" for j in (0, 1) for part in ("weight", "bias")}
    new |= {f"skip_linears.{j}.linear.{part}" for j in (0, 1) for part in ("weight", "bias")}
    assert net.state_dict().keys() - plain.state_dict().keys() == new
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert (set(missing), unexpected) == (new, [])


def test_fine_tuning_starts_from_a_plain_dit():
    source = tiny_pipeline()  # a DiT
    net = create(**source.net.config | {"name": "Skip-DiT-S/2", "size": source.net.size})
    changes = transfer(net, source.classes, source)
    assert summary(changes) == {"kept": len(source.net.state_dict()), "new": 4}
    assert all(change.name.startswith("skip_") for change in changes if change.fate == "new")
    for key, value in source.net.state_dict().items():
        assert torch.equal(net.state_dict()[key], value)
