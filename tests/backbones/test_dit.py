import pytest
import torch
from helpers import relative

from ditlab.backbones import create, names
from ditlab.backbones.layers import PatchEmbed, unpatchify
from ditlab.backbones.positions import sincos_positions
from ditlab.core.errors import InputError
from ditlab.evaluation import measure

CONDITIONS = ("in-context", "cross-attention", "adaln", "adaln-zero")

# Peebles & Xie 2023, Table 4: GMACs (printed there as Gflops) and millions of parameters.
PUBLISHED = {
    "DiT-S/8": (0.36, 33), "DiT-S/4": (1.41, 33), "DiT-S/2": (6.06, 33),
    "DiT-B/8": (1.42, 131), "DiT-B/4": (5.56, 130), "DiT-B/2": (23.01, 130),
    "DiT-L/8": (5.01, 459), "DiT-L/4": (19.70, 458), "DiT-L/2": (80.71, 458),
    "DiT-XL/8": (7.39, 676), "DiT-XL/4": (29.05, 675), "DiT-XL/2": (118.64, 675),
}  # fmt: skip


def close(value, printed, digits):
    """Within 0.5% of a printed value, or within its rounding."""
    return abs(value - printed) <= max(0.005 * printed, 0.51 * 10**-digits)


@pytest.mark.parametrize(
    "name",
    # XL/2 is measured with each of the four conditionings below.
    [
        pytest.param(name, marks=() if name in ("DiT-S/2", "DiT-B/4", "DiT-L/8") else pytest.mark.slow)
        for name in PUBLISHED
    ],
)
def test_cost_agrees_with_the_paper(name):
    cost = measure(lambda: create(name))
    gmacs, millions = PUBLISHED[name]
    assert close(cost.gmacs, gmacs, 2)
    assert close(cost.parameters / 1e6, millions, 0)


@pytest.mark.parametrize(
    ("condition", "gmacs", "millions", "tokens"),
    [
        ("in-context", 119.37, 449, 258),
        ("cross-attention", 137.62, 598, 256),
        ("adaln", 118.56, 600, 256),
        ("adaln-zero", 118.64, 675, 256),
    ],
)
def test_cost_of_the_four_conditionings(condition, gmacs, millions, tokens):
    cost = measure(lambda: create("DiT-XL/2", condition=condition))
    assert close(cost.gmacs, gmacs, 2)
    assert close(cost.parameters / 1e6, millions, 0)
    assert cost.tokens == tokens
    assert cost.gflops == 2 * cost.gmacs


def test_all_twelve_names():
    assert set(names()) >= set(PUBLISHED)


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("dit_p2", {"size": 8, "channels": 4, "classes": 10, "width": 48, "patch": 2, "depth": 2, "heads": 4}),
        (
            "dit_p4_rgb_nosigma",
            {"size": 16, "channels": 3, "classes": 5, "width": 32, "patch": 4, "depth": 1, "heads": 2}
            | {"learn_variance": False},
        ),
    ],
)
def test_published_weights_give_published_numbers(golden, file, options):
    vectors = golden(file)
    net = create("DiT-S/2", **options)
    net.load_state_dict({k.removeprefix("state."): v for k, v in vectors.items() if k.startswith("state.")})
    x, t, y = vectors["x"], vectors["t"], vectors["y"]
    with torch.no_grad():
        assert relative(net(x, t, y), vectors["out"]) < 1e-5
        assert relative(net(x, t, torch.full_like(y, net.classes)), vectors["out_null"]) < 1e-5


@pytest.mark.parametrize("condition", CONDITIONS)
def test_initial_output_is_exactly_zero(condition):
    net = create("DiT-S/4", size=(8, 12), channels=3, classes=2, condition=condition, width=32, depth=2, heads=2)
    out = net(torch.randn(2, 3, 8, 12), torch.tensor([1.0, 900.0]), torch.tensor([0, 2]))
    assert out.shape == (2, 6, 8, 12)
    assert torch.equal(out, torch.zeros_like(out))


def test_weights_are_initialized_as_published():
    net = create("DiT-S/2", depth=1)
    width, state = 384, net.state_dict()

    def xavier(rows, columns):
        return (2 / (rows + columns)) ** 0.5

    for key, deviation in {
        "blocks.0.attn.qkv.weight": xavier(3 * width, width),
        "blocks.0.mlp.fc1.weight": xavier(4 * width, width),
        "x_embedder.proj.weight": xavier(width, 16),  # as a matrix, not as a convolution
        "t_embedder.mlp.0.weight": 0.02,
        "t_embedder.mlp.2.weight": 0.02,
        "y_embedder.embedding_table.weight": 0.02,
    }.items():
        assert state[key].std().item() == pytest.approx(deviation, rel=0.03), key
    assert all(value.abs().sum() == 0 for key, value in state.items() if key.endswith("bias"))
    for key in ("final_layer.linear", "final_layer.adaLN_modulation.1", "blocks.0.adaLN_modulation.1"):
        assert state[f"{key}.weight"].abs().sum() == 0


def test_adaln_zero_block_is_the_identity_at_initialisation():
    block = create("DiT-S/2", size=8, width=32, depth=1, heads=2).blocks[0]
    x = torch.randn(2, 16, 32)
    assert torch.equal(block(x, torch.randn(2, 32)), x)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_time_label_and_every_weight_matter(condition, qk_norm):
    net = create("DiT-S/2", size=4, classes=3, condition=condition, qk_norm=qk_norm, width=32, depth=2, heads=2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x, t, y = torch.randn(4, 4, 4, 4), torch.tensor([10.0, 300.0, 600.0, 900.0]), torch.tensor([0, 1, 2, 3])
    out = net(x, t, y)
    assert (net(x, t + 50, y) - out).abs().amax() > 1e-3
    assert (net(x, t, y.flip(0)) - out).abs().amax() > 1e-3
    out.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_qk_norm_bounds_the_logits():
    net = create("DiT-S/2", size=4, qk_norm=True, width=32, depth=1, heads=2)
    attention = net.blocks[0].attn
    q, k, _ = attention.qkv(1e3 * torch.randn(1, 4, 32)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
    for normalised in (attention.q_norm(q), attention.k_norm(k)):
        assert torch.allclose(normalised.square().mean(-1), torch.ones(1, 2, 4), atol=1e-4)


def test_unpatchify_inverts_patchify():
    patch, h, w = 2, 3, 4
    embed = PatchEmbed(patch, 3, patch * patch * 3)
    # A projection that only reorders: channel fastest, then column, then row of the patch.
    weight = torch.eye(patch * patch * 3).reshape(patch, patch, 3, patch, patch, 3).permute(0, 1, 2, 5, 3, 4)
    embed.proj.weight.data = weight.reshape(-1, 3, patch, patch)
    embed.proj.bias.data.zero_()
    x = torch.randn(2, 3, h * patch, w * patch)
    assert torch.equal(unpatchify(embed(x), h, w, patch), x)


def test_positions_encode_the_column_first():
    table = sincos_positions(2, 3, 8)[0]
    angles = torch.tensor([2.0, 0.02])  # column 2, frequencies 1 and 1/100
    assert torch.allclose(table[2, :4], torch.cat([angles.sin(), angles.cos()]))
    assert torch.allclose(table[2, 4:], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert torch.allclose(table[3, 4:6], torch.tensor([1.0, 0.01]).sin())


def test_unconditional_network_has_only_the_null_label():
    net = create("DiT-S/2", size=4, classes=0, width=32, depth=1, heads=2)
    y = torch.zeros(2, dtype=torch.long)
    assert (y == net.classes).all()
    assert net.y_embedder.embedding_table.num_embeddings == 1


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("DiT-XXL/2", {}, 'did you mean "DiT-XL/2"'),
        ("DiT-S/3", {}, "unknown model"),
        ("DiT-S/2", {"size": 9}, "size 9x9 is not divisible by patch 2"),
        ("DiT-S/2", {"size": (8, 0)}, "width 0"),
        ("DiT-S/2", {"heads": 7}, "width 384 must be divisible by heads 7"),
        ("DiT-S/2", {"depth": 0}, "depth 0"),
        ("DiT-S/2", {"classes": -1}, "-1 classes"),
        ("DiT-S/2", {"condition": "adaln-zer"}, 'did you mean "adaln-zero"'),
        ("DiT-S/2", {"head": 3}, 'did you mean "heads"'),
    ],
)
def test_mistakes_name_value_and_remedy(name, options, words):
    with pytest.raises(InputError, match=words):
        create(name, **options)


def test_wrong_input_size_is_rejected():
    net = create("DiT-S/2", size=4, channels=3, width=32, depth=1, heads=2)
    with pytest.raises(InputError, match="input of 1x8x8 for a network made for 3x4x4"):
        net(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long))


@pytest.mark.slow
def test_config_creates_the_same_network_again():
    net = create("DiT-B/4", size=(8, 16), classes=3, depth=2, condition="cross-attention", qk_norm=True)
    again = create(**net.config | {"size": tuple(net.config["size"])})
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in net.state_dict().items()}
    assert again.config == net.config
