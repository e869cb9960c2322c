"""Export network and decoder as graphs for other runtimes: ONNX, OpenVINO, or a file of torch.export.

    network   x (B, C, H, W) float32, t (B,) float32 (the timestep input of the network), y (B,) int64
              -> output (B, C or 2C, H, W) float32; for text, the fields of the condition take the place of y: tokens
              (B, L, E) float32 or (B, L) int64, mask (B, L) bool, ... with L tokens in each row
    decoder   x0 (B, c, h, w) float32 -> images (B, C, H, W) uint8; for a model of other numbers than 8 bits, float32 in
              the scale of the network, which `values` in config.json converts to the numbers of the training data

For clips, x is (B, C, T, H, W) and the decoder takes frames; frames cannot be given, because t is the same for all.
The batch size B is free. A network with n further inputs takes t (B, 1 + n): the timestep input, then these inputs.
config.json, beside the graphs, contains the target and the process of the network.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ditlab.autoencoders import Autoencoder, Latent
from ditlab.autoencoders.latent import to_uint8
from ditlab.backbones import Backbone
from ditlab.core.errors import InputError, RunError, lookup
from ditlab.core.io import replace_text, replacing, writing
from ditlab.core.types import Condition
from ditlab.core.values import PixelValues
from ditlab.core.weights import CONFIG
from ditlab.inference.base import BasePipeline
from ditlab.inference.finite import check_autoencoder, check_weights
from ditlab.inference.onnx_int8 import quantize, without_stale_shapes
from ditlab.inference.prepared import trial_call

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Arrays], NDArray[Any]]

LARGEST_ERROR = 1e-4  # largest relative error of an exported network, compared with PyTorch
LARGEST_INT8_ERROR = 0.05  # the same for a network in int8
LARGEST_STEP = 1  # largest error of an exported decoder, in units of 1/255


class Network(nn.Module):
    """The network with output in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.net(x, t, y).float()


class TextNetwork(Network):
    """The same for a network that reads text; arguments are the fields of its condition."""

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
        layer_keys: Tensor | None = None,
        layer_values: Tensor | None = None,
    ) -> Tensor:
        text = Condition(tokens=tokens, mask=mask, pooled=pooled, layer_keys=layer_keys, layer_values=layer_values)
        return self.net(x, t, text).float()


class Decoder(nn.Module):
    """The decoder of an autoencoder, including the scale and shift of its latents."""

    def __init__(self, autoencoder: Autoencoder, values: PixelValues) -> None:
        super().__init__()
        self.autoencoder, self.values = autoencoder, values

    def forward(self, x0: Tensor) -> Tensor:
        if isinstance(self.autoencoder, Latent):  # a graph cannot split a batch of free size
            images = self.autoencoder.decode_whole(x0)
            return to_uint8(images) if self.values.eight_bits else images.float()
        return self.autoencoder.decode_as(x0, self.values)


def export(pipe: BasePipeline, folder: Path, kind: str, int8: bool = False) -> dict[str, float]:
    """Write network and decoder as graphs, and compare both with PyTorch at other batch sizes.

    Args:
        pipe: the model; its layers are merged if the family supports it.
        folder: folder to write; must not exist.
        kind: "onnx", "openvino" or "torch".
        int8: quantize the products of the network to int8, except the output layer; ONNX only.

    Returns:
        "network": the largest relative error of the network; "decoder": the largest error of the decoder, in units of
        1/255.

    Raises:
        InputError: the folder exists, the weights are not finite, a runtime is not installed, or the model has no
            autoencoder.
        RunError: a graph cannot be written, or its outputs differ from PyTorch's; the folder is then not written.
    """
    model = pipe.model
    lookup(KINDS, kind, "format")
    if int8 and kind != "onnx":
        raise InputError(f"int8 is for ONNX files, not for {kind}; export to onnx, or leave int8 out")
    if folder.exists():
        raise InputError(f"{folder} exists; give another path")
    check_autoencoder(model)
    check_weights(model)
    if model.net.dynamic_depth:
        raise InputError(
            "the depth of an exported graph cannot depend on the timestep; export a model without early exit"
        )
    with writing(folder), replacing(folder) as draft:
        draft.mkdir()
        inputs, largest = network_inputs(model, 2), model.net.graph_batch
        wrapper = TextNetwork if model.net.text else Network
        network, decoder = wrapper(model.fused().net.eval()), Decoder(model.autoencoder, model.values).eval()
        errors = {
            "network": export_part(model, "network", network, inputs, largest, draft, kind, int8),
            "decoder": export_part(model, "decoder", decoder, {"x0": one_frame(inputs["x"])}, None, draft, kind),
        }
        replace_text(draft / CONFIG, json.dumps(model.describe(), indent=2) + "\n")
    return errors


def export_part(
    pipe: BasePipeline,
    name: str,
    module: nn.Module,
    inputs: dict[str, Tensor],
    largest: int | None,
    draft: Path,
    kind: str,
    int8: bool = False,
) -> float:
    """Write one graph, and return its error compared with PyTorch."""
    write, _ = lookup(KINDS, kind, "format")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by the exporters about each other's functions
        try:
            write(as_program(module, inputs, largest), list(inputs), draft / name)
            if int8:
                quantize((draft / name).with_suffix(".onnx"), output_layers(pipe.net))
        except (InputError, OSError):
            raise
        except Exception as error:  # every exporter has other types of errors
            reason = str(error).strip().partition("\n")[0]
            raise RunError(f"the {name} cannot be written for {kind}: {reason}") from error
    return check(pipe, name, module, runner(draft / name, kind), LARGEST_INT8_ERROR if int8 else LARGEST_ERROR)


def output_layers(net: Backbone) -> list[str]:
    """The output layers of a network, by their names in the graph of `Network`."""
    return [f"net.{name.removesuffix('.weight')}" for name in net.heads_out if name.endswith(".weight")]


def network_inputs(pipe: BasePipeline, batch: int) -> dict[str, Tensor]:
    """Make inputs of the network with different timesteps and labels, starting with the null class, or texts."""
    x, t, condition = trial_call(pipe, batch)
    inputs = {"x": x, "t": t}
    if not pipe.net.text:
        return inputs | {"y": pipe.net.labels(condition)}
    return inputs | {name: value for name, value in condition.parts().items() if isinstance(value, Tensor)}


def one_frame(x: Tensor) -> Tensor:
    """Return images as they are, and the first frame (B, C, H, W) of clips, whose frames are decoded as images."""
    return x if x.ndim == 4 else x[:, :, 0].contiguous()


def check(pipe: BasePipeline, name: str, module: nn.Module, run: Runner, accepted: float = LARGEST_ERROR) -> float:
    """Return the largest error of a written graph at batch sizes other than the one that it was traced with.

    Args:
        pipe: the model.
        name: "network" or "decoder".
        module: what the graph computes.
        run: the graph.
        accepted: largest relative error of a network.

    Raises:
        RunError: the error is too large.
    """
    worst = 0.0
    for batch in (1, 5):
        inputs = network_inputs(pipe, batch)
        inputs = inputs if name == "network" else {"x0": one_frame(inputs["x"])}
        with torch.no_grad():
            expected = module(**inputs).numpy()
        output = run({key: value.numpy() for key, value in inputs.items()})
        if name == "network":
            error = float(np.linalg.norm(output - expected) / max(float(np.linalg.norm(expected)), 1e-30))
        else:
            unit = 1.0 if expected.dtype == np.uint8 else 2 / 255
            error = float(np.abs(output.astype(float) - expected.astype(float)).max()) / unit
        worst = max(worst, error)
    if not worst <= (accepted if name == "network" else LARGEST_STEP):
        raise RunError(
            f"the exported {name} differs from PyTorch's by {worst:.2e}; this model cannot be exported to this format"
        )
    return worst


def as_program(module: nn.Module, inputs: dict[str, Tensor], largest: int | None) -> torch.export.ExportedProgram:
    """Trace the graph of a module, with a free batch size of at most `largest`."""
    batch = torch.export.Dim("batch", min=1, max=largest)
    free = {key: {0: batch} for key in inputs}
    return torch.export.export(module, (), kwargs=inputs, dynamic_shapes=free, strict=False)


def write_torch(graph: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    """Write a .pt2 file of `torch.export`."""
    content = io.BytesIO()  # PyTorch's own writer aborts the process if the disk is full
    torch.export.save(graph, content)
    path.with_suffix(".pt2").write_bytes(content.getbuffer())


def write_onnx(graph: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    """Write an .onnx file; if the weights exceed 2 GiB, they are in a second file."""
    try:
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("ONNX needs its libraries; pip install 'ditlab[onnx]'") from None
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # "no torchvision"
    program = torch.onnx.export(graph, dynamo=True, verbose=False, input_names=names, output_names=["output"])
    assert program is not None
    program.save(str(path.with_suffix(".onnx")))
    without_stale_shapes(path.with_suffix(".onnx"))


def write_openvino(graph: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    """Write an .xml file, and a .bin file with float32 weights."""
    openvino = openvino_library()
    model = openvino.convert_model(graph)
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)


def openvino_library() -> Any:
    """Import openvino.

    Raises:
        InputError: it is not installed.
    """
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError:
        raise InputError("OpenVINO is not installed; pip install 'ditlab[openvino]'") from None
    return openvino


def runner(path: Path, kind: str) -> Runner:
    """Load a written graph as a function of named arrays."""
    _, run = lookup(KINDS, kind, "format")
    return run(path)


def run_torch(path: Path) -> Runner:
    """Load a graph with `torch.export.load`."""
    module = torch.export.load(path.with_suffix(".pt2")).module()

    @torch.no_grad()
    def run(inputs: Arrays) -> NDArray[Any]:
        output: NDArray[Any] = module(**{key: torch.from_numpy(value) for key, value in inputs.items()}).numpy()
        return output

    return run


def run_onnx(path: Path) -> Runner:
    """Load a graph with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def run_openvino(path: Path) -> Runner:
    """Load a graph with OpenVINO in float32, because a lower precision would hide errors of the graph."""
    openvino = openvino_library()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path.with_suffix(".xml"), "CPU", options)
    return lambda inputs: next(iter(compiled(inputs).values()))


Writer = Callable[[torch.export.ExportedProgram, list[str], Path], None]
KINDS: dict[str, tuple[Writer, Callable[[Path], Runner]]] = {
    "torch": (write_torch, run_torch),
    "onnx": (write_onnx, run_onnx),
    "openvino": (write_openvino, run_openvino),
}
