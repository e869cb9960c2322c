"""Published checkpoints: the family follows from the keys, sizes from tensor shapes; each backbone has its own layout.

SiT has DiT's keys and shapes, but its time runs from noise to data and its velocity points to the data. Both are
converted here: time by the timestep input of the process, the sign in the weights of the head.
"""

from typing import Any

import torch
from torch import Tensor

from ditlab.autoencoders import Absent, Autoencoder, Pixel
from ditlab.backbones import BACKBONES, Backbone, create, name_of
from ditlab.core.errors import InputError
from ditlab.core.modules import skip_init
from ditlab.core.weights import fit
from ditlab.diffusion.objective import read_objective
from ditlab.diffusion.process import Linear
from ditlab.inference.pipeline import Pipeline

SIT_CLOCK = {"clock_rate": -1.0, "clock_start": 1.0}  # its timestep input is 1 - t, unscaled
SIDE = 32  # latents of 256x256 images
HEAD = ("final_layer.linear.weight", "final_layer.linear.bias")


def family_of(tensors: dict[str, Tensor]) -> str:
    """The family whose published keys these are; "" if there is none."""
    fitting = {name: kind.marks for name, kind in BACKBONES.items() if kind.marks and tensors.keys() >= {*kind.marks}}
    return max(fitting, key=lambda name: len(fitting[name]), default="")


def from_official(
    tensors: dict[str, Tensor], source: str, *, sit: bool = False, size: tuple[int, int] | None = None, **overrides: Any
) -> Pipeline:
    """A pipeline around published weights, which are used as they are, without a copy.

    Args:
        tensors: state dict under published keys.
        source: the name of the file in messages.
        sit: whether these are weights of SiT.
        size: of the input, where shapes do not determine it, or determine only the number of patches.
        overrides: other arguments of `ditlab.create` that shapes do not determine (heads=, classes=).

    Raises:
        InputError: sizes that must be given, or tensors that do not fit.
    """
    family = recognized(tensors, source, sit)
    kind, notes = BACKBONES[family], []
    tensors = {key: value.float() for key, value in tensors.items()}  # for files in half precision; no copy otherwise
    settings = kind.read_sizes(tensors) | {key: value for key, value in overrides.items() if value is not None}
    if size is not None:
        settings["size"] = size
    elif "size" not in settings:
        settings["size"] = (SIDE, SIDE)
        notes.append(f"{family} weights do not state the input size; using {SIDE}x{SIDE}, give size= for another")
    if "heads" not in settings:
        raise InputError(
            f"{source}: depth {settings['depth']} and width {settings['width']} are no published size; "
            "give heads= (--heads), the number of attention heads"
        )
    description = kind.read_objective(settings) | {"time": "uniform", "stratified": False}  # all were trained so
    description["learn_variance"] = settings["learn_variance"]
    tensors = kind.from_published(tensors)
    if sit:
        tensors = as_our_velocity(tensors, settings, description, notes)
    if "classes" not in settings:
        settings["classes"] = guessed_classes(tensors, kind, notes)
    with skip_init():
        net = create(name_of(kind, settings), **settings)
    tensors = with_null(tensors, net, source, notes)
    net.load_state_dict(fit(tensors, net.state_dict(), source), assign=True)
    config = {"note": "; ".join(notes)} if notes else {}
    return Pipeline(net.eval(), read_objective(description), autoencoder_of(settings["channels"]), config=config)


def recognized(tensors: dict[str, Tensor], source: str, sit: bool) -> str:
    """The family of published weights.

    Raises:
        InputError: unknown keys, or weights of another family than SiT's.
    """
    family = family_of(tensors)
    if not family:
        keys = ", ".join(list(tensors)[:3])
        known = ", ".join(name for name, kind in BACKBONES.items() if kind.marks)
        raise InputError(f"{source} is no known checkpoint (it has {keys}, ...); give weights of {known} or SiT")
    if sit and family != "DiT":
        raise InputError(f"{source} holds a {family}, which SiT is not; leave sit out")
    return family


def as_our_velocity(
    tensors: dict[str, Tensor], settings: dict[str, Any], description: dict[str, Any], notes: list[str]
) -> dict[str, Tensor]:
    """SiT's weights for our velocity; settings, description and notes are changed to match."""
    if settings["learn_variance"]:
        notes.append("read from SiT; the second half of its head, which SiT never used, was dropped")
    tensors = tensors | turn_sit_head(tensors, settings)
    settings["learn_variance"] = False
    process = {"name": "linear", **SIT_CLOCK}
    description |= {"process": process, "target": "velocity", "learn_variance": False}
    return tensors


def guessed_classes(tensors: dict[str, Tensor], kind: type[Backbone], notes: list[str]) -> int:
    """The number of classes, if the class-embedding table has a row for the null class; a note says so."""
    rows = max(len(tensors[key]) for key in kind.label_tables)
    notes.append(
        f"a class-embedding table of {rows} rows is read as {rows - 1} classes and the null class; "
        f"give classes={rows} (--classes) if it has no null class"
    )
    return rows - 1


def with_null(tensors: dict[str, Tensor], net: Backbone, source: str, notes: list[str]) -> dict[str, Tensor]:
    """Class-embedding tables with a row for the null class, which is the mean of all if they have none.

    Raises:
        InputError: tables of another number of classes.
    """
    added = {}
    for key in tensors.keys() & {*net.label_tables}:
        rows = len(tensors[key])
        if rows not in (net.classes, net.classes + 1):
            raise InputError(
                f"{source} has a class-embedding table of {rows} rows; give classes={rows - 1} or {rows} (--classes)"
            )
        if rows == net.classes:
            added[key] = torch.cat([tensors[key], tensors[key].mean(0, keepdim=True)])
    if added:
        notes.append("it has no null-class embedding; fine-tune it with label dropout before you use guidance")
    return tensors | added


def turn_sit_head(tensors: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, Tensor]:
    """SiT's head without its unused second half of channels, and with the sign of our velocity."""
    patch, channels = settings["patch"], settings["channels"]

    def turn(value: Tensor) -> Tensor:
        rows = value.reshape(patch * patch, -1, *value.shape[1:])  # (p p, C or 2 C, ...), channels fastest
        return -rows[:, :channels].flatten(0, 1)

    return {key: turn(tensors[key]) for key in HEAD}


def autoencoder_of(channels: int) -> Autoencoder:
    """Pixels for gray and RGB; otherwise latents, of an autoencoder that is absent."""
    return Pixel() if channels in (1, 3) else Absent()


def to_official(pipe: Pipeline) -> dict[str, Tensor]:
    """The state dict under published keys, with SiT's sign for a model of SiT.

    Raises:
        InputError: a model that the published code cannot run.
    """
    config, kind = pipe.net.config, type(pipe.net)
    if not kind.marks:
        raise InputError(f"{config['name']} has no official layout; convert to ditlab instead")
    for key, value in kind.published.items():
        given = config.get(key)
        if given is not None and (given or False) != (value or False):
            raise InputError(
                f"the official code of {config['name']} has {key} = {value} only, and this model {given}; "
                "convert to ditlab instead"
            )
    tensors = kind.to_published(dict(pipe.net.state_dict()))
    objective = pipe.objective
    published = read_objective(kind.read_objective(config) | {"learn_variance": objective.learn_variance})
    if (objective.process, objective.target) == (published.process, published.target):
        return tensors
    if kind is BACKBONES["DiT"] and (objective.process, objective.target) == (Linear(**SIT_CLOCK), "velocity"):
        return tensors | {key: -tensors[key] for key in HEAD}
    raise InputError(
        f"the official layout is for {published.target} on {kind.read_objective(config)['process']['name']}, or for "
        "SiT; this model has another objective, with which only ditlab samples correctly; convert to ditlab instead"
    )
