"""A backbone from outside the package: other words for its sizes, names of layers that mean something else."""

import math

import pytest
import torch
from torch import nn

from ditlab.backbones import BACKBONES, Backbone, create
from ditlab.checkpoints.native import load_folder
from ditlab.config.sections import Optim
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.inference.optimize.modulation import tabulated
from ditlab.inference.optimize.packing import packed
from ditlab.inference.pipeline import Pipeline
from ditlab.training.optim import make_optimizer, muon_matrices


class Scan(nn.Module):
    """A layer with a parameter (D, N) that is no weight matrix, such as Mamba's A_log."""

    def __init__(self, dim):
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(dim, 4))
        self.adaLN_modulation = nn.Linear(dim, dim)  # reads the image, not the condition
        self.t_embedder = nn.Linear(dim, dim)

    def forward(self, x):
        x = x + self.t_embedder(torch.tanh(self.adaLN_modulation(x)))
        return x * (-self.A_log.exp()).exp().mean(1)


class Foreign(Backbone):
    """Its sizes are called dim and layers.

    Args:
        dim: channels inside.
        layers: how many.
        mode: a choice.
    """

    label_tables = ("label.weight",)

    def __init__(self, *, size, channels, classes, learn_variance, dim: int = 16, layers: int = 2, mode: str = "a"):
        super().__init__(size, channels, classes, learn_variance)
        self.enter, self.leave = nn.Linear(channels, dim), nn.Linear(dim, self.out_channels)
        self.label, self.time = nn.Embedding(classes + 1, dim), nn.Linear(1, dim)
        self.parts = nn.ModuleList([Scan(dim) for _ in range(layers)])

    @classmethod
    def variants(cls):
        return {}

    @property
    def tokens(self):
        return math.prod(self.size)

    @property
    def repeated(self):
        return list(self.parts)

    def forward(self, x, timestep, condition, *, trace=None):
        self.check_input(x)
        c = self.time(timestep[:, None].to(self.dtype) / 1000) + self.label(self.labels(condition))
        x = self.enter(x.to(self.dtype).flatten(2).transpose(1, 2)) + c[:, None]
        for part in self.parts:
            x = part(x)
        return self.leave(x).transpose(1, 2).unflatten(2, self.size)


class Frames(Foreign):
    """The same for videos."""

    spatial = 3


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(BACKBONES, "Foreign", Foreign)
    monkeypatch.setitem(BACKBONES, "Frames", Frames)


def foreign(name="Foreign", size=8):
    torch.manual_seed(0)
    return create(name, size=size, channels=3, classes=3, learn_variance=False, dim=16, layers=2)


def test_it_is_prepared_samples_and_is_saved(tmp_path):
    pipe = Pipeline(foreign().eval(), Objective())
    options = {"seeds": [0, 1], "num_inference_steps": 3, "guidance_scale": 2.0, "output_type": "latent"}
    expected = pipe([0, 2], **options).images
    for precision in ("auto", "float32", "bfloat16"):
        images = pipe.prepared(precision)([0, 2], **options).images
        assert (images - expected).norm() / expected.norm() < (0.05 if precision != "float32" else 1e-5)
    pipe.save(tmp_path / "model")
    assert torch.equal(load_folder(tmp_path / "model")([0, 2], **options).images, expected)


def test_layers_with_familiar_names_are_ordinary_layers():
    net = foreign().eval()
    assert net.modulations() == []
    assert net.embedders() == ((), ())
    assert tabulated(net, torch.tensor([1.0]), torch.tensor([0])) is net
    assert {net.parts[0].adaLN_modulation, net.parts[0].t_embedder, net.time} <= {*net.packable()}
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([1.0, 2.0]), torch.tensor([0, 3])
    with torch.no_grad():
        assert torch.allclose(packed(net)(x, t, y), net(x, t, y), atol=1e-6)
    assert net.matrix_width == 16


def test_other_parameters_get_neither_weight_decay_nor_muon():
    net = foreign()
    decay, others, muon = net.parameter_groups()
    logs = {id(part.A_log) for part in net.parts}
    assert logs <= {id(p) for p in others.parameters}
    assert not logs & {id(p) for p in (*decay.parameters, *muon.parameters)}
    assert {id(net.parts[0].adaLN_modulation.weight)} <= {id(p) for p in muon.parameters}
    assert len(muon_matrices(net, Optim(name="muon"))) == 4
    for name in ("adamw", "muon"):
        groups = make_optimizer(net, Optim(name=name, weight_decay=0.1)).param_groups
        assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
        assert {id(p) for group in groups if group["weight_decay"] for p in group["params"]}.isdisjoint(logs)


def test_groups_that_leave_out_a_parameter_are_an_error(monkeypatch):
    monkeypatch.setattr(Foreign, "parameter_groups", lambda self: Backbone.parameter_groups(self)[:1])
    with pytest.raises(InputError, match=r"omit enter\.bias"):
        make_optimizer(foreign(), Optim())


def test_classes_that_lack_something_are_named_in_one_line(monkeypatch):
    class Half(Foreign):
        forward = Backbone.forward

    class Narrow(Foreign):
        def __init__(self, size, channels):
            raise AssertionError("never called")

    for kind, words in ((Half, '"Mine" has no forward; Half must'), (Narrow, "does not take classes, learn_variance")):
        monkeypatch.setitem(BACKBONES, "Mine", kind)
        with pytest.raises(InputError, match=words):
            create("Mine", size=8)
    for name, words in (
        ("nowhere:Net", "cannot import nowhere: ModuleNotFoundError"),
        ("math:pi", '"math:pi" is no subclass of'),
        ("math:net", 'module math has no "net"; it has'),
    ):
        with pytest.raises(InputError, match=words):
            create(name)


def test_shapes_have_as_many_sides_as_the_family_takes():
    assert foreign("Frames", (2, 4, 8)).shape == (3, 2, 4, 8)
    net = foreign("Frames", (2, 4, 8))
    assert net(*net.example(2)).shape == (2, 3, 2, 4, 8)
    with pytest.raises(InputError, match=r"size 2x4x8 for Foreign; give \(height, width\)"):
        foreign(size=(2, 4, 8))
    with pytest.raises(InputError, match=r"size 8x8 for Frames; give \(frames, height, width\)"):
        foreign("Frames")
    with pytest.raises(InputError, match="input of 3x4x8 for a network made for 3x8x8"):
        foreign()(torch.zeros(1, 3, 4, 8), torch.zeros(1), torch.zeros(1).long())
