import json
import sys
import types

import pytest
import torch
from helpers import perturbed, relative
from huggingface_hub import ModelCard

import ditlab
from ditlab.backbones import BACKBONES, create
from ditlab.core.errors import InputError
from ditlab.diffusion.objective import Objective
from ditlab.inference.export import export
from ditlab.inference.optimize.quantized import eligible, missing
from ditlab.inference.pipeline import Pipeline
from ditlab.inference.prepared import PreparedPipeline, trial_call

SMALL = {
    "DiT": {"width": 32, "depth": 1, "heads": 2, "patch": 2},
    "U-DiT": {"width": 16, "heads": 2, "depths": [1, 1, 1]},
    "U-ViT": {"width": 32, "depth": 3, "heads": 2, "patch": 2},
    "Skip-DiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "LightningDiT": {"width": 32, "depth": 1, "heads": 2, "patch": 1},
    "DiMSUM": {"width": 32, "depth": 1, "heads": 4, "patch": 2, "attention_every": 1},
    "FiT": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "FiTv2": {"width": 32, "depth": 2, "heads": 2, "patch": 2},
    "DiC": {"width": 16, "depths": [1, 1, 1]},
    "PDE-Transformer": {"width": 16, "heads": 2, "depths": [1, 1, 1], "patch": 1, "window": 4},
    "Hourglass": {"width": 32, "depth": 2, "heads": 2, "outer": [16], "condition_grid": True},
    "ADM": {"width": 16, "multiples": (1, 2), "depth": 1, "attention_at": (2,), "head_width": 16},
    "LDM": {"width": 16, "multiples": (1, 2), "depth": 1, "attention_at": (2,), "head_width": 16},
}
needs_int8 = pytest.mark.skipif(missing("int8", torch.device("cpu")) is not None, reason="needs AVX-512 VNNI")


@pytest.fixture(params=BACKBONES)
def pipe(request):
    torch.manual_seed(0)
    options = SMALL.get(request.param)
    if options is None:
        pytest.skip(f"no small network of {request.param} here")
    net = perturbed(create(request.param, size=8, channels=1, classes=3, learn_variance=False, **options), 0.05)
    return Pipeline(net.eval(), Objective(), classes=["a", "b", "c"], config={"sample": {"steps": 3}})


def latents(pipe):
    return pipe(["a", 1, None], seeds=[0, 1, 2], output_type="latent").images


def fake_hub(monkeypatch, uploads):
    class Api:
        def create_repo(self, repository, **options):
            return f"hub/{repository}"

        def upload_folder(self, repo_id, folder_path, delete_patterns):
            uploads.append(ditlab.load(folder_path))

    hub = types.ModuleType("huggingface_hub")
    hub.HfApi, hub.ModelCard = Api, ModelCard
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_prepared_model_is_saved_and_described_as_the_model(pipe, precision, tmp_path, monkeypatch):
    expected, identity, description = latents(pipe), pipe.identity(), pipe.describe()
    ready = pipe.prepared(precision)
    assert isinstance(ready, PreparedPipeline)
    assert ready.net.precision == precision
    assert relative(latents(ready), expected) < (1e-4 if precision == "float32" else 0.2)
    assert ready.model.identity() == identity
    assert ready.model.describe() == description
    loaded = ditlab.load(ready.model.save(tmp_path / "model"))
    assert loaded.identity() == identity
    assert torch.equal(latents(loaded), expected)
    uploads = []
    fake_hub(monkeypatch, uploads)
    assert ready.model.push_to_hub("me/model") == "hub/me/model"
    assert torch.equal(latents(uploads[0]), expected)
    with pytest.raises(AttributeError):
        ready.save(tmp_path / "other")


@needs_int8
@torch.no_grad()
def test_all_families_with_linear_layers_run_in_int8(pipe):
    if not eligible(pipe.net, "int8"):
        pytest.skip("a network without linear layers in its blocks")
    call, weights = trial_call(pipe, 2), pipe.model.identity()
    ready = pipe.prepared("int8")
    assert ready.net.precision == "int8"
    assert 0 < relative(ready.net(*call), pipe.net(*call)) < 0.05
    assert pipe.model.identity() == weights
    assert ready.prepared("float32").net.precision == "float32"


@pytest.mark.slow
def test_a_prepared_model_is_exported_as_the_model(pipe, tmp_path):
    errors = export(pipe.prepared("bfloat16"), tmp_path / "graph", "torch")
    assert errors["network"] < 1e-5
    saved = json.loads((tmp_path / "graph" / "config.json").read_text())
    assert saved == json.loads(json.dumps(pipe.describe()))


def test_precisions(pipe):
    pipe.net.config = {"name": "any"}  # the width of its products has no name
    assert str(pipe.prepared("auto").dtype) in ("torch.float32", "torch.bfloat16")
    with pytest.raises(InputError, match='unknown precision "float16"'):
        pipe.prepared("float16")
