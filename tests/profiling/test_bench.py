import json
import time

import pytest
import torch
from helpers import smooth, tiny_pipeline
from rich.console import Console

from ditlab.backbones import create
from ditlab.checkpoints.diffusers import as_diffusers
from ditlab.config.sampling import QUALITIES
from ditlab.core.errors import InputError
from ditlab.diffusion.flow_map import FlowMap
from ditlab.diffusion.next_state import NextState
from ditlab.diffusion.objective import Objective
from ditlab.inference.optimize.quantized import missing
from ditlab.inference.optimize.timing import interleaved
from ditlab.inference.pipeline import Pipeline
from ditlab.profiling import bench as benchmark
from ditlab.profiling.bench import drift, preset_calls

QUIET = Console(quiet=True)


def test_variants_run_in_turns_and_the_first_round_warms_up():
    order = []

    def work(name, seconds):
        def run():
            order.append(name)
            time.sleep(0.2 if len(order) <= 2 else seconds)

        return run

    seconds = interleaved({"a": work("a", 0.01), "b": work("b", 0.03)}, 3)
    assert order == ["a", "b"] * 4
    assert 0.01 <= seconds["a"] < 0.03 <= seconds["b"] < 0.2


@pytest.mark.slow
def test_network_calls_are_counted_as_they_are_made():
    pipe = tiny_pipeline()
    pipe.config["sample"] = {"guidance": 2.0, "interval": [0.0, 0.45]}
    for name in QUALITIES:
        seen = 0

        def count(net, arguments):
            nonlocal seen
            seen += len(arguments[0])

        handle = pipe.net.blocks[0].register_forward_pre_hook(count)
        pipe([0], preset=name)
        handle.remove()
        assert pipe.resolve(preset=name).evaluations == seen > 0


@pytest.mark.slow
def test_diffusers_computes_the_same_network():
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    net = create("DiT-S/4", size=8, classes=5, width=32, depth=2, heads=2, frequency_shift=1).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([0.0, 10.0, 999.0]), torch.tensor([0, 4, 5])
    with torch.no_grad():
        expected, output = net(x, t, y), as_diffusers(net)(x, timestep=t.long(), class_labels=y).sample
    error = (output - expected).norm() / expected.norm()
    assert error < 1e-5
    with pytest.raises(InputError, match="diffusers has no equivalent of U-ViT-S/2"):
        as_diffusers(create("U-ViT-S/2", size=8))


@pytest.mark.slow
def test_all_variants_are_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "machine_peaks", lambda *args: ({"float32": 100.0, "bfloat16": 20.0}, 10.0))
    result = benchmark.bench(tiny_pipeline(), QUIET, batch=2, rounds=1, compile=False, against=["torch"])
    assert list(result.forward) == ["baseline", "float32", "torch"]
    assert all(0 <= timing.error < 1e-5 for timing in result.forward.values())
    assert benchmark.fastest(result.forward) in ("baseline", "float32")
    assert result.forward["baseline"].against == result.training["baseline"].against == 1
    assert result.forward["baseline"].gflops == pytest.approx(4 * result.gmacs / result.forward["baseline"].seconds)
    assert result.presets["reference"]["seconds"] > result.presets["draft"]["seconds"] > 0
    assert result.limit.partition(" (")[0] in ("compute", "memory bandwidth", "overhead")
    assert all(table.row_count for table in benchmark.tables(result))


def test_one_precision_of_a_flow_map_is_measured(monkeypatch):
    """A flow map has no presets."""
    monkeypatch.setattr(benchmark, "machine_peaks", lambda *args: ({"float32": 100.0, "bfloat16": 400.0}, 10.0))
    objective = FlowMap(guidance=(1.0, 1.0))
    pipe = tiny_pipeline(objective=objective, inputs=objective.inputs)
    pipe.config["sample"] = {"sampler": "map", "steps": 1}
    options = {"batch": 2, "rounds": 1, "compile": False, "training": False}
    result = benchmark.bench(pipe, QUIET, precision="float32", **options)
    assert list(result.forward) == ["baseline", "float32"]
    assert result.forward["float32"].error < 1e-5
    assert list(result.presets) == ["model default"]
    assert result.presets["model default"]["calls"] == 1
    assert all(table.row_count for table in benchmark.tables(result))
    with pytest.raises(InputError) as error:
        benchmark.bench(pipe, QUIET, precision="int8", **options)
    line = "bench does not measure int8 on this device; choose from: auto, float32, bfloat16"
    assert str(error.value) == line


@pytest.mark.skipif(missing("int8", torch.device("cpu")) is not None, reason="needs AVX-512 VNNI")
def test_int8_is_measured(monkeypatch):
    peaks = {"float32": 100.0, "bfloat16": 20.0, "int8": 400.0}
    monkeypatch.setattr(benchmark, "machine_peaks", lambda *args: (peaks, 10.0))
    result = benchmark.bench(tiny_pipeline(), QUIET, batch=2, rounds=1, compile=False, training=False)
    assert list(result.forward) == ["baseline", "float32", "int8"]
    assert 0 < result.forward["int8"].error < 0.05
    assert [benchmark.precision_of(name) for name in ("int8", "bfloat16, compiled", "onnx")] == [
        "int8",
        "bfloat16",
        "float32",
    ]


def test_drift_is_the_error_that_feature_caching_would_make():
    pipe = smooth(tiny_pipeline())
    coarse, fine = (drift(pipe, 4, {"num_inference_steps": steps, "sampler": "ab4"}) for steps in (8, 32))
    assert [row["t"] for row in coarse] == pytest.approx([i / 8 for i in range(7, 0, -1)])
    means = [sum(row["kept"] for row in rows[4:]) / len(rows[4:]) for rows in (coarse, fine)]
    assert means[1] < means[0] / 2
    assert fine[-1]["continued"] < fine[-1]["kept"]
    assert json.dumps(coarse)


def test_networks_that_read_text_are_measured():
    options = {"width": 32, "depth": 1, "heads": 2, "patch": 2, "text_length": 3, "vocabulary": 5}
    net = create("DiT", size=8, channels=1, classes=0, learn_variance=False, **options).eval()
    pipe = Pipeline(net, Objective())
    inputs = benchmark.example(pipe, 2)
    dtypes = {"float32": torch.float32}
    variants = dict(benchmark.forward_variants(pipe, inputs, dtypes, False, [], QUIET))
    assert [*variants] == ["baseline", "float32"]
    with torch.no_grad():
        assert torch.allclose(variants["baseline"](), variants["float32"](), atol=1e-5)


def test_what_a_model_makes_is_called_by_its_name():
    state = tiny_pipeline(objective=NextState())
    assert (state.noun, preset_calls(state)) == ("state", {"next state": 1})
    assert tiny_pipeline().noun == "image"
