"""Network and decoder as graphs for other runtimes: ONNX, OpenVINO, or torch.export's own file.

    network   x (B, C, H, W) float32, t (B,) float32 (the timestep input of the network), y (B,) int64
              -> output (B, C or 2C, H, W) float32
    decoder   x0 (B, c, h, w) float32 -> images (B, C, H, W) uint8

B is free. The target and process of the output are in config.json beside the graphs.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ditlab.autoencoders import Autoencoder, Latent
from ditlab.core.errors import InputError, RunError, lookup
from ditlab.core.weights import CONFIG
from ditlab.inference.base import BasePipeline, check_autoencoder

Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Arrays], NDArray[Any]]

LARGEST_ERROR = 1e-4  # relative, of an exported network against PyTorch's
LARGEST_STEP = 1  # of 255, of an exported decoder


class Network(nn.Module):
    """The network alone, with its output in float32."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.net(x, t, y).float()


class Decoder(nn.Module):
    """The decoder, constants of the latents included."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x0: Tensor) -> Tensor:
        if isinstance(self.autoencoder, Latent):  # a graph cannot part a batch of free size
            return self.autoencoder.decode_whole(x0)
        return self.autoencoder.decode(x0)


def export(pipe: BasePipeline, folder: Path, kind: str) -> dict[str, float]:
    """Write network and decoder as graphs, and check both against PyTorch at batch sizes that they were not made with.

    Args:
        pipe: the model; layers that its family can merge are merged.
        folder: made, must not exist.
        kind: a name in `KINDS`.

    Returns:
        The largest relative error of the network, and the largest difference of the decoder in steps of 255.

    Raises:
        InputError: a folder that exists, a runtime that is not installed, a model without an autoencoder.
        RunError: a graph that cannot be written, or computes something else; nothing is left in the folder.
    """
    model = pipe.model
    lookup(KINDS, kind, "format")
    if folder.exists():
        raise InputError(f"{folder} exists; give another path")
    check_autoencoder(model)
    if model.net.dynamic_depth:
        raise InputError(
            "an exported graph cannot choose its depth by the timestep; export a model trained without early exit"
        )
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        inputs, most = network_inputs(model, 2), model.net.graph_batch
        network, decoder = Network(model.fused().net.eval()), Decoder(model.autoencoder).eval()
        errors = {
            "network": export_part(model, "network", network, inputs, most, draft, kind),
            "decoder": export_part(model, "decoder", decoder, {"x0": inputs["x"]}, None, draft, kind),
        }
        (draft / CONFIG).write_text(json.dumps(model.describe(), indent=2) + "\n", encoding="utf-8")
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return errors


def export_part(
    pipe: BasePipeline,
    name: str,
    module: nn.Module,
    inputs: dict[str, Tensor],
    largest: int | None,
    draft: Path,
    kind: str,
) -> float:
    """Write one graph; returns its error against PyTorch."""
    write, _ = lookup(KINDS, kind, "format")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the exporters, about each other
        try:
            write(as_program(module, inputs, largest), list(inputs), draft / name)
        except InputError:
            raise
        except Exception as error:  # each exporter has its own kinds
            reason = str(error).strip().partition("\n")[0]
            raise RunError(f"the {name} cannot be written for {kind}: {reason}") from error
    return check(pipe, name, module, runner(draft / name, kind))


def network_inputs(pipe: BasePipeline, batch: int) -> dict[str, Tensor]:
    """Inputs of the network: several timesteps, the null class, and then others."""
    x, t, condition = pipe.net.example(batch, torch.Generator().manual_seed(batch))
    return {"x": x, "t": pipe.objective.process.clock(t.double()).float(), "y": pipe.net.labels(condition)}


def check(pipe: BasePipeline, name: str, module: nn.Module, run: Runner) -> float:
    """The largest error of a written graph at batch sizes that it was not made with."""
    worst = 0.0
    for batch in (1, 5):
        inputs = network_inputs(pipe, batch)
        inputs = inputs if name == "network" else {"x0": inputs["x"]}
        with torch.no_grad():
            expected = module(**inputs).numpy()
        output = run({key: value.numpy() for key, value in inputs.items()})
        if name == "network":
            error = float(np.linalg.norm(output - expected) / max(float(np.linalg.norm(expected)), 1e-30))
        else:
            error = float(np.abs(output.astype(int) - expected.astype(int)).max())
        worst = max(worst, error)
    if not worst <= (LARGEST_ERROR if name == "network" else LARGEST_STEP):
        raise RunError(
            f"the exported {name} differs from PyTorch's by {worst:.2e}; this model cannot be exported to this format"
        )
    return worst


def as_program(module: nn.Module, inputs: dict[str, Tensor], most: int | None) -> torch.export.ExportedProgram:
    """The graph, with a free batch size of at most `most`."""
    batch = torch.export.Dim("batch", min=1, max=most)
    free = {key: {0: batch} for key in inputs}
    return torch.export.export(module, (), kwargs=inputs, dynamic_shapes=free, strict=False)


def write_torch(graph: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    """`torch.export`'s archive."""
    torch.export.save(graph, path.with_suffix(".pt2"))


def write_onnx(graph: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    """An ONNX file; weights above 2 GiB are in a file beside it."""
    try:
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError:
        raise InputError("ONNX needs its libraries; pip install 'ditlab[onnx]'") from None
    program = torch.onnx.export(graph, dynamo=True, verbose=False, input_names=names, output_names=["output"])
    assert program is not None
    program.save(str(path.with_suffix(".onnx")))


def write_openvino(graph: torch.export.ExportedProgram, names: list[str], path: Path) -> None:
    """An .xml file with its weights in a .bin file, as float32."""
    openvino = openvino_library()
    model = openvino.convert_model(graph)
    for port, name in zip(model.inputs, names, strict=True):
        port.get_tensor().set_names({name})
    openvino.save_model(model, path.with_suffix(".xml"), compress_to_fp16=False)


def openvino_library() -> Any:
    """openvino, or an error that says how to install it."""
    try:
        import openvino  # type: ignore[import-untyped]
    except ImportError:
        raise InputError("OpenVINO is not installed; pip install 'ditlab[openvino]'") from None
    return openvino


def runner(path: Path, kind: str) -> Runner:
    """A written graph as a function of named arrays."""
    _, run = lookup(KINDS, kind, "format")
    return run(path)


def run_torch(path: Path) -> Runner:
    """With `torch.export.load`."""
    module = torch.export.load(path.with_suffix(".pt2")).module()

    @torch.no_grad()
    def run(inputs: Arrays) -> NDArray[Any]:
        output: NDArray[Any] = module(**{key: torch.from_numpy(value) for key, value in inputs.items()}).numpy()
        return output

    return run


def run_onnx(path: Path) -> Runner:
    """With ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.with_suffix(".onnx"), providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


def run_openvino(path: Path) -> Runner:
    """With OpenVINO, in float32: its own choice of precision would hide errors of the graph."""
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
