"""Commands about networks and files of weights."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from ditlab.cli.terminal import Json, app, claim_folder, foreign, print_json, say, say_note
from ditlab.config.reader import parse_size
from ditlab.config.sections import ModelOptions, Whole
from ditlab.core.errors import InputError


@app.command(group="Models")
def info(
    *names: str,
    size: str = "32",
    channels: Whole = 4,
    classes: Whole = 1000,
    learn_variance: bool = True,
    options: Annotated[ModelOptions | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Print what networks cost: parameters, multiply-accumulates, tokens, bytes; no weights are made.

    Parameters
    ----------
    names
        Models such as DiT-XL/2; all published ones if left out.
    size
        Side, or HEIGHTxWIDTH, of the latent or picture.
    channels
        Channels of the latent or picture.
    classes
        Number of classes; 0 is unconditional.
    learn_variance
        Count an output with a second half for the learned variance.
    options
        Of the family, instead of the published ones.
    json
        Print one JSON object (with a list "models" for several names).
    """
    from ditlab.backbones import create
    from ditlab.backbones import names as published
    from ditlab.evaluation import measure

    settings = vars(options or ModelOptions()) | {"size": parse_size(size), "channels": channels, "classes": classes}
    settings["learn_variance"] = learn_variance
    rows, left_out = [], []
    for name in names or published():
        try:
            rows.append({"name": name, **dataclasses.asdict(measure(partial(create, name, **settings)))})
        except InputError as error:
            if names:
                raise
            left_out.append(f"{name} left out: {error}")  # another size, or a library that is not there
    if json:
        print_json(rows[0] if len(rows) == 1 else {"models": rows})
        return
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
    Console().print(table)
    for line in left_out:
        say(line)


@app.command(group="Models")
def convert(
    source: Path,
    target: Path,
    /,
    *,
    to: Literal["official", "diffusers", "ditlab"],
    weights: Literal["ema", "model"] = "ema",
    heads: Whole | None = None,
    size: str | None = None,
    classes: Whole | None = None,
    sit: bool | None = None,
    autoencoder: str | None = None,
) -> None:
    """Write a model in another layout; what is read is recognised by its content.

    Parameters
    ----------
    source
        A model or run folder, a published checkpoint (DiT, SiT, U-DiT, U-ViT, Skip-DiT), or a diffusers folder.
    target
        Where to write; must not exist.
    to
        official: a .pt state dict; diffusers: a folder with transformer/; ditlab: a model folder.
    weights
        The average of the weights, or the raw ones of a training checkpoint.
    heads
        Attention heads, for sizes that were never published.
    size
        Side, or HEIGHTxWIDTH, of the latents, where the checkpoint does not tell it (U-DiT).
    classes
        Classes, where the label table does not tell them (U-ViT).
    sit
        The source is SiT's; only a bare state dict does not tell.
    autoencoder
        The autoencoder that goes with it, for a source that came without: folder, file or hub id.
    """
    from ditlab.checkpoints import convert, load

    pipe = load(source, weights=weights, sit=sit, autoencoder=autoencoder, **foreign(heads, size, classes))
    say_note(pipe.config)
    convert(pipe, target, to)
    say(f"{pipe.net.config['name']} from {source} is in {target}, layout {to}")
    if to == "diffusers" and not (target / "vae").exists():
        say("without vae/: diffusers has no layout for this model's autoencoder")
    if to == "official" and pipe.net.config.get("frequency_shift"):
        say(
            "this model's timestep frequencies have 127 in the exponent, as diffusers', where the official code has "
            "128, so that draws slightly other pictures"
        )
    if to == "diffusers" and not pipe.net.config.get("frequency_shift"):
        say(
            "diffusers computes this architecture's timestep frequencies with 127 where DiT has 128 in the exponent, "
            "so it draws slightly other pictures"
        )


@app.command(group="Models")
def export(
    model: str,
    out: Path,
    /,
    *,
    to: Literal["onnx", "openvino", "torch"],
    weights: Literal["ema", "model"] = "ema",
    heads: Whole | None = None,
    size: str | None = None,
    classes: Whole | None = None,
    autoencoder: str | None = None,
    json: Json = False,
) -> None:
    """Write network and decoder as graphs for other runtimes, with a free batch size, checked against PyTorch.

    Parameters
    ----------
    model
        A model or run folder, a checkpoint of somebody else, or a hub id.
    out
        Folder to write; must not exist.
    to
        onnx: .onnx files; openvino: .xml and .bin; torch: .pt2 of torch.export.
    weights
        The average of the weights, or the raw ones of a training checkpoint.
    heads
        Attention heads of a foreign checkpoint whose size was never published.
    size
        Side, or HEIGHTxWIDTH, of the latents of a foreign checkpoint that does not tell it (U-DiT).
    classes
        Classes of a foreign checkpoint whose label table does not tell them (U-ViT).
    autoencoder
        The autoencoder of a model that came without one: folder, file or hub id.
    json
        Print one JSON object.
    """
    from ditlab.checkpoints import load
    from ditlab.inference.export import export

    pipe = load(model, weights=weights, autoencoder=autoencoder, **foreign(heads, size, classes))
    say_note(pipe.config)
    errors = export(pipe, out, to)
    if json:
        print_json({"folder": out, "errors": errors})
    else:
        say(f"network (off by {errors['network']:.1e}) and decoder (by {errors['decoder']:.0f} of 255) are in {out}")


@app.command(group="Models")
def average(
    run: Path,
    out: Path,
    /,
    *,
    width: float,
    images: Whole | None = None,
    json: Json = False,
) -> None:
    """Write a model whose weights are an average of another length, from a run that was trained with train.widths.

    Parameters
    ----------
    run
        The run folder.
    out
        Folder for the model; must not exist.
    width
        Standard deviation of the average, as a share of the run: 0.05 is short, 0.2 long.
    images
        The place in the run at which it ends; the newest snapshot if left out.
    json
        Print one JSON object.
    """
    from ditlab.checkpoints import load
    from ditlab.training.power_ema import rebuild

    claim_folder(out, overwrite=False)
    values = rebuild(run, width, images)
    pipe = load(run)
    pipe.net.load_state_dict(pipe.net.state_dict() | values)
    pipe.config["average_width"] = width
    pipe.save(out)
    if json:
        print_json({"folder": out, "width": width})
    else:
        say(f"the average of width {width} is in {out}")
