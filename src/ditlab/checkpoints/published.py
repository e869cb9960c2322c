"""Read and write published checkpoints. Their keys identify the family, and tensor shapes the sizes.

SiT has DiT's keys and shapes, but its time runs from noise to data and its velocity points to the data. Time is
converted by the timestep input of the process, and the sign of the velocity in the weights of the head. REPA trains SiT
with the time and the velocity of ditlab, and with projectors for its alignment loss, by which it is recognized.
"""

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditlab.autoencoders import Absent, Autoencoder, Pixel
from ditlab.backbones import BACKBONES, Backbone, create, name_of
from ditlab.backbones.published import SIT_CLOCK, negated
from ditlab.conditioning import Text
from ditlab.conditioning.encoders import NoEncoder
from ditlab.config.sampling import GUIDANCE_ORIGIN
from ditlab.core.errors import InputError
from ditlab.core.formats import interpreting
from ditlab.core.modules import sizes, skip_init
from ditlab.core.units import counted
from ditlab.core.weights import fit
from ditlab.diffusion.parametrizations import read_objective
from ditlab.diffusion.process import Cosine, Linear
from ditlab.inference.pipeline import Pipeline

REPA_CLOCK = {"clock_rate": 1.0}  # REPA's time runs as ours, and so does its velocity
PATHS = {"linear": "linear", "gvp": "cosine", "cosine": "cosine"}  # SiT's and REPA's names of processes
VELOCITY = ("velocity", "v")  # their names of our target
SIDE = 32  # side of the latents of 256x256 images
GUIDED = 3  # channels that the scripts of DiT and SiT guide
SCRIPTS: dict[str, tuple[str, dict[str, Any]]] = {  # published script of a family, and its guidance
    "DiT": ("facebookresearch/DiT's sample.py", {"guidance": 4.0, "guidance_channels": GUIDED}),
    "SiT": ("facebookresearch/SiT's sample.py", {"guidance": 4.0, "guidance_channels": GUIDED}),
    "REPA": ("sihyun-yu/REPA's generate.py", {"guidance": 1.5}),
    "MMDiT": (
        "Stability-AI/sd3-ref's sd3_infer.py",
        {"guidance": 5.0, "steps": 50, "sampler": "euler", "schedule": "sd3"},
    ),
    "Flux": ("diffusers' FluxPipeline", {"guidance": 3.5, "steps": 28, "sampler": "euler", "schedule": "flux"}),
    "Flux without scale": (
        "FLUX.1 schnell's model card",
        {"guidance": 1.0, "steps": 4, "sampler": "euler", "schedule": "uniform"},
    ),
    "LightningDiT": (
        "hustvl/LightningDiT's configuration",
        {"guidance": 6.7, "guidance_channels": GUIDED, "guidance_interval": [0.0, 0.875]},
    ),
    "Latte": ("Vchitect/Latte's configuration for UCF-101", {"guidance": 7.0}),
    "STDiT3": ("Open-Sora 1.2's configuration", {"guidance": 7.0, "steps": 30, "sampler": "euler"}),
}
SINGLE_FILE = "model.diffusion_model."  # prefix of the network in a file with a whole pipeline
FIRST_STAGE = "first_stage_model."  # prefix of the autoencoder there
LATENTS = {"MMDiT": {"scale": 1.5305, "shift": 0.0609}}  # constants of that autoencoder
PRECISION, HALVES = "file_precision", ("float16", "bfloat16")  # key of a model's config: the precision of its file
HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")


def family_of(tensors: dict[str, Tensor]) -> str:
    """Return the family that has these published keys; "" if there is none."""
    matches = {name: kind.marks for name, kind in BACKBONES.items() if kind.marks and tensors.keys() >= {*kind.marks}}
    return max(matches, key=lambda name: len(matches[name]), default="")


def from_official(
    tensors: dict[str, Tensor],
    source: str,
    *,
    sit: bool | None = False,
    trained: Any = None,
    size: tuple[int, int] | None = None,
    **overrides: Any,
) -> Pipeline:
    """Build a pipeline with published weights, without copying them.

    Args:
        tensors: state dict with published keys.
        source: name of the file, for messages.
        sit: whether these are weights of SiT; None decides by the keys and by `trained`.
        trained: the settings of the training that are saved in a checkpoint, an object with an attribute for each.
        size: input size, if tensor shapes do not determine it, or determine only the number of patches.
        overrides: other arguments of `ditlab.create` that tensor shapes do not determine (heads=, classes=).

    Raises:
        InputError: a size is missing, or the tensors do not fit.
    """
    notes: list[str] = []
    tensors, stated = official_keys(tensors, notes)
    family, flow = recognized(tensors, source, sit, trained)
    kind = BACKBONES[family]
    if flow is None and sit is None and trained is None and family == "DiT":
        notes.append("read as DiT; a state dict does not show whether it is a DiT's or a SiT's: give sit=True for SiT")
    if flow is not None and not hasattr(trained, "path_type"):
        notes.append(f"read as {flow.name} on the path Linear; a state dict does not show its path")
    stored = file_precision(tensors)
    tensors = {key: value.float() for key, value in tensors.items()}  # for files in half precision; no copy otherwise
    with interpreting(source, "download it again", f"does not have the tensors of a {family}"):
        settings = kind.read_sizes(tensors) | stated
    settings |= {key: value for key, value in overrides.items() if value is not None}
    if size is not None:
        settings["size"] = size
    elif "size" not in settings:
        settings["size"] = kind.defaults["size"] if kind.spatial == 3 else (SIDE, SIDE)
        used = "x".join(map(str, settings["size"]))
        notes.append(f"{family} weights do not state the input size; using {used}, give size= for another")
    check_heads(settings, kind, source)
    description = {"time": "uniform", "stratified": False} | kind.read_objective(settings)
    description["learn_variance"] = settings["learn_variance"]
    with interpreting(source, "download it again", f"does not have the tensors of a {family}"):
        tensors = kind.from_published(tensors)
    if flow is not None:
        tensors = as_our_velocity(tensors, flow, settings, description, notes)
    if "classes" not in settings:
        settings["classes"] = guessed_classes(tensors, kind, notes)
    with skip_init(tensors, f"{source} with {sizes(settings)}"):
        net = create(name_of(kind, settings), **settings)
    defaults = script_guidance(net, family if flow is None else flow.name, tensors)
    tensors = with_null(tensors, net, source, notes) | missing_positions(tensors, net)
    net.load_state_dict(fit(tensors, net.state_dict(), source), assign=True)
    config = defaults | stored | ({"note": "; ".join(notes)} if notes else {})
    pipe = Pipeline(net.eval(), read_objective(description), autoencoder_of(net.channels), config=config)
    if net.text:
        pipe.conditioner = Text(NoEncoder(net.text.length, net.text.width, net.text.pooled).config)
    return pipe


def check_heads(settings: dict[str, Any], kind: type[Backbone], source: str) -> None:
    """Check that the number of attention heads is known, if the family has them.

    Raises:
        InputError: it is not.
    """
    if "heads" not in settings and "heads" in inspect.signature(kind).parameters:
        raise InputError(
            f"{source}: depth {settings['depth']} and width {settings['width']} are no published size; "
            "give heads=, the number of attention heads"
        )


def file_precision(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the precision of weights, for the config of the model, if all have the same half precision."""
    names = {str(value.dtype).removeprefix("torch.") for value in tensors.values()}
    return {PRECISION: names.pop()} if len(names) == 1 and names <= {*HALVES} else {}


def official_keys(tensors: dict[str, Tensor], notes: list[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the network of a file that has the keys of a whole pipeline or of diffusers; adds a note.

    Returns:
        Tensors under official keys, and the arguments of `create` that they do not determine.
    """
    network = {key.removeprefix(SINGLE_FILE): value for key, value in tensors.items() if key.startswith(SINGLE_FILE)}
    if network:
        others = Counter(key.split(".")[0] for key in tensors if not key.startswith((SINGLE_FILE, FIRST_STAGE)))
        if others:
            parts = ", ".join(f"{name}.* ({counted(count, 'tensor')})" for name, count in others.items())
            notes.append(f"left out {parts}, which are not the network")
        tensors = network
    for kind in BACKBONES.values():
        if kind.diffusers_marks and tensors.keys() >= {*kind.diffusers_marks}:
            return kind.from_diffusers(tensors, {})
    return tensors, {}


@dataclass(frozen=True)
class Flow:
    """The process of a SiT or REPA checkpoint, whose target is the velocity."""

    process: dict[str, Any]
    name: str
    """"SiT" or "REPA"."""

    @property
    def turned(self) -> bool:
        """Whether time and velocity have the opposite direction."""
        return self.name == "SiT"


def script_guidance(net: Backbone, family: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the guidance of the published script as the model's default, and its origin, for the model's config.

    Empty for families whose script is not known, and for weights without classes or without a null class.
    """
    rows = {len(tensors[key]) for key in tensors.keys() & {*net.label_tables}}
    without_null = not net.text and (net.classes == 0 or rows != {net.classes + 1})
    if family == "Flux" and not net.inputs:
        family = "Flux without scale"
    if family not in SCRIPTS or without_null:
        return {}
    script, guidance = SCRIPTS[family]
    if "guidance_channels" in guidance and net.channels <= GUIDED:  # all channels, which is the default
        guidance = {"guidance": guidance["guidance"]}
    return {"sample": {**guidance}, GUIDANCE_ORIGIN: script}


def recognized(tensors: dict[str, Tensor], source: str, sit: bool | None, trained: Any) -> tuple[str, Flow | None]:
    """Return the family of published weights, and the process if they are SiT's or REPA's.

    Raises:
        InputError: unknown keys, weights that are not SiT's although `sit` is true, or SiT's with another target.
    """
    family = family_of(tensors)
    if not family:
        keys = ", ".join(list(tensors)[:3])
        known = ", ".join(name for name, kind in BACKBONES.items() if kind.marks)
        raise InputError(f"{source} is no known checkpoint (it has {keys}, ...); give weights of {known} or SiT")
    repa = any(key.startswith("projectors.") for key in tensors)
    if sit is not None and (family != "DiT" or repa) and (sit or repa):
        raise InputError(f"{source} holds a {'SiT of REPA' if repa else f'{family} and not SiT'}; leave sit out")
    if not (repa or sit or (sit is None and hasattr(trained, "path_type"))):  # DiT's settings have no path_type
        return family, None
    path, target = (getattr(trained, name, None) for name in ("path_type", "prediction"))
    if str(path or "linear").lower() not in PATHS or (target or VELOCITY[0]) not in VELOCITY:
        raise InputError(
            f"{source} was trained with path_type {path} and prediction {target}; ditlab reads SiT with the paths "
            "Linear and GVP and the prediction velocity"
        )
    process = {"name": PATHS[str(path or "linear").lower()], **(REPA_CLOCK if repa else SIT_CLOCK)}
    return family, Flow(process, "REPA" if repa else "SiT")


def as_our_velocity(
    tensors: dict[str, Tensor], flow: Flow, settings: dict[str, Any], description: dict[str, Any], notes: list[str]
) -> dict[str, Tensor]:
    """Convert SiT's weights to ditlab's velocity; settings, description and notes are changed accordingly."""
    if settings["learn_variance"]:
        notes.append("read from SiT; the second half of its head, which SiT does not use, was removed")
    tensors = tensors | velocity_head(tensors, settings, flow.turned)
    settings["learn_variance"] = False
    description |= {"process": flow.process, "target": "velocity", "learn_variance": False}
    return tensors


def guessed_classes(tensors: dict[str, Tensor], kind: type[Backbone], notes: list[str]) -> int:
    """Return the number of classes, assuming that the class-embedding table has a null class; adds a note."""
    rows = max(len(tensors[key]) for key in kind.label_tables)
    notes.append(
        f"a class-embedding table of {counted(rows, 'row')} is read as {counted(rows - 1, 'class')} and the null "
        f"class; give classes={rows} if it has no null class"
    )
    return rows - 1


def missing_positions(tensors: dict[str, Tensor], net: Backbone) -> dict[str, Tensor]:
    """Return the `computed` buffers of a network that a published file lacks, or has for another size."""
    state = net.state_dict()
    return {key: state[key] for key in net.computed if key not in tensors or tensors[key].shape != state[key].shape}


def with_null(tensors: dict[str, Tensor], net: Backbone, source: str, notes: list[str]) -> dict[str, Tensor]:
    """Add the mean of all rows as null class to class-embedding tables that have none.

    Raises:
        InputError: a table has another number of classes than the network.
    """
    added = {}
    for key in tensors.keys() & {*net.label_tables}:
        rows = len(tensors[key])
        if rows not in (net.classes, net.classes + 1):
            raise InputError(
                f"{source} has a class-embedding table of {counted(rows, 'row')}; give classes={rows - 1} or "
                f"classes={rows}"
            )
        if rows == net.classes:
            added[key] = torch.cat([tensors[key], tensors[key].mean(0, keepdim=True)])
    if added:
        notes.append("the model has no null-class embedding; fine-tune it with label dropout before you use guidance")
    return tensors | added


def velocity_head(tensors: dict[str, Tensor], settings: dict[str, Any], turned: bool) -> dict[str, Tensor]:
    """Convert SiT's head: remove the unused second half of channels, and change the sign of a turned velocity."""
    patch, channels = settings["patch"], settings["channels"]

    def convert(value: Tensor) -> Tensor:
        rows = value.reshape(patch * patch, -1, *value.shape[1:])  # (p p, C or 2 C, ...), channels fastest
        kept = rows[:, :channels].flatten(0, 1)
        return -kept if turned else kept

    return {key: convert(tensors[key]) for key in HEAD}


def autoencoder_of(channels: int) -> Autoencoder:
    """Return the autoencoder for a number of channels: pixels for gray and RGB, otherwise a placeholder."""
    return Pixel() if channels in (1, 3) else Absent()


def in_file_precision(pipe: Pipeline, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in the precision of the file that the model was read from, if that changes no value."""
    name = pipe.config.get(PRECISION)
    if name not in HALVES:
        return tensors
    rounded = {key: value.to(getattr(torch, name)) for key, value in tensors.items()}
    same = all(torch.equal(rounded[key].to(value.dtype), value) for key, value in tensors.items())
    return rounded if same else tensors


def to_official(pipe: Pipeline) -> dict[str, Tensor]:
    """Return the state dict with published keys, and with SiT's velocity for a model of SiT.

    Raises:
        InputError: the published code does not support this model.
    """
    config, kind = pipe.net.config, type(pipe.net)
    if not kind.marks:
        raise InputError(f"{config['name']} has no official layout; convert to ditlab instead")
    objective = pipe.objective
    published = read_objective(kind.read_objective(config) | {"learn_variance": objective.learn_variance})
    if objective.built_in is not None and type(objective) is not type(published):
        raise InputError(
            "a model with guidance built in, such as a flow map, is sampled correctly by ditlab only; convert to ditlab"
        )
    kind.check_published(config)
    tensors = kind.to_published(dict(pipe.net.state_dict()))
    if (objective.process, objective.target) == (published.process, published.target):
        return tensors
    if kind is BACKBONES["DiT"] and objective.target == "velocity":
        if objective.process in (Linear(**SIT_CLOCK), Cosine(**SIT_CLOCK)):
            return negated(tensors, HEAD)
        if objective.process in (Linear(**REPA_CLOCK), Cosine(**REPA_CLOCK)) and config.get("projectors"):
            return tensors
    raise InputError(
        f"the official layout is for {published.target} on {kind.read_objective(config)['process']['name']}, or for "
        "SiT; this model has another objective, with which only ditlab samples correctly; convert to ditlab instead"
    )
