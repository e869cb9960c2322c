"""Commands for networks and weights."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.cli.options import Base, Checkpoint
from ditlab.cli.terminal import Json, app, print_json, say, say_note
from ditlab.config.fields import Natural, Positive, Share
from ditlab.config.reader import network_arguments, network_options, parse_sides
from ditlab.config.values import File, Folder, Location, check_folder_name
from ditlab.core.errors import InputError, nearest_path
from ditlab.core.io import is_vacant
from ditlab.core.terminal import make_console
from ditlab.core.units import sides_of

Options: Any = network_arguments()  # with a field for each option of the families


@dataclass(frozen=True)
class Shape:
    """Input and output of a network."""

    size: str | None = None
    """Side, HEIGHTxWIDTH, or FRAMESxHEIGHTxWIDTH of the latent or image (default: 32, or the family's)."""
    channels: Positive | None = None
    """Channels of the latent or image (default: 4, or the family's)."""
    classes: Natural | None = None
    """Number of classes; 0 is unconditional (default: 1000, or 0 for a family that reads text)."""
    learn_variance: bool | None = None
    """Include the output channels of a learned variance (default: as the family is published)."""


CheckpointOptions = Annotated[Checkpoint | None, Parameter(name="*")]


@app.command(group="Models")
def info(
    *names: Location,
    shape: Annotated[Shape | None, Parameter(name="*")] = None,
    options: Annotated[Options | None, Parameter(name="*")] = None,
    base: Base = None,
    json: Json = False,
) -> None:
    """Print the cost of networks: parameters, multiply-accumulates, tokens and bytes; of a saved model also its images.

    Parameters
    ----------
    names
        Names such as DiT-XL/2, package.module:Class, model and run folders, or external checkpoints (default: all
        published networks).
    options
        Options of the architecture, which replace the published ones.
    json
        Print one JSON object (for several models with a list "models").
    """
    network_options(options, names[0] if names else "")  # to report mistakes before any work
    rows, left_out = costs(names, shape or Shape(), options, base)
    if json:
        print_json(rows[0] if len(rows) == 1 else {"models": rows})
        return
    print_costs(rows)
    for line in left_out:
        say(line)


def costs(
    names: Sequence[str], shape: Shape, options: Any, base: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Measure the costs of networks; returns them, and a line for each published network that these options do not fit.

    Raises:
        InputError: the options do not fit a network that the user named, or `base` is given without a saved model.
    """
    from ditlab.backbones import create
    from ditlab.backbones import names as published
    from ditlab.evaluation import measure

    settings = asdict(shape) | ({} if shape.size is None else {"size": parse_sides(shape.size)})
    rows, left_out = [], []
    if base is not None and not any(Path(name).is_dir() for name in names):
        raise InputError("--base is the model under a saved model; give the folder of that model, or leave --base out")
    for name in names or published():
        if Path(name).exists():
            rows.append(cost_of_model(name, options, base))
            continue
        try:
            make = partial(create, name, **settings, **network_options(options, name if names else ""))
            rows.append({"name": name, **asdict(measure(make))})
        except InputError as error:
            if names:
                raise with_nearest_path(error, name) from error
            left_out.append(
                f"{name} is not listed: {error}"
            )  # a size that does not fit, or a library that is not installed
    return rows, left_out


def with_nearest_path(error: InputError, name: str) -> InputError:
    """Return the error of an unknown network, with a path that is similar to its name instead of all networks."""
    path = nearest_path(name, "")
    known = "did you mean" in str(error) or not str(error).startswith("unknown model")
    return error if known or not path else InputError(f'unknown model "{name}"; {path}')


def cost_of_model(path: str, options: Any, base: str | None = None) -> dict[str, Any]:
    """Measure the cost of a saved model, and describe its images.

    Raises:
        InputError: options of the architecture are given that the file contains, or there is no model.
    """
    from ditlab.autoencoders import Absent
    from ditlab.backbones import create
    from ditlab.checkpoints import load
    from ditlab.conditioning import Text
    from ditlab.evaluation import measure
    from ditlab.inference.card import about_images
    from ditlab.inference.compute import sampled_compute

    given = network_options(options, "")
    overrides = {} if Path(path).is_dir() or "heads" not in given else {"heads": given.pop("heads")}
    if given:
        raise InputError(f"{', '.join(given)} cannot change the saved model {path}; give the name of a network")
    pipe = load(path, device="cpu", base=base, **overrides)
    say_note(pipe.config)
    channels, (height, width) = pipe.picture_shape
    cost = asdict(measure(lambda: create(**pipe.net.config | {"size": pipe.net.size})))
    if pipe.net.gates:
        compute = sampled_compute(pipe)
        cost["average_gmacs"] = cost["gmacs"] - (1 - compute.share) * pipe.net.dynamic_macs / 1e9
        cost["averaged_over"] = compute.calls
    if isinstance(pipe.autoencoder, Absent):
        return {"name": path, **cost}
    about = {
        "size": sides_of((*pipe.net.size[:-2], height, width)),
        "noun": pipe.noun,
        "channels": channels,
        "values": pipe.values.describe(),
    }
    reads = {"reads": pipe.conditioner.about()} if isinstance(pipe.conditioner, Text) else {}
    return {"name": path, **cost, "images": about | {"about": about_images(channels, pipe.values)}, **reads}


def print_costs(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table of costs on standard output."""
    from rich.table import Table

    table = Table("model", "parameters", "unfused", "GMACs", "GFLOPs", "tokens", "float32")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        millions, unfused = (f"{row[key] / 1e6:,.2f} M" for key in ("parameters", "parameters_unfused"))
        table.add_row(
            row["name"], millions, "" if unfused == millions else unfused,
            f"{row['gmacs']:,.2f}", f"{row['gflops']:,.2f}", str(row["tokens"]),
            f"{row['weight_bytes'] / 2**20:,.0f} MiB",
        )  # fmt: skip
    make_console().print(table)
    for row in rows:
        if row["average_gmacs"] < row["gmacs"]:
            calls = row.get("averaged_over")
            how = (
                f"measured over {calls} network calls of a sampler"
                if calls
                else "over uniform timesteps, if training reaches the budget"
            )
            say(f"{row['name']}: {row['average_gmacs']:,.4g} GMACs on average ({how})")
        if images := row.get("images"):
            verb = "predicts" if images["noun"] == "state" else "generates"
            say(f"{row['name']} {verb} {images['noun']}s of {images['size']} with {images['about']}")
        if reads := row.get("reads"):
            say(f"{row['name']} reads {reads}")


@app.command(group="Models")
def convert(
    source: File,
    target: File,
    /,
    *,
    to: Literal["official", "diffusers", "ditlab", "peft"],
    checkpoint: CheckpointOptions = None,
) -> None:
    """Write a model in another layout. The layout of the source is recognized by its content.

    Parameters
    ----------
    source
        A model or run folder, a published checkpoint (DiT, SiT, U-DiT, U-ViT, Skip-DiT, Stable Diffusion 3), or a
        diffusers folder.
    target
        Path to write; must not exist.
    to
        official: a state dict, as .pt or .safetensors; diffusers: a folder with transformer/; ditlab: a model folder;
        peft: the low-rank updates of a run with train.lora and train.lora_apart.
    """
    from ditlab.checkpoints import convert

    if to != "official":
        check_folder_name(target)
    pipe = (checkpoint or Checkpoint()).load(source)
    convert(pipe, target, to)
    say(f"wrote {pipe.net.config['name']} from {source} to {target}, layout {to}")
    if to == "diffusers" and not (target / "vae").exists():
        say("vae/ was not written, because diffusers has no layout for this model's autoencoder")
    if to in ("official", "diffusers") and not pipe.values.eight_bits:
        say(f"the {to} layout does not hold the values of the images ({pipe.values.summary()}); note them down")
    shifted, official = bool(pipe.net.config.get("frequency_shift")), to == "official"
    if to in ("official", "diffusers") and shifted == official:
        say(
            f"the {to} code computes timestep frequencies with {128 if official else 127} in the exponent, and this "
            f"model with {127 if official else 128}, so that the {to} code generates slightly different images"
        )


@app.command(group="Models")
def export(
    model: Location,
    out: Folder,
    /,
    *,
    to: Literal["onnx", "openvino", "torch"],
    int8: Annotated[bool, Parameter(negative="")] = False,
    checkpoint: CheckpointOptions = None,
    json: Json = False,
) -> None:
    """Write network and decoder as graphs for other runtimes, and compare them with PyTorch.

    Parameters
    ----------
    model
        A model or run folder, an external checkpoint, or a hub id.
    out
        Folder to write; must not exist.
    to
        onnx: .onnx files; openvino: .xml and .bin; torch: .pt2 of torch.export.
    int8
        Quantize the network to 8-bit numbers, for a quarter of the size (onnx only).
    json
        Print one JSON object.
    """
    from ditlab.inference.export import export

    errors = export((checkpoint or Checkpoint()).load(model), out, to, int8)
    if json:
        print_json({"folder": out, "errors": errors})
    else:
        say(
            f"wrote network (error {errors['network']:.1e}) and decoder (error {errors['decoder']:.0f} of 255) to {out}"
        )


@app.command(group="Models")
def average(
    run: File,
    out: Folder,
    /,
    *,
    width: Share,
    images: Positive | None = None,
    json: Json = False,
) -> None:
    """Compute a power-function EMA of another length from the snapshots of a run, and write it as a model.

    Parameters
    ----------
    run
        Run folder.
    out
        Folder for the model; must not exist.
    width
        EMA length: standard deviation of the average, as a share of the run: 0.05 is short, 0.2 long.
    images
        Number of training images at the end of the average (default: that of the newest snapshot).
    json
        Print one JSON object.
    """
    from ditlab.checkpoints import load
    from ditlab.core.weights import fit
    from ditlab.training.power_ema import rebuild

    if not is_vacant(out):
        raise InputError(f"{out} is not empty; give another folder")
    values = rebuild(run, width, images)
    pipe = load(run, device="cpu")
    values = fit(values, dict(pipe.net.named_parameters()), str(run / "averages"))
    pipe.net.load_state_dict(pipe.net.state_dict() | values)
    pipe.config["average_width"] = width
    pipe.save(out)
    if json:
        print_json({"folder": out, "width": width})
    else:
        say(f"wrote the EMA of length {width} to {out}")
