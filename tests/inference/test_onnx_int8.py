import numpy as np
import pytest
import torch
from helpers import perturbed, tiny_pipeline

from ditlab.backbones import create
from ditlab.core.errors import InputError, RunError
from ditlab.diffusion.objective import Objective
from ditlab.inference import export as exporting
from ditlab.inference.export import export, output_layers
from ditlab.inference.onnx_int8 import SCOPES, quantize, without_stale_shapes
from ditlab.inference.pipeline import Pipeline

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def two_layers(file):
    """Write x (B, 64) -> (B, 96) -> (B, 8) as PyTorch's exporter does, with the shapes of the weights written twice."""
    chance = np.random.default_rng(0)
    sizes = {"first": (96, 64), "last": (8, 96)}
    weights = {name: chance.standard_normal(size).astype(np.float32) / 10 for name, size in sizes.items()}
    nodes = []
    for name, before, after in (("first", "x", "hidden"), ("last", "hidden", "output")):
        node = onnx.helper.make_node("Gemm", [before, name], [after], name=f"node_{name}", transB=1)
        scope = onnx.StringStringEntryProto(key=SCOPES, value=f"['', 'net', 'net.{name}', 'linear']")
        node.metadata_props.append(scope)
        nodes.append(node)
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "graph",
        [onnx.helper.make_tensor_value_info("x", kind, ["batch", 64])],
        [onnx.helper.make_tensor_value_info("output", kind, ["batch", 8])],
        [onnx.numpy_helper.from_array(weight, name) for name, weight in weights.items()],
        value_info=[onnx.helper.make_tensor_value_info(name, kind, size) for name, size in sizes.items()]
        + [onnx.helper.make_tensor_value_info("hidden", kind, ["batch", 96])],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), str(file))


def run(file, x):
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_a_file_is_quantized_except_for_some_layers(tmp_path, caplog):
    file = tmp_path / "network.onnx"
    two_layers(file)
    x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    expected = run(file, x)
    without_stale_shapes(file)
    assert [value.name for value in onnx.load(str(file)).graph.value_info] == ["hidden"]
    onnx.shape_inference.infer_shapes(onnx.load(str(file)), check_type=True, strict_mode=True)
    assert np.array_equal(run(file, x), expected)
    quantize(file, ["net.last"])
    graph = onnx.load(str(file)).graph
    types = {node.op_type for node in graph.node}
    assert {"MatMulInteger", "DynamicQuantizeLinear", "MatMul"} <= types
    assert {tensor.name: onnx.numpy_helper.to_array(tensor).dtype for tensor in graph.initializer}["last"] == np.float32
    bound = 0.02 if torch.cpu._is_vnni_supported() else 0.1  # other CPUs add products in 16 bits, which overflow
    assert 1e-4 < np.linalg.norm(run(file, x) - expected) / np.linalg.norm(expected) < bound
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]
    assert not caplog.records


def test_output_layers_have_the_names_of_the_graph():
    assert output_layers(tiny_pipeline().net) == ["net.final_layer.linear"]


def test_bad_input(tmp_path):
    for kind in ("openvino", "torch"):
        with pytest.raises(
            InputError, match=rf"^int8 is for ONNX files, not for {kind}; export to onnx, or leave int8"
        ):
            export(tiny_pipeline(), tmp_path / "new", kind, int8=True)


@pytest.mark.slow
def test_a_network_in_int8_is_a_quarter_as_large(tmp_path, monkeypatch):
    net = perturbed(create("DiT-S/2", size=16, classes=3, learn_variance=False, width=128, depth=2, heads=2), 0.05)
    pipe = Pipeline(net.eval(), Objective())
    pipe.autoencoder = tiny_pipeline().autoencoder
    whole = export(pipe, tmp_path / "whole", "onnx")
    model = onnx.load(str(tmp_path / "whole" / "network.onnx"))
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(model, full_check=True)
    assert not {value.name for value in model.graph.value_info} & {tensor.name for tensor in model.graph.initializer}
    small = export(pipe, tmp_path / "small", "onnx", int8=True)
    assert whole["network"] < 1e-5 < 1e-4 < small["network"] < 0.01
    sizes = [(tmp_path / name / "network.onnx").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < 0.32 * sizes[0]
    monkeypatch.setattr(exporting, "LARGEST_INT8_ERROR", 1e-6)
    with pytest.raises(RunError, match="the exported network differs from PyTorch's by"):
        export(pipe, tmp_path / "none", "onnx", int8=True)
    assert not (tmp_path / "none").exists()
