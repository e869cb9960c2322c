"""Networks for clips as graphs of other runtimes."""

import pytest
import torch
from helpers import perturbed, relative

from ditlab.backbones import create
from ditlab.diffusion.objective import Objective
from ditlab.inference.export import export, runner
from ditlab.inference.pipeline import Pipeline


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Latte", "STDiT3", "VideoDiT", "ClipHourglass"])
def test_networks_for_clips_become_graphs(family, tmp_path):
    torch.manual_seed(0)
    sizes = {"depth": 2, "width": 32, "heads": 2, "patch": 2, "classes": 3, "channels": 1, "learn_variance": False}
    pipe = Pipeline(perturbed(create(family, size=(2, 8, 8), **sizes), 0.05).eval(), Objective())
    export(pipe, tmp_path / "graph", "torch")
    x, t, y = torch.randn(3, 1, 2, 8, 8), torch.tensor([10.0, 500.0, 900.0]), torch.tensor([0, 1, 3])
    run = runner(tmp_path / "graph" / "network", "torch")
    out = torch.from_numpy(run({"x": x.numpy(), "t": t.numpy(), "y": y.numpy()}))
    with torch.no_grad():
        assert relative(out, pipe.net(x, t, y)) < 1e-5
    frames = runner(tmp_path / "graph" / "decoder", "torch")({"x0": x[:, :, 0].contiguous().numpy()})
    assert torch.equal(torch.from_numpy(frames), pipe.decode(x[:, :, :1])[:, :, 0])
