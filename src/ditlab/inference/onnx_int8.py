"""Quantize an exported ONNX file: int8 weights with a scale for each output channel, inputs quantized in every call.

The inputs of a product have one scale for all their numbers, as ONNX Runtime's operators require. So, unlike in
`inference.optimize.quantized`, an image depends slightly on the other images of its batch.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCOPES = "pkg.torch.onnx.name_scopes"  # where PyTorch's exporter notes the modules of a node
EXTERNAL = ".onnx.data"  # suffix of the second file of weights, for models of more than 2 GiB


def without_stale_shapes(file: Path) -> None:
    """Remove what an ONNX file says about the shapes of its weights beside the weights themselves.

    PyTorch's exporter writes it. Tools that transpose weights, such as ONNX Runtime's quantization, leave it as it is,
    and then the shapes contradict each other.
    """
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    onnx.save(model, str(file))


def quantize(file: Path, unchanged: Iterable[str]) -> None:
    """Quantize all products with weights in an ONNX file, which is replaced.

    Args:
        file: the .onnx file.
        unchanged: names of layers that are not quantized.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    external = file.with_suffix(EXTERNAL)
    graph, target = onnx.load(str(file), load_external_data=False).graph, file.with_name(f"int8-{file.name}")
    kept = [node.name for node in graph.node if any(f"'{name}'" in scopes(node) for name in unchanged)]
    kept += [f"{name}_MatMul" for name in kept]  # quantization first replaces Gemm nodes by these
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # an advice to optimize the file first, which the exporter has done
    try:
        quantize_dynamic(
            str(file), str(target), weight_type=QuantType.QInt8, per_channel=True, nodes_to_exclude=kept,
            op_types_to_quantize=["MatMul", "Gemm"], extra_options={"MatMulConstBOnly": True},
            use_external_data_format=external.exists(),
        )  # fmt: skip
    finally:
        logging.disable(level)
    if external.exists():  # the new file names its own second file
        external.unlink()
    target.replace(file)


def scopes(node: Any) -> str:
    """The names of the modules of a node, outer ones first, as a list in Python's notation."""
    return "".join(entry.value for entry in node.metadata_props if entry.key == SCOPES)
