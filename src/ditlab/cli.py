"""The command line: parse, build, call. Handlers import what they need, so that `--help` is quick.

Exit code 0 on success; 2 on input that cannot be used, with one line on standard error; 1 on a failure while
running; 130 after Ctrl-C. `--json` prints one JSON object on standard output and nothing else.
"""

import dataclasses
import json
import os
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from ditlab import __version__
from ditlab.config import (
    AutoencoderTraining,
    Evaluation,
    ModelOptions,
    Preparation,
    Recipe,
    Whole,
    find_recipe,
    one_line,
    parse_recipe,
    parse_size,
    read_toml,
    recipe_config,
)
from ditlab.errors import InputError, RunError
from ditlab.files import is_vacant
from ditlab.hardware import keep_freed_memory, pick_device, process_place

app = App(
    name="ditlab",
    help="Diffusion transformers: train on your pictures, sample, score.",
    version=__version__,
    config=recipe_config,
)
screen = Console(stderr=True)

Json = Annotated[bool, Parameter(negative="")]


@app.command
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
        screen.print(line, highlight=False, markup=False)


@app.command
def train(
    recipe: str,
    /,
    *,
    out: Path | None = None,
    init_from: str | None = None,
    classes: Whole | None = None,
    class_map: str | None = None,
    allow_changes: Annotated[bool, Parameter(negative="")] = False,
    settings: Annotated[Recipe | None, Parameter(name="*")] = None,
) -> None:
    """Train a model; the same command again resumes.

    Parameters
    ----------
    recipe
        A .toml file, or the name of a recipe that comes with ditlab: digits.
    out
        The run folder; runs/NAME-OF-THE-RECIPE if left out.
    init_from
        A model to start from: anything that ditlab loads. What fits is kept, and a table says what does not.
    classes
        Class count of the model, if it shall have room for more than the data has.
    class_map
        A TOML or JSON file of pairs: class of the data, class of the source whose label row it continues.
    allow_changes
        Resume with another course of training than before (rates, batch, times, averages).
    settings
        Any key of the recipe.
    """
    from ditlab.training import train

    out = out or Path("runs") / find_recipe(recipe).stem
    settings = settings or Recipe()
    start = dataclasses.replace(
        settings.train,
        init_from=settings.train.init_from if init_from is None else init_from,
        class_map=settings.train.class_map if class_map is None else class_map,
    )
    room = dataclasses.replace(settings.data, classes=settings.data.classes if classes is None else classes)
    settings = dataclasses.replace(settings, train=start, data=room)
    train(settings, out, changes=allow_changes, console=screen)
    screen.print(
        f"model and previews are in {out}; try: {command()} sample {out} --out samples", highlight=False, markup=False
    )


@app.command
def serve(
    models: Annotated[list[str], Parameter(consume_multiple=True, negative="")],
    /,
    *,
    host: str = "127.0.0.1",
    port: Whole = 7860,
    token: str = "",
    open_to_all: Annotated[bool, Parameter(negative="")] = False,
    pictures: Whole = 16,
    steps: Whole = 250,
    seconds: float = 120.0,
    drawings: Whole = 32,
    rows: Whole = 64,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
) -> None:
    """Serve models over HTTP, and show training runs; all who draw at the same time share each network call.

    Parameters
    ----------
    models
        Model or run folders, checkpoints of somebody else, or hub ids; each is served under its last name.
    host
        Address to listen on; another than loopback needs --token or --open-to-all.
    port
        Its port.
    token
        That every request must bear, as Authorization: Bearer TOKEN; better given as DITLAB_TOKEN in the environment.
    open_to_all
        Serve other machines without a token.
    pictures
        Most pictures of a request.
    steps
        Most steps of a request.
    seconds
        Longest time of a request.
    drawings
        Requests that are drawn at a time; more are answered with 429.
    rows
        Pictures in a network call, both halves of guidance counted.
    precision
        Of the networks.
    device
        auto, cpu, cuda, mps.
    """
    try:
        import uvicorn

        from ditlab.studio.api import create_app
    except ImportError as error:
        raise InputError(f"the service needs {error.name}; pip install 'ditlab[studio]'") from None
    from ditlab.interop import load
    from ditlab.pipeline import checkpoints
    from ditlab.studio.service import Limits

    token = token or os.environ.get("DITLAB_TOKEN", "")
    if host not in ("127.0.0.1", "::1", "localhost") and not token and not open_to_all:
        raise InputError(f"--host {host} can be reached by other machines; add --token TOKEN, or --open-to-all")
    listening = listen(host, port)
    loaded: dict[str, Any] = {}
    runs: dict[str, Path] = {}
    for model in models:
        name = Path(model).name or model
        if name in loaded or name in runs:
            raise InputError(f'two models are called "{name}"; rename one of the folders')
        if (Path(model) / "metrics.jsonl").exists():
            runs[name] = Path(model)
            if not checkpoints(Path(model)):
                screen.print(f"{name} has no checkpoint yet; it can be watched", highlight=False, markup=False)
                continue
        loaded[name] = load(model, device=pick_device(device)).prepared(precision)
        say_note(loaded[name].config)
    limits = Limits(pictures=pictures, steps=steps, seconds=seconds, drawings=drawings, rows=rows)
    shown = f"http://{'[::1]' if host == '::1' else host}:{listening.getsockname()[1]}"
    screen.print(f"{', '.join([*loaded] or runs)} at {shown}; Ctrl-C ends it", highlight=False, markup=False)
    settings = uvicorn.Config(
        create_app(loaded, limits, token, runs), log_level="warning", timeout_graceful_shutdown=10
    )
    uvicorn.Server(settings).run(sockets=[listening])


@app.command
def watch(run: Path, /, *, once: Annotated[bool, Parameter(negative="")] = False, seconds: float = 2.0) -> None:
    """Show a run's curves and its newest preview in the terminal, until Ctrl-C or its end.

    Parameters
    ----------
    run
        The run folder.
    once
        Show it as it is now, and return.
    seconds
        Between two looks.
    """
    from rich.live import Live

    from ditlab.watching import read_metrics, view

    images = parse_recipe(read_toml(run / "recipe.toml"), source=str(run)).train.images
    out = Console()
    if once or not out.is_terminal:
        out.print(view(run, images))
        return
    with suppress(KeyboardInterrupt), Live(view(run, images), console=out, auto_refresh=False) as live:
        while not (lines := read_metrics(run)) or lines[-1]["images"] < images:
            time.sleep(seconds)
            live.update(view(run, images), refresh=True)


@app.command
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
    from ditlab.interop import load
    from ditlab.training.profiles import rebuild

    claim_folder(out, overwrite=False)
    values = rebuild(run, width, images)
    pipe = load(run)
    pipe.net.load_state_dict(pipe.net.state_dict() | values)
    pipe.config["average_width"] = width
    pipe.save(out)
    if json:
        print_json({"folder": out, "width": width})
    else:
        screen.print(f"the average of width {width} is in {out}", highlight=False, markup=False)


@app.command
def plan(
    recipe: str,
    /,
    *,
    device: str = "",
    devices: Whole = 1,
    settings: Annotated[Recipe | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Tell what a training run will need: memory by part, steps per second, time to the end, the largest batch.

    Parameters
    ----------
    recipe
        A .toml file, or the name of a recipe that comes with ditlab.
    device
        b200, h200, h100, a100, a100-40, l40s, a10, rtx5090, rtx4090 or rtx3090; this machine if left out.
    devices
        How many of them.
    settings
        Any key of the recipe.
    json
        Print one JSON object.
    """
    from ditlab import planning

    find_recipe(recipe)
    found = planning.plan(settings or Recipe(), device, devices)
    if json:
        print_json(dataclasses.asdict(found))
        return
    out = Console()
    out.print(planning.table(found))
    for line in planning.lines(found):
        out.print(line, highlight=False, markup=False)


@app.command
def sample(
    model: str,
    /,
    *,
    labels: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    seeds: Annotated[list[str], Parameter(consume_multiple=True, negative="")] = ["0-7"],  # noqa: B006
    out: Path = Path("samples"),
    steps: Whole | None = None,
    sampler: str | None = None,
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    guidance_channels: Whole | None = None,
    grid: str | None = None,
    eta: float | None = None,
    preset: str | None = None,
    quality: Literal["draft", "normal", "best", "reference"] | None = None,
    reuse: Whole | None = None,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    compile: Literal["auto", "always", "never"] = "auto",
    weights: Literal["ema", "model"] = "ema",
    autoencoder: str | None = None,
    heads: Whole | None = None,
    size: str | None = None,
    classes: Whole | None = None,
    tile: Whole | None = None,
    batch_size: Whole | None = None,
    device: str = "auto",
    trajectory: Annotated[bool, Parameter(negative="")] = False,
    image: Path | None = None,
    mask: Path | None = None,
    strength: float | None = None,
    resample: Whole | None = None,
    strip: Whole | None = None,
    npz: Annotated[bool, Parameter(negative="")] = False,
    count: Whole = 50_000,
    draw_labels: Literal["balanced", "random"] = "balanced",
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Draw pictures: each label with each seed, as PNG files and one grid.png; or very many, with --npz.

    Parameters
    ----------
    model
        A model or run folder, a checkpoint of somebody else, or a hub id.
    labels
        Class names or indices; all classes if left out. A name wins over an index.
    seeds
        Numbers or ranges such as 0-15.
    out
        Folder for the pictures; must be empty or new.
    steps
        Steps of the sampler.
    sampler
        ddpm, ddim, euler, heun, dpmpp, ab2, ab4 or sde.
    guidance
        Scale of classifier-free guidance; 1 is none.
    interval
        Two times between which guidance acts; 0 is data, 1 noise.
    guidance_channels
        Guide the first so many channels only; 3 reproduces published DiT figures.
    grid
        Time grid: uniform, cosine, log-snr, shifted or leading.
    eta
        Noise of ddim, 0 to 1.
    preset
        dit-published: the protocol of DiT's published figures; other options win over it.
    quality
        Sampler, steps and grid by what they are for: draft, normal, best or reference; other options win over it.
    reuse
        Compute the inner part of the network at every so many steps only; for long schedules.
    precision
        Of the network. auto takes the quicker one, bfloat16 where this machine has fast products in it; with --npz it
        is float32.
    compile
        Compile the network's blocks; auto does if the work is so long that it pays.
    weights
        The average of the weights, or the raw ones of a training checkpoint.
    autoencoder
        The autoencoder of a model that came without one: folder, file or hub id.
    heads
        Attention heads of a foreign checkpoint whose size was never published.
    size
        Side, or HEIGHTxWIDTH, of the latents of a foreign checkpoint that does not tell it (U-DiT).
    classes
        Classes of a foreign checkpoint whose label table does not tell them (U-ViT).
    tile
        Decode in tiles of so many pixels, for pictures that do not fit into memory.
    batch_size
        Pictures drawn at a time, which do not depend on it; found by trying if left out.
    device
        auto, cpu, cuda, mps.
    trajectory
        Also write trajectory.gif, the pictures along the way.
    image
        Start from this picture instead of from noise alone.
    mask
        With --image: draw anew what is white in this picture, keep what is black.
    strength
        With --image: part of the way that is walked, up to 1, which begins with noise alone. 0.6; with a mask 1.
    resample
        With --mask: walk each piece of the way so often (2), so that the new agrees with the old.
    strip
        So many pictures from one seed to another for each label; or with one seed from one label to another.
    npz
        Write samples.npz, the file of the field's evaluators, instead; the same command again goes on, and torchrun
        shares the work without changing the pictures.
    count
        Pictures of the .npz.
    draw_labels
        Labels of the .npz: each class equally often, or uniformly at random.
    overwrite
        Write into a folder that is not empty.
    json
        Print one JSON object.
    """
    from ditlab.editing import read_picture
    from ditlab.interop import load
    from ditlab.sampling import draw, draw_file, ready

    if preset and quality:
        raise InputError(f"--preset {preset} and --quality {quality} name the same settings; give one of them")
    if not npz:
        claim_folder(out, overwrite)
    elif labels or trajectory or image or strip:
        raise InputError("--npz draws all classes from noise; leave --labels, --trajectory, --image and --strip out")
    if image is None and (mask is not None or strength is not None or resample is not None):
        raise InputError("--mask, --strength and --resample are about a picture to start from; give it with --image")
    told = foreign(heads, size, classes)
    pipe = load(model, weights=weights, device=pick_device(device), autoencoder=autoencoder, **told)
    say_note(pipe.config)
    if tile is not None:
        pipe.autoencoder.tile(tile)
    options: dict[str, Any] = {
        "num_inference_steps": steps,
        "sampler": sampler,
        "guidance_scale": guidance,
        "guidance_interval": interval,
        "guidance_channels": guidance_channels,
        "grid": grid,
        "eta": eta,
        "preset": preset or quality,
        "reuse": reuse,
    }
    if image is not None:
        white = None if mask is None else read_picture(mask)
        options["original"] = pipe.original(read_picture(image), mask=white, strength=strength, resample=resample)
    numbers = parse_seeds(seeds)
    total = count if npz else len(numbers) * (len(labels or ()) or pipe.net.classes or 1)
    if npz and precision == "auto":
        precision = "float32"  # what others shall score does not depend on the machine
    pipe, batch_size = ready(
        pipe, screen, precision=precision, compile=compile, count=total, batch_size=batch_size, options=options
    )
    if npz:
        rank, world = process_place()
        first = numbers[0]
        told = {"count": count, "labels": draw_labels, "seed": first, "overwrite": overwrite}
        written = draw_file(pipe, out, screen, batch_size=batch_size, options=options, rank=rank, world=world, **told)
        if written is None:
            screen.print("done with this process's share; others still draw", highlight=False)
        elif json:
            print_json({"file": written, "count": count})
        else:
            screen.print(f"{count:,} pictures in {written}", highlight=False, markup=False)
        return
    drawn = draw(
        pipe,
        labels,
        numbers,
        out,
        screen,
        batch_size=batch_size,
        trajectory=trajectory,
        options=options,
        strip=strip,
    )
    if json:
        print_json(dataclasses.asdict(drawn))
    else:
        screen.print(
            f"{drawn.count} pictures in {drawn.seconds:.1f} s, in {out}; all together: {drawn.grid}",
            highlight=False,
            markup=False,
        )


@app.command
def bench(
    model: str,
    /,
    *,
    batch: Whole = 8,
    rounds: Whole = 5,
    compile: bool = True,
    training: bool = True,
    against: Annotated[
        list[Literal["diffusers", "torch", "onnx", "openvino"]] | None, Parameter(consume_multiple=True, negative="")
    ] = None,
    cache: Annotated[bool, Parameter(negative="")] = False,
    size: str = "32",
    channels: Whole = 4,
    classes: Whole = 1000,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Measure what this machine makes of a model: peaks, forward pass, training step, presets, and what limits.

    Parameters
    ----------
    model
        A model or run folder, a checkpoint of somebody else, a hub id, or a name such as DiT-S/2 (random weights).
    batch
        Pictures in a network call.
    rounds
        Rounds that count; all sides run in turns, and medians are told.
    compile
        Measure compiled blocks too.
    training
        Measure a training step too.
    against
        Compare with diffusers' form of the same network, or with its graph exported for these runtimes.
    cache
        Instead, draw a few pictures with the model's own settings, and tell at which times --reuse would be safe.
    size
        Side, or HEIGHTxWIDTH, of the input of a network given by name.
    channels
        Its channels.
    classes
        Its classes.
    device
        auto, cpu, cuda, mps.
    json
        Print one JSON object.
    """
    from ditlab import bench as benchmark
    from ditlab.backbones import names
    from ditlab.interop import load

    if batch < 1 or rounds < 1:
        raise InputError(f"batch {batch} and rounds {rounds}; give 1 or more")
    if model in names():
        pipe = benchmark.random_model(model, parse_size(size), channels, classes, pick_device(device))
    else:
        pipe = load(model, device=pick_device(device))
    if cache:
        rows = benchmark.drift(pipe, batch, {})
        if json:
            print_json({"drift": rows})
        else:
            Console().print(benchmark.drift_table(rows))
        return
    found = benchmark.bench(
        pipe, screen, batch=batch, rounds=rounds, compile=compile, training=training, against=against or ()
    )
    if json:
        print_json(dataclasses.asdict(found))
        return
    out = Console()
    about = found.machine
    out.print(
        f"{about['processor']}, {about['cores']} cores, {about['device']}, torch {about['torch']}", highlight=False
    )
    peaks = ", ".join(f"{name} {peak:,.0f} GFLOP/s" for name, peak in found.peaks.items())
    out.print(f"matrix products: {peaks}; copies: {found.bandwidth:.0f} GB/s", highlight=False)
    for table in benchmark.tables(found):
        out.print(table)
    out.print(f"limited by {found.limit}", highlight=False)


@app.command
def tune(
    model: str,
    /,
    *,
    steps: Annotated[list[Whole], Parameter(consume_multiple=True, negative="")] = [4, 6, 8],  # noqa: B006
    sampler: str = "ab4",
    pictures: Whole = 32,
    out: Path = Path("grids.json"),
    device: str = "auto",
    json: Json = False,
) -> None:
    """Find the times at which few steps of a sampler come nearest to very many; for `sample --grid FILE`.

    Parameters
    ----------
    model
        A model or run folder, a checkpoint of somebody else, or a hub id; its guidance and interval are used.
    steps
        Counts of steps to find times for.
    sampler
        ddim, euler, heun, dpmpp, ab2 or ab4.
    pictures
        Drawn at each trial.
    out
        The file to write.
    device
        auto, cpu, cuda, mps.
    json
        Print one JSON object.
    """
    from ditlab.interop import load
    from ditlab.tuning import tune, write_grids

    if out.suffix != ".json":
        raise InputError(f"--out {out}; give a name that ends in .json")
    pipe = load(model, device=pick_device(device))
    found = tune(pipe, steps, sampler, pictures, screen)
    write_grids(out, pipe, sampler, found)
    if json:
        print_json({"file": out, "found": {count: dataclasses.asdict(each) for count, each in found.items()}})
        return
    for count, each in found.items():
        screen.print(
            f"{count} steps: off by {each.after:.2%} of the spread; with the uniform grid {each.before:.2%}",
            highlight=False,
        )
    screen.print(f"try: {command()} sample {model} --sampler {sampler} --steps {steps[0]} --grid {out}", markup=False)


@app.command
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
    from ditlab.interop import load
    from ditlab.interop.export import export

    pipe = load(model, weights=weights, autoencoder=autoencoder, **foreign(heads, size, classes))
    say_note(pipe.config)
    errors = export(pipe, out, to)
    if json:
        print_json({"folder": out, "errors": errors})
    else:
        screen.print(
            f"network (off by {errors['network']:.1e}) and decoder (by {errors['decoder']:.0f} of 255) are in {out}",
            highlight=False,
            markup=False,
        )


@app.command
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
    from ditlab.interop import convert, load

    pipe = load(source, weights=weights, sit=sit, autoencoder=autoencoder, **foreign(heads, size, classes))
    say_note(pipe.config)
    convert(pipe, target, to)
    screen.print(f"{pipe.net.config['name']} from {source} is in {target}, layout {to}", highlight=False, markup=False)
    if to == "diffusers" and not (target / "vae").exists():
        screen.print("without vae/: diffusers has no layout for this model's autoencoder", highlight=False)
    if to == "diffusers" and not pipe.net.config.get("frequency_shift"):
        screen.print(
            "diffusers computes this architecture's timestep frequencies with 127 where DiT has 128 in the exponent, "
            "so it draws slightly other pictures",
            highlight=False,
            markup=False,
        )


@app.command
def data(
    source: str,
    /,
    *,
    sheet: Path | None = None,
    labels: str = "",
    export: Path | None = None,
    count: Whole = 1000,
    json: Json = False,
) -> None:
    """Look at pictures before training: classes, sizes, broken files, duplicates, a contact sheet.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], or, with --export, a built-in data set.
    sheet
        Write a contact sheet, as PNG.
    labels
        CSV or JSONL file with the labels of a flat folder.
    export
        Write the first pictures of a built-in data set into this folder, by class, instead.
    count
        How many pictures to export.
    json
        Print one JSON object.
    """
    from ditlab.data import open_dataset, open_source
    from ditlab.data.own import write_folder
    from ditlab.data.survey import sample_sheet, survey

    if export is not None:
        claim_folder(export, overwrite=False)
        write_folder(open_dataset(source), export, count)
        screen.print(f"{count:,} pictures are in {export}", highlight=False, markup=False)
        return
    pictures = open_source(source, labels)
    found = survey(pictures, screen)
    if sheet is not None:
        sample_sheet(pictures, sheet)
    if json:
        print_json(dataclasses.asdict(found))
        return
    Console().print(*found.tables(), sep="\n")
    if sheet is not None:
        screen.print(f"contact sheet: {sheet}", highlight=False, markup=False)


@app.command
def train_autoencoder(
    source: str,
    /,
    *,
    out: Path,
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    settings: Annotated[AutoencoderTraining | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Train a small autoencoder on pictures; the same command again resumes.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], or a built-in data set.
    out
        The folder that the autoencoder becomes.
    pictures
        How they are read and made equally large.
    settings
        Network and training.
    json
        Print one JSON object.
    """
    from ditlab.data import open_dataset
    from ditlab.training.autoencoder import train_autoencoder

    dataset = open_dataset(source, pictures, out / "skipped.csv")
    done = train_autoencoder(dataset, settings or AutoencoderTraining(), out, screen)
    if json:
        print_json(dataclasses.asdict(done))
        return
    screen.print(
        f"{done.parameters / 1e6:.2f} M parameters in {done.seconds:.0f} s; on {done.held_out} pictures that it has "
        f"not seen: PSNR {done.psnr:.2f} dB, SSIM {done.ssim:.3f}; look at {out / 'reconstructions.png'}; "
        f"try: {command()} encode {source} --autoencoder {out} --out cache",
        highlight=False,
        markup=False,
    )


@app.command
def encode(
    source: str,
    /,
    *,
    autoencoder: str,
    out: Path,
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    batch_size: Whole = 64,
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16",
    shard: Whole = 4096,
    scale: float | None = None,
    tile: Whole | None = None,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Encode pictures into a latent cache, to train on; the same command again goes on where it stopped.

    Under torchrun the processes share the work.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], or a built-in data set.
    autoencoder
        Folder, file or hub id.
    out
        The cache.
    pictures
        How they are read and made equally large.
    batch_size
        Pictures encoded at a time.
    dtype
        Precision in which the latents are stored.
    shard
        Pictures in a file of the cache.
    scale
        Scale of the latents, for an autoencoder in a single file that does not say it.
    tile
        Encode in tiles of so many pixels, for pictures that do not fit into memory.
    device
        auto, cpu, cuda, mps.
    json
        Print one JSON object.
    """
    from ditlab.autoencoders import Latent
    from ditlab.data import open_dataset
    from ditlab.encoding import encode
    from ditlab.interop import load_autoencoder

    own = load_autoencoder(autoencoder, scale=scale, device=pick_device(device))
    if not isinstance(own, Latent):
        raise InputError(f"{autoencoder} has no latents of its own to cache; give one with latents")
    if tile is not None:
        own.tile(tile)
    rank, world = process_place()
    dataset = open_dataset(source, pictures, out / (f"skipped-{rank}.csv" if rank else "skipped.csv"))
    done = encode(
        dataset,
        source,
        own,
        out,
        screen,
        batch_size=batch_size,
        dtype=dtype,
        shard=shard,
        rank=rank,
        world=world,
    )
    if json:
        print_json(dataclasses.asdict(done))
        return
    rate = done.pictures / done.seconds if done.seconds else 0.0
    whole = "other processes still write" if done.entries is None else f"{done.entries:,} entries in {out}"
    if dataset.skipped:
        whole += f"; {len(dataset.skipped)} pictures could not be read: {out / 'skipped.csv'}"
    screen.print(
        f"encoded {done.pictures:,} pictures at {rate:,.1f}/s, {done.waited:.1%} of it waiting for them; {whole}",
        highlight=False,
        markup=False,
    )


@app.command
def reference(
    source: str,
    /,
    *,
    out: Path,
    features: str | None = None,
    feature_weights: str = "",
    count: Whole | None = None,
    keep: Whole = 10_000,
    with_pictures: Annotated[bool, Parameter(negative="")] = False,
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    batch_size: Whole = 64,
    device: str = "auto",
    json: Json = False,
) -> None:
    """Measure real pictures once, for `evaluate` to compare with; written as an .npz file.

    The same command again goes on where it stopped; under torchrun the processes share the work.

    Parameters
    ----------
    source
        A folder of pictures, tar shards, hf:NAME[:SPLIT], a latent cache, a built-in data set, or an .npz file.
    out
        The file.
    features
        inception, dinov2, digits or glyphs; left out, those that suit the source.
    feature_weights
        File, folder or hub id of their weights.
    count
        Use the first so many pictures only.
    keep
        Features kept for precision, recall and the kernel distance.
    with_pictures
        Keep the pictures that they are of too, so that ADM's evaluator reads the file.
    pictures
        How they are read and made equally large.
    batch_size
        Pictures measured at a time.
    device
        auto, cpu, cuda, mps.
    json
        Print one JSON object.
    """
    from ditlab.evaluation.features import open_features
    from ditlab.evaluation.protocol import default_features
    from ditlab.evaluation.reference import open_pictures, write_reference

    if out.suffix != ".npz":
        raise InputError(f"{out}; give a file that ends in .npz")
    where = pick_device(device)
    network = open_features(features or default_features(source), feature_weights, where)
    real = open_pictures(source, pictures, where, out.with_suffix(".skipped.csv"))
    rank, world = process_place()
    done = write_reference(
        source, real, network, out, screen, count=count, keep=keep, batch_size=batch_size,
        with_pictures=with_pictures, rank=rank, world=world,
    )  # fmt: skip
    if done is None:
        screen.print("done with this process's share; others still work", highlight=False)
        return
    if json:
        print_json(done.about)
        return
    screen.print(
        f"{done.about['count']:,} pictures in the features {network.name}: {out}", highlight=False, markup=False
    )


@app.command
def evaluate(
    source: str,
    /,
    *,
    recipe: str | None = None,
    out: Path | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Score a model, or pictures that are there; prints the result as JSON. The same command again goes on.

    Parameters
    ----------
    source
        A model or run folder, a checkpoint, a hub id; or pictures: a folder, a sample file (.npz), a data set.
    recipe
        A protocol that comes with ditlab, such as dit-xl2-256, or a .toml file.
    out
        Folder of the results; inside the model's folder if left out.
    settings
        The protocol.
    json
        No table on the screen.
    """
    from ditlab.evaluation.protocol import evaluate

    rank, world = process_place()
    settings = settings or Evaluation()
    name = find_recipe(recipe, "evaluation").stem if recipe else "evaluation"
    result = evaluate(source, settings, screen, out=out, name=name, rank=rank, world=world)
    if result is None:
        screen.print("done with this process's share; others still work", highlight=False)
        return
    if not json:
        screen.print(result.table())
        for note in result.notes:
            screen.print(note, highlight=False, markup=False)
        screen.print(f"all of it is in {result.folder}", highlight=False, markup=False)
    print_json(result.as_json())
    if result.expected is not None and not result.expected["met"]:
        wanted = result.expected
        fail(
            f"{wanted['metric']} is {result.metrics[wanted['metric']]:.4f}, "
            f"not {wanted['value']} within {wanted['within']:.4g}",
            1,
        )


@app.command
def sweep(
    source: str,
    /,
    *,
    recipe: str | None = None,
    try_guidance: Annotated[list[float] | None, Parameter(consume_multiple=True, negative="")] = None,
    try_steps: Annotated[list[Whole] | None, Parameter(consume_multiple=True, negative="")] = None,
    try_sampler: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    try_interval: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    try_weights: Annotated[list[Literal["ema", "model"]] | None, Parameter(consume_multiple=True, negative="")] = None,
    repeats: Whole = 3,
    out: Path | None = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Score a model under every combination of settings: a table, a curve, and the best with its error.

    Parameters
    ----------
    source
        A model or run folder, a checkpoint, or a hub id.
    recipe
        A protocol that comes with ditlab, or a .toml file.
    try_guidance
        Scales of guidance.
    try_steps
        Numbers of steps.
    try_sampler
        Samplers.
    try_interval
        Intervals of guidance, such as 0.1-0.8.
    try_weights
        ema, model, or both.
    repeats
        Seeds of each combination; the error comes from them.
    out
        Folder of the results; inside the model's folder if left out.
    settings
        What all have in common.
    json
        Print one JSON object.
    """
    from ditlab.evaluation.sweep import sweep

    if process_place()[1] > 1:
        raise InputError("a sweep runs as one process; start it without torchrun")
    axes: dict[str, Any] = {
        "guidance": try_guidance,
        "interval": [parse_interval(text) for text in try_interval or []],
        "steps": try_steps,
        "sampler": try_sampler,
        "weights": try_weights,
    }
    name = f"sweep-{find_recipe(recipe, 'evaluation').stem}" if recipe else "sweep"
    given = {key: values for key, values in axes.items() if values}
    done = sweep(source, settings or Evaluation(), given, screen, repeats=repeats, out=out, name=name)
    if json:
        print_json(done.as_json())
        return
    Console().print(done.table())
    print(done.verdict())
    screen.print(f"curve: {done.plot}", highlight=False, markup=False)


@app.command
def memorisation(
    source: str,
    /,
    *,
    training: str,
    held_out: str,
    recipe: str | None = None,
    out: Path = Path("memorisation.png"),
    pictures: Annotated[Preparation | None, Parameter(name="*")] = None,
    settings: Annotated[Evaluation | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Does a model copy its training pictures? Its nearest ones as a picture, and a number against unseen ones.

    The same command again goes on where it stopped; under torchrun the processes share the work.

    Parameters
    ----------
    source
        A model, or pictures drawn before (.npz or folder).
    training
        What the model was trained on.
    held_out
        Real pictures that it never saw.
    recipe
        A protocol that comes with ditlab, or a .toml file.
    out
        The picture: closest samples, each beside its nearest training pictures, distances at the left.
    pictures
        How training and held-out pictures are made equally large.
    settings
        How samples are drawn; the features.
    json
        Print one JSON object.
    """
    from ditlab.evaluation.features import open_features
    from ditlab.evaluation.memorisation import memorisation
    from ditlab.evaluation.protocol import default_features, open_source
    from ditlab.evaluation.reference import identity, open_pictures

    settings = settings or Evaluation()
    device = pick_device(settings.device)
    features = open_features(settings.features or default_features(training), settings.feature_weights, device)
    samples, protocol, _ = open_source(source, settings, device)
    known, unseen = (open_pictures(each, pictures, device) for each in (training, held_out))
    protocol |= {"training": identity(training), "held_out": identity(held_out)}
    rank, world = process_place()
    done = memorisation(
        samples, known, unseen, features, out, screen, protocol=protocol, batch_size=settings.batch_size,
        rank=rank, world=world,
    )  # fmt: skip
    if done is None:
        screen.print("done with this process's share; others still work", highlight=False)
        return
    if json:
        print_json(dataclasses.asdict(done))
        return
    print(done.verdict())
    screen.print(f"look at {done.picture}", highlight=False, markup=False)


@app.command
def study(
    recipe: str,
    /,
    *,
    out: Path | None = None,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Train a grid of models under one budget, score them, and say which claims hold; the same command again goes on.

    Commands that are started side by side share the runs.

    Parameters
    ----------
    recipe
        A .toml file, or a study that comes with ditlab: scaling, conditioning, u-shape, sampling-compute, guidance.
    out
        Its folder; runs/studies/NAME-OF-THE-RECIPE if left out.
    dry_run
        Only print the grid, with the time and memory that each part will need.
    json
        Print one JSON object.
    """
    from ditlab.study import grid
    from ditlab.study.recipe import read_study
    from ditlab.study.report import write_reports
    from ditlab.study.run import as_json, run_study, summary

    found = read_study(recipe)
    if dry_run:
        parts = grid.lay_out(found, {}, screen, timed=True)
        if json:
            print_json(grid.as_json(found, parts))
            return
        for piece in grid.dry_run(found, parts):
            Console().print(piece, highlight=False, markup=False)
        return
    out = out or Path("runs") / "studies" / found.name
    done = run_study(found, out, screen)
    if done is None:
        screen.print("other processes still work; the last of them writes the report", highlight=False)
        return
    report = write_reports(done, out)
    if json:
        print_json(as_json(done) | {"report": report})
    else:
        for line in summary(done):
            print(line)
        screen.print(f"look at {report}", highlight=False, markup=False)
    if done.failures:
        fail(f"{len(done.failures)} runs failed; the same command tries them again", 1)


@app.command
def demo(*, out: Path = Path("runs/demo"), json: Json = False) -> None:
    """Train on the bundled handwritten digits, draw 1,000 new ones and score them; minutes on two cores.

    Parameters
    ----------
    out
        The run folder.
    json
        Print one JSON object.
    """
    from ditlab.demo import run_demo

    result = run_demo(out, screen)
    if json:
        print_json(dataclasses.asdict(result))
        return
    for line in result.report(command()):
        print(line)


def foreign(heads: int | None, size: str | None, classes: int | None) -> dict[str, Any]:
    """What the user tells about a checkpoint that does not tell it itself."""
    told = {"heads": heads, "size": None if size is None else parse_size(size), "classes": classes}
    return {key: value for key, value in told.items() if value is not None}


def say_note(config: dict[str, Any]) -> None:
    """What was left out or turned round when a foreign model was read."""
    if note := config.get("note"):
        screen.print(str(note), highlight=False, markup=False)


def parse_seeds(texts: list[str]) -> list[int]:
    """["0-3", "7"] -> [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f'seeds "{text}"; give numbers or rising ranges such as 0-15')
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def parse_interval(text: str) -> tuple[float, float]:
    """ "0.1-0.8" -> (0.1, 0.8)."""
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError:
        raise InputError(f'interval "{text}"; give two times such as 0.1-0.8') from None


def claim_folder(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with something in it, unless told otherwise."""
    if not is_vacant(folder) and not overwrite:
        raise InputError(f"{folder} is not empty; give another --out, or add --overwrite")
    home = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not os.access(home, os.W_OK):
        raise InputError(f"{home} cannot be written to; give another --out")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, before minutes of loading.

    Raises:
        InputError: an address or a port that cannot be had.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # Connections inherit it; asyncio sets it only where it makes the socket. Otherwise answers wait 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port} ({reason}); give another --port or --host") from error


def print_json(values: dict[str, Any]) -> None:
    """One object on standard output."""
    print(json.dumps(values, default=str))


def command() -> str:
    """How this program was called, for commands to try next."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m ditlab"
    local = path if not path.is_absolute() or not path.is_relative_to(Path.cwd()) else path.relative_to(Path.cwd())
    return str(local) if local.parent != Path() and not local.is_absolute() else path.name


def fail(message: str, code: int) -> NoReturn:
    """One line on standard error, and out."""
    print(f"ditlab: {message}", file=sys.stderr)
    sys.exit(code)


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        fail(one_line(error), 2)
    except InputError as error:
        fail(str(error), 2)
    except RunError as error:
        fail(str(error), 1)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else "cannot write: "
        fail(f"{where}{error.strerror or error}; free some space or give another path", 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)
