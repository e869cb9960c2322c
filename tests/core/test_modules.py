import copy

import torch
from torch import nn

from ditlab.core.modules import skip_init, with_modules


def test_modules_are_created_without_random_numbers():
    before = torch.get_rng_state()
    with skip_init():
        net = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(2, 2, 3), nn.Embedding(3, 4), nn.LayerNorm(4))
        nn.init.trunc_normal_(torch.full((5,), 1e9))  # which would repeat for ever
        filled = torch.ones(3)
        assert nn.init.constant_(filled, 2.0) is filled
    assert torch.equal(filled, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), before)
    assert [tuple(p.shape) for p in net[0].parameters()] == [(4, 3), (4,)]
    torch.manual_seed(0)
    assert nn.Linear(3, 4).weight.abs().sum() > 0
    assert not torch.equal(torch.get_rng_state(), before)


def test_copies_have_other_modules_and_share_what_is_asked_for():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    other = nn.Identity()
    again = with_modules(net, {net[1]: other}, shared=net[0].parameters())
    assert again[1] is other
    assert isinstance(net[1], nn.ReLU)
    assert again[0] is not net[0]
    assert again[0].weight is net[0].weight
    assert again[2].weight is not net[2].weight
    assert torch.equal(again[2].weight, net[2].weight)
    weight = nn.Parameter(torch.zeros(3, 3))
    assert with_modules(net, {net[2].weight: weight})[2].weight is weight
    assert copy.deepcopy(net)[1] is not net[1]
