import errno
import json
import os
import sys

import numpy as np
import pytest
import torch
from helpers import inputs, perturbed, tiny_pipeline

from ditlab.autoencoders import create_autoencoder
from ditlab.backbones import create
from ditlab.core.errors import InputError, RunError
from ditlab.core.values import PixelValues
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.objective import Objective
from ditlab.inference import export as exporting
from ditlab.inference.export import export, runner
from ditlab.inference.pipeline import Pipeline

TINY = {
    "DiT": {"width": 32, "depth": 1, "heads": 2, "patch": 2, "qk_norm": True},
    "U-DiT": {"width": 16, "heads": 2, "depths": [1, 1, 1]},
    "U-ViT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "Skip-DiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2, "condition": "in-context"},
    "LightningDiT": {"width": 32, "depth": 1, "heads": 2, "patch": 2},
    "DiMSUM": {"width": 32, "depth": 1, "heads": 4, "patch": 2, "attention_every": 1},
    "FiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "FiTv2": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "DiC": {"width": 16, "depths": [1, 1, 1]},
    "PDE-Transformer": {"width": 16, "heads": 2, "depths": [1, 2, 1], "patch": 1, "window": 4, "periodic": False},
    "Hourglass": {"width": 32, "depth": 2, "heads": 2, "outer": [16], "condition_grid": True},
    "PixArt": {"width": 32, "depth": 1, "heads": 2, "patch": 2, "condition_grid": True},
    "DeepFusion": {"width": 32, "depth": 3, "heads": 4, "kv_heads": 2, "head_width": 8, "patch": 2},
    "ADM": {"width": 16, "multiples": (1, 2), "depth": 1, "attention_at": (2,), "head_width": 16},
    "LDM": {"width": 16, "multiples": (1, 2), "depth": 1, "attention_at": (2,), "head_width": 16},
}


def latent_pipeline(family="DiT", objective=None):
    """A model of a family on the latents of a small autoencoder."""
    torch.manual_seed(0)
    objective = objective or Objective()
    options = {"inputs": objective.inputs, **TINY[family]}
    net = perturbed(create(family, size=8, channels=4, classes=3, learn_variance=False, **options))
    autoencoder = create_autoencoder(kind="patch", picture_channels=3, latent_channels=4, stride=2, width=8, depth=1)
    return Pipeline(net.eval(), objective, perturbed(autoencoder).eval())


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "DiT" else pytest.mark.slow) for name in TINY]
)
def test_every_family_becomes_a_graph_of_any_batch_size(family, tmp_path):
    """Also of a flow map with a free guidance scale, whose network has further inputs."""
    pipe = latent_pipeline(family, FlowMap(guidance=(1.0, 2.0)) if family == "Hourglass" else None)
    errors = export(pipe.prepared("bfloat16"), tmp_path / "graph", "torch")  # the model itself, as it was saved
    assert errors["network"] < 1e-5
    assert errors["decoder"] <= 1
    x, t, y = exporting.network_inputs(pipe, 7).values()
    assert t.shape == ((7, 3) if family == "Hourglass" else (7,))
    run = runner(tmp_path / "graph" / "network", "torch")
    found = run({"x": x.numpy(), "t": t.numpy(), "y": y.numpy()})
    with torch.no_grad():
        expected = pipe.net(x, t, y).numpy()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-5
    assert json.loads((tmp_path / "graph" / "config.json").read_text())["objective"]["target"] == "velocity"


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_other_runtimes_compute_the_same(kind, family, tmp_path):
    pytest.importorskip("openvino" if kind == "openvino" else "onnxruntime")
    errors = export(latent_pipeline(family), tmp_path / "graph", kind)
    assert errors["network"] < 1e-5
    assert errors["decoder"] <= 1


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setitem(exporting.KINDS, "torch", (lambda *args: None, lambda path: lambda arrays: 0 * arrays["x"]))
    with pytest.raises(RunError, match="the exported network differs from PyTorch's by 1"):
        export(tiny_pipeline(), tmp_path / "graph", "torch")
    assert list(tmp_path.iterdir()) == []

    def refuse(*args):
        raise ValueError("this operator is not there\nand much more")

    monkeypatch.setitem(exporting.KINDS, "torch", (refuse, None))
    with pytest.raises(RunError, match=r"the network cannot be written for torch: this operator is not there$"):
        export(tiny_pipeline(), tmp_path / "graph", "torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setitem(exporting.KINDS, "torch", (full, None))
    with pytest.raises(InputError, match=r"cannot write .*graph: No space left on device; free some space"):
        export(tiny_pipeline(), tmp_path / "graph", "torch")
    assert list(tmp_path.iterdir()) == []


def test_graphs_are_tried_without_a_label_too():
    pipe = tiny_pipeline(classes=3)
    assert [exporting.network_inputs(pipe, count)["y"].tolist() for count in (1, 5)] == [[3], [3, 0, 1, 2, 3]]


@pytest.mark.slow
def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"exists; give another path"):
        export(tiny_pipeline(), tmp_path, "torch")
    with pytest.raises(InputError, match="unknown format"):
        export(tiny_pipeline(), tmp_path / "new", "tensorflow")
    for kind, library in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(InputError, match=rf"pip install 'ditlab\[{kind}\]'"):
            export(tiny_pipeline(), tmp_path / "new", kind)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_decoder_of_other_values_returns_floats(tmp_path):
    pipe = latent_pipeline()
    pipe.autoencoder = perturbed(
        create_autoencoder(kind="patch", picture_channels=13, latent_channels=4, stride=2, width=8, depth=1)
    ).eval()
    pipe.values = PixelValues("uint16", (0.0,), (4095.0,))
    assert export(pipe, tmp_path / "graph", "torch")["decoder"] <= 1e-3
    x0 = inputs(pipe.net, 3)[0]
    images = runner(tmp_path / "graph" / "decoder", "torch")({"x0": x0.numpy()})
    assert images.dtype == np.float32
    assert np.abs(images - pipe.decode(x0).numpy()).max() < 1e-5
    config = json.loads((tmp_path / "graph" / "config.json").read_text())
    assert PixelValues.read(config["values"]) == pipe.values
