import pytest
import torch
from helpers import inputs, perturbed, relative

from ditlab import cli
from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.evaluation import measure

TINY = {"size": 16, "channels": 3, "classes": 3, "width": 16, "multiples": [1, 2], "depth": 1, "attention_at": [2]}


@pytest.mark.parametrize(
    ("name", "options", "millions", "gmacs", "tokens"),
    [
        ("ADM-64", {"size": 64, "channels": 3}, 295.9, None, 1024),
        ("ADM-128", {"size": 128, "channels": 3}, 421.5, 307, 1024),
        pytest.param("ADM-256", {"size": 256, "channels": 3}, 553.8, 1120, 1024, marks=pytest.mark.slow),
        pytest.param("ADM-512", {"size": 512, "channels": 3}, 559.0, 1983, 1024, marks=pytest.mark.slow),
        ("LDM-4", {"size": 64, "channels": 3, "learn_variance": False}, 400.9, 104, 1024),
        ("LDM-8", {"size": 32, "channels": 4, "learn_variance": False}, 395.0, 57, 1024),
    ],
)
def test_cost_agrees_with_the_papers(name, options, millions, gmacs, tokens):
    cost = measure(lambda: create(name, **options))
    assert cost.parameters == pytest.approx(millions * 1e6, rel=2e-3)
    assert gmacs is None or cost.gmacs == pytest.approx(gmacs, rel=5e-3)
    assert cost.tokens == tokens


@pytest.mark.parametrize("family", ["ADM", "LDM"])
def test_initial_output_is_zero_and_residual_branches_are_the_identity(family):
    net = create(family, **TINY, head_width=16)
    out = net(*inputs(net))
    assert torch.equal(out, torch.zeros(2, 6, 16, 16))
    block = net.net.mid_block.resnets[0]
    x = torch.randn(2, 32, 8, 8)
    assert torch.equal(block(x, torch.randn(2, 64)), x)
    attention = net.net.mid_block.attentions[0]
    same = attention(x) if family == "ADM" else attention(x, torch.randn(2, 1, 512)).sample
    assert torch.equal(same, x)


@pytest.mark.parametrize("family", ["ADM", "LDM"])
def test_only_the_named_grids_attend(family):
    def attending(options):
        net = perturbed(create(family, **TINY | options, head_width=16))
        return sum("to_q.weight" in name for name, _ in net.named_parameters())

    both = 2 if family == "LDM" else 1  # self- and cross-attention in each of LDM's
    assert attending({"attention_at": []}) == both  # the middle
    assert attending({"attention_at": [2]}) == both * (1 + 1 + 2)
    assert attending({"attention_at": [1, 2]}) == both * (1 + 2 + 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": (16, 15)}, "size 16x15 is not divisible by 2; give fewer multiples"),
        ({"attention_at": [3]}, "attention_at 3; give some of the factors 1, 2"),
        ({"head_width": 12}, "16 channels cannot be split into heads of 12"),
        ({"head_width": 64}, "16 channels cannot be split into heads of 64"),
        ({"multiples": []}, "multiples 0"),
        ({"width": 0}, "width 0"),
        ({"heads": 2}, 'ADM has no option "heads"'),
    ],
)
def test_mistakes_name_value_and_remedy(options, words):
    with pytest.raises(InputError, match=words):
        create("ADM", **TINY | {"head_width": 16} | options)


@pytest.mark.slow
def test_a_library_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(InputError, match=r"U-Nets need diffusers; pip install 'ditlab\[unet\]'"):
        create("LDM-8")
    monkeypatch.setattr("ditlab.backbones.names", lambda: ["DiT-XL/2", "LDM-8"])
    monkeypatch.setattr("sys.argv", ["ditlab", "info"])
    cli.main()
    said = capsys.readouterr()
    assert "LDM-8 is not listed: U-Nets need diffusers" in said.err
    assert "DiT-XL/2" in said.out
    assert "LDM" not in said.out


def test_the_label_enters_by_cross_attention_alone():
    net = perturbed(create("LDM", **TINY, head_width=16))
    x, t, _ = inputs(net)
    with torch.no_grad():
        net.label_embedding.weight[1] = net.label_embedding.weight[0]
        assert relative(net(x, t, torch.tensor([1, 1])), net(x, t, torch.tensor([0, 0]))) == 0
