"""Commands that draw, and that make drawing quicker."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from ditlab.cli.terminal import Json, app, claim_folder, command, foreign, print_json, say, say_note, screen
from ditlab.config.reader import parse_size
from ditlab.config.sections import Whole
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError


@app.command(group="Draw")
def sample(
    model: str,
    /,
    *,
    labels: Annotated[list[str] | None, Parameter(negative="")] = None,
    seeds: Annotated[list[str], Parameter(negative="")] = ["0-7"],  # noqa: B006
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
    count: Whole | None = None,
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
        Of the network. auto takes the quicker one, bfloat16 where this machine has fast products in it; with --npz and
        with --quality reference it is float32.
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
        Pictures in all: so many seeds for each label, from the first of --seeds on. With --npz 50,000 if left out.
    draw_labels
        Labels of the .npz: each class equally often, or uniformly at random.
    overwrite
        Write into a folder that is not empty.
    json
        Print one JSON object.
    """
    from ditlab.checkpoints import load
    from ditlab.inference.folder import draw
    from ditlab.inference.inpaint import read_picture
    from ditlab.inference.npz import draw_file
    from ditlab.inference.prepare import ready

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
    numbers, each = parse_seeds(seeds), len(labels or ()) or pipe.net.classes or 1
    if count is not None and not npz:
        if count < 1 or count % each:
            low = max(1, count // each) * each
            raise InputError(f"--count {count} for {each} labels; give {low}, or another multiple of {each}")
        numbers = list(range(numbers[0], numbers[0] + count // each))
    count = 50_000 if count is None else count
    total = count if npz else len(numbers) * each
    if precision == "auto" and (npz or quality == "reference"):
        precision = "float32"  # what others shall score, or compare with, does not depend on the machine
    pipe, batch_size = ready(
        pipe, screen, precision=precision, compile=compile, count=total, batch_size=batch_size, options=options
    )
    if npz:
        rank, world = process_place()
        first = numbers[0]
        told = {"count": count, "labels": draw_labels, "seed": first, "overwrite": overwrite}
        written = draw_file(pipe, out, screen, batch_size=batch_size, options=options, rank=rank, world=world, **told)
        if written is None:
            say("done with this process's share; others still draw")
        elif json:
            print_json({"file": written, "count": count})
        else:
            say(f"{count:,} pictures in {written}")
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
        say(f"{drawn.count} pictures in {drawn.seconds:.1f} s, in {out}; all together: {drawn.grid}")


@app.command(group="Draw")
def tune(
    model: str,
    /,
    *,
    steps: Annotated[list[Whole], Parameter(negative="")] = [4, 6, 8],  # noqa: B006
    sampler: str = "ab4",
    guidance: float | None = None,
    interval: tuple[float, float] | None = None,
    pictures: Whole = 32,
    out: Path = Path("grids.json"),
    device: str = "auto",
    json: Json = False,
) -> None:
    """Find the times at which few steps of a sampler come nearest to very many; for `sample --grid FILE`.

    Parameters
    ----------
    model
        A model or run folder, a checkpoint of somebody else, or a hub id.
    steps
        Counts of steps to find times for.
    sampler
        ddim, euler, heun, dpmpp, ab2 or ab4.
    guidance
        Scale with which the times shall be used; the model's own if left out.
    interval
        The same for the two times between which guidance acts.
    pictures
        Drawn at each trial.
    out
        The file to write.
    device
        auto, cpu, cuda, mps.
    json
        Print one JSON object.
    """
    from ditlab.checkpoints import load
    from ditlab.inference.tune import tune, write_grids

    if out.suffix != ".json":
        raise InputError(f"--out {out}; give a name that ends in .json")
    pipe = load(model, device=pick_device(device))
    found = tune(pipe, steps, sampler, pictures, screen, guidance, interval)
    write_grids(out, pipe, sampler, found)
    if json:
        print_json({"file": out, "found": {count: dataclasses.asdict(each) for count, each in found.items()}})
        return
    for count, each in found.items():
        say(f"{count} steps: off by {each.after:.2%} of the spread; with the uniform grid {each.before:.2%}")
    used = f"--sampler {sampler} --steps {steps[0]} --grid {out}"
    used += "" if guidance is None else f" --guidance {guidance:g}"
    used += "" if interval is None else f" --interval {interval[0]:g} {interval[1]:g}"
    say(f"try: {command()} sample {model} {used}")


@app.command(group="Draw")
def bench(
    model: str,
    /,
    *,
    batch: Whole = 8,
    rounds: Whole = 5,
    compile: bool = True,
    training: bool = True,
    against: Annotated[list[Literal["diffusers", "torch", "onnx", "openvino"]] | None, Parameter(negative="")] = None,
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
    from ditlab.backbones import names
    from ditlab.checkpoints import load
    from ditlab.profiling import bench as benchmark

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


def parse_seeds(texts: list[str]) -> list[int]:
    """["0-3", "7"] -> [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise InputError(f'seeds "{text}"; give numbers or rising ranges such as 0-15')
        seeds += range(int(first), int(last or first) + 1)
    return seeds
