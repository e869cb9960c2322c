import pytest
import torch
from helpers import tiny_pipeline

from ditlab.backbones import create
from ditlab.inference.optimize import modulation
from ditlab.inference.optimize.modulation import Table, tabulated

FAMILIES = {
    "DiT-S/4": {"width": 32, "depth": 2, "heads": 2},
    "Skip-DiT-S/4": {"width": 32, "depth": 3, "heads": 2},
    "DiMSUM-B/2": {"width": 32, "depth": 2, "heads": 4, "patch": 2, "attention_every": 2},
    "FiT-XL/2": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "FiTv2-XL/2": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "DiC-S": {"width": 16, "depths": [1, 1, 1]},
    "PDE-Transformer-S": {"width": 16, "heads": 2, "depths": [1, 1, 1], "patch": 1, "window": 8},
    "U-DiT-S": {"width": 16, "heads": 2, "depths": [1, 1, 1, 1, 1]},
}


def network(name, **options):
    torch.manual_seed(0)
    net = create(name, size=16, channels=2, classes=5, **(FAMILIES.get(name, {}) | options)).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize("name", FAMILIES)
def test_tables_change_nothing(name):
    net = network(name)
    clock, labels = torch.tensor([999.0, 500.25, 3.0]), torch.tensor([5, 0, 3, 3])
    quick = tabulated(net, clock, labels)
    assert sum(isinstance(module, Table) for module in quick.modules()) == sum(
        key.endswith("adaLN_modulation.1.weight") for key in net.state_dict()
    )
    x, y = torch.randn(4, 2, 16, 16), torch.tensor([0, 5, 3, 0])
    with torch.no_grad():
        for t in clock:
            expected = net(x, t.expand(4), y)
            assert (quick(x, t.expand(4), y) - expected).norm() / expected.norm() < 1e-6


def test_weights_are_shared_and_the_network_stays_as_it_is():
    net = network("DiT-S/4")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    quick = tabulated(net, torch.tensor([1.0]), torch.tensor([0]))
    assert quick.blocks[0].attn.qkv.weight is net.blocks[0].attn.qkv.weight
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_networks_without_modulations_and_tables_that_are_too_large_are_left_alone(monkeypatch):
    clock, labels = torch.tensor([1.0, 2.0]), torch.tensor([0, 1])
    plain = network("DiT-S/4", condition="in-context")
    assert tabulated(plain, clock, labels) is plain
    net = network("DiT-S/4")
    outputs = 2 * 6 * 32 + 2 * 32  # of two blocks and the last layer
    monkeypatch.setattr(modulation, "LARGEST", 4 * outputs * 4)
    assert tabulated(net, clock, labels) is not net
    monkeypatch.setattr(modulation, "LARGEST", 4 * outputs * 4 - 1)
    assert tabulated(net, clock, labels) is net


@pytest.mark.parametrize("sampler", ["ddpm", "heun", "ab4", "dpmpp", "sde"])
def test_samplers_use_times_of_their_schedule_only(sampler, monkeypatch):
    pipe = tiny_pipeline()
    options = {"seeds": [3, 4], "num_inference_steps": 4, "sampler": sampler, "guidance_scale": 2.0}
    quick = pipe([0, 2], output_type="latent", **options).images
    monkeypatch.setattr("ditlab.inference.extras.tabulated", lambda net, clock, labels: net)
    assert torch.allclose(quick, pipe([0, 2], output_type="latent", **options).images, atol=1e-5)
