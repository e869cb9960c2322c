"""Further inputs of networks: the second time of flow maps, and the guidance scale."""

import pytest
import torch
from helpers import perturbed, relative

from ditlab.backbones import create
from ditlab.core.errors import InputError
from ditlab.inference.optimize.modulation import tabulated


def made(family, names, **options):
    torch.manual_seed(0)
    shape = {"size": 8, "channels": 3, "classes": 3, "learn_variance": False}
    return create(family, **shape, **options, inputs=names).eval()


DIT = {"width": 32, "depth": 2, "heads": 2, "patch": 2}


def test_modulations_are_precomputed_for_pairs_of_times():
    net = perturbed(made("DiT", ("interval",), **DIT))
    rows = torch.tensor([[1000.0, 0.5], [500.0, 0.5], [500.0, 0.25]])
    quick = tabulated(net, rows, torch.tensor([0, 2]))
    x, y = torch.randn(3, 3, 8, 8), torch.tensor([2, 0, 2])
    with torch.no_grad():
        assert relative(quick(x, rows, y), net(x, rows, y)) < 1e-6
        swapped = quick(x, rows[[0, 2, 1]], y)
    assert relative(swapped, quick(x, rows, y)) > 1e-4


def test_bad_input():
    for names, line in (
        (("speed",), 'unknown further input "speed"; choose from: interval, guidance, scale'),
        (("guidance", "guidance"), "further inputs guidance, guidance; give each once"),
    ):
        with pytest.raises(InputError) as error:
            made("DiT", names, **DIT)
        assert str(error.value) == line
    pytest.importorskip("diffusers")
    with pytest.raises(InputError) as error:
        made("ADM", ("interval",), width=16, multiples=[1], depth=1, attention_at=[1], head_width=16)
    assert str(error.value) == (
        "ADM does not embed its timestep with a TimeEmbedder, so that it cannot take further inputs (interval); use "
        "another family"
    )
