"""The command `sample`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ditlab.cli.options import Decoding, Files, Machine, Request, StartImage
from ditlab.cli.prompts import check_values, with_prompts
from ditlab.cli.repeat import Call, read_like, recorded_model, repeated_cells
from ditlab.cli.terminal import Json, app, claim_folder, free_folder, print_json, say, screen
from ditlab.config.reader import parse_sides
from ditlab.config.sampling import GUIDANCE_ORIGIN, SamplingOptions
from ditlab.config.values import Location, check_folder_name
from ditlab.core.device import pick_device, process_place
from ditlab.core.errors import InputError
from ditlab.core.units import counted, noun_of, sides_of

if TYPE_CHECKING:
    from ditlab.inference.base import BasePipeline
    from ditlab.inference.folder import Cell
    from ditlab.inference.pipeline import Pipeline
    from ditlab.inference.plan import Plan
    from ditlab.inference.prepared import PreparedPipeline
    from ditlab.inference.records import Repeat

NPZ_COUNT = 50_000
SEEDS = ("0-7",)
MOST_SEEDS = 100_000


@app.command(group="Generate")
def sample(
    model: Location | None = None,
    /,
    *,
    request: Annotated[Request | None, Parameter(name="*")] = None,
    settings: Annotated[SamplingOptions | None, Parameter(name="*")] = None,
    start: Annotated[StartImage | None, Parameter(name="*")] = None,
    files: Annotated[Files | None, Parameter(name="*")] = None,
    checkpoint: Annotated[Decoding | None, Parameter(name="*")] = None,
    machine: Annotated[Machine | None, Parameter(name="*")] = None,
    json: Json = False,
) -> None:
    """Generate images for all labels or prompts and seeds: PNG or .npy files with a contact sheet, or an .npz file.

    Parameters
    ----------
    model
        A model or run folder, an external checkpoint, or a hub id (with --like by default that of the image).
    json
        Print one JSON object.
    """
    call = Call(
        model, with_prompts(request or Request()), settings or SamplingOptions(), start or StartImage(),
        files or Files(), checkpoint or Decoding(), machine or Machine(), json,
    )  # fmt: skip
    generate(*read_like(call))


def generate(call: Call, repeat: "Repeat | None") -> None:
    """Generate the images of a call of `ditlab sample`; `repeat` is the record of --like."""
    check_together(call.request, call.start, call.files)
    out, npz, given = folder_of(call.files), call.files.npz, call.options.given()
    with recorded_model(call, repeat):
        pipe = open_model(str(call.model), call.checkpoint, call.machine.device)
    check_values(call.request, pipe)
    if call.files.show:
        pipe.values = pipe.values.showing(call.files.show, pipe.picture_shape[0])
    words = given if repeat is None else repeat.words(given, pipe.objective)
    words |= {} if call.request.size is None else {"size": parse_sides(call.request.size)}
    words |= original_of(pipe, call.start, words.get("size"))
    words |= {} if call.request.negative_prompt is None else {"negative_prompt": call.request.negative_prompt}
    seeds, total = seeds_and_total(call.request, len(pipe.examples), npz)
    cells = None if npz or repeat is None else repeated_cells(pipe, call.request, repeat, seeds)
    plan, total = pipe.resolve(**words), total if cells is None else len(cells)
    if plan.cache is not None:  # one for all batches, which counts the evaluations
        words = {name: value for name, value in words.items() if name != "reuse_error"} | {"reuse": plan.cache}
    exact = npz or plan.options.preset == "reference"
    prepared, batch_size = prepare(pipe, call.machine, words, total, exact=exact)
    for line in [] if repeat is None else repeat.changes(pipe, words.get("original")):
        say(line)
    if npz:
        sample_npz(prepared, call, out, words, seeds[0], total, batch_size)
    else:
        sample_images(prepared, call, out, words, seeds, cells, batch_size)
    if not call.json:
        say(f"settings: {settings_line(plan, prepared, guidance_origin(pipe, words))}")


def folder_of(files: Files) -> Path:
    """Return the folder to write into: the given one, or the first free one of samples, samples-2, ...

    With --npz, an unfinished file is continued; the processes of one call share the folder samples.

    Raises:
        InputError: the given folder is not empty, or is named like a file.
    """
    folder = files.out or Path("samples")
    remedy = {".npz": ", with --npz for one .npz file in it", ".npy": ", with --format npy for .npy files in it"}
    check_folder_name(folder, remedy.get(folder.suffix, ""))
    if not files.npz:
        folder = folder if files.out or files.overwrite else free_folder(folder)
        claim_folder(folder, files.overwrite)
    elif files.out is None and not files.overwrite and process_place()[1] == 1 and not unfinished(folder):
        return next((path for path in sorted(Path().glob("samples-*")) if unfinished(path)), free_folder(folder))
    return folder


def unfinished(folder: Path) -> bool:
    """Whether a folder holds an .npz file that is not complete."""
    return any(folder.glob("samples.draft*"))


def guidance_origin(pipe: "BasePipeline", words: dict[str, Any]) -> str:
    """Return where the guidance comes from, if it is the default of a published checkpoint."""
    origin = pipe.model.config.get(GUIDANCE_ORIGIN)
    return "" if origin is None or {"guidance", "guidance_scale"} & {*words} else f" (default of {origin})"


def check_together(request: Request, start: StartImage, files: Files) -> None:
    """Check that options can be combined, before anything is loaded."""
    if files.npz:
        unused: dict[str, Any] = {
            "--labels": None if request.prompts else request.labels,
            "--strip": request.strip,
            "--image": start.image,
            "--given": start.given or None,
            "--frames": start.frames,
        }
        unused |= {"--trajectory": files.trajectory or None, "--show": files.show or None}
        unused |= {"--format": None if files.format == "png" else files.format, "--fps": files.fps}
        if names := [name for name, value in unused.items() if value is not None]:
            raise InputError(f"--npz generates all classes from noise; leave {' and '.join(names)} out")
    elif request.label_sampling is not None:
        raise InputError("--label-sampling chooses the labels of an .npz file; add --npz, or give --labels")
    if request.strip is not None and request.count is not None:
        raise InputError("--strip already gives the number of images; leave --count out")
    if request.strip is not None and start.image is not None:
        raise InputError("--strip interpolates from noise; leave --image out")
    if start.image is None and (start.mask or start.strength is not None or start.resample is not None):
        raise InputError("--mask, --strength and --resample need an image to start from; add --image")
    check_clips(start)
    parse_seeds(list(request.seeds or SEEDS))


def check_clips(start: StartImage) -> None:
    """Check that options of clips can be combined."""
    if start.image is not None and (start.given or start.frames):
        raise InputError("--image starts from an image, and --given and --frames are for clips; leave one of them out")
    if start.overlap is not None and start.frames is None:
        raise InputError("--overlap needs the length of the clips; add --frames")


def open_model(model: str, checkpoint: Decoding, device: str) -> "Pipeline":
    """Load a model, and print notes about conversions."""
    pipe = checkpoint.load(model, device=pick_device(device))
    if checkpoint.tile is not None:
        pipe.autoencoder.tile(checkpoint.tile)
        options = {**pipe.loaded_from.get("load_options", {}), "tile": checkpoint.tile}
        pipe.loaded_from = {**pipe.loaded_from, "load_options": options}
    return pipe


def report_loss(pipe: "BasePipeline") -> None:
    """Report that PNG files hold less than the model generates, if that is so."""
    from ditlab.inference.card import about_images

    channels, _ = pipe.picture_shape
    if pipe.values.loses(channels):
        say(f"the model generates {about_images(channels, pipe.values)}, with 8 bits; --format npy keeps all numbers")


def original_of(pipe: "BasePipeline", start: StartImage, size: Sequence[int] | None) -> dict[str, Any]:
    """Read the image to start from, as an argument of `BasePipeline.steps`."""
    from ditlab.inference.given import given_frames
    from ditlab.inference.inpaint import read_image

    if start.given or start.frames is not None:
        images = read_given(start.given) if start.given else None
        return {"original": given_frames(pipe, images, start.frames, start.overlap, size)}
    if start.image is None:
        return {}
    mask = None if start.mask is None else read_image(start.mask)
    options: dict[str, Any] = {"strength": start.strength, "resample": start.resample, "size": size}
    return {"original": pipe.original(read_image(start.image), mask=mask, **options)}


def read_given(pairs: Sequence[str]) -> dict[int, Any]:
    """Read the frames INDEX=FILE that are given; "last" is the index -1.

    Raises:
        InputError: another form, an index twice, or a file that cannot be read.
    """
    from ditlab.inference.inpaint import read_image

    images: dict[int, Any] = {}
    for pair in pairs:
        place, _, file = pair.partition("=")
        if not file or not (place == "last" or place.removeprefix("-").isdecimal()):
            raise InputError(f"--given {pair}; give INDEX=FILE, such as 0=first.png or -1=end.png")
        index = -1 if place == "last" else int(place)
        if index in images:
            raise InputError(f"--given has frame {place} twice; leave one of them out")
        images[index] = read_image(Path(file))
    return images


def seeds_and_total(request: Request, examples: int, npz: bool) -> tuple[list[int], int]:
    """Return the seeds for each label, and the number of all images; `examples` is the number of default labels."""
    seeds, labels = parse_seeds(list(request.seeds or SEEDS)), len(request.labels or ()) or examples
    if npz:
        return seeds, NPZ_COUNT if request.count is None else request.count
    if request.count is not None:
        if request.count < 1 or request.count % labels:
            low = max(1, request.count // labels) * labels
            line = (
                f"--count {request.count} for {counted(labels, 'label')}; give {low}, or another multiple of {labels}"
            )
            raise InputError(line)
        check_seeds(request.count // labels)
        seeds = list(range(seeds[0], seeds[0] + request.count // labels))
    return seeds, len(seeds) * labels


def prepare(
    pipe: "Pipeline", machine: Machine, words: dict[str, Any], total: int, *, exact: bool
) -> "tuple[PreparedPipeline, int]":
    """Prepare a model for generating `total` images; returns it with the batch size.

    With `exact`, the precision does not depend on the machine.
    """
    from ditlab.inference.prepare import ready

    precision = "float32" if machine.precision == "auto" and exact else machine.precision
    return ready(
        pipe, screen, precision=precision, compile=machine.compile, count=total, batch_size=machine.batch_size,
        options=words,
    )  # fmt: skip


def settings_line(plan: "Plan", pipe: "BasePipeline", origin: str) -> str:
    """Format the settings in one line, with the origin of the guidance."""
    options, (low, high) = plan.options, plan.interval
    parts = [
        f"{options.sampler}, {counted(plan.steps, 'step')} ({plan.evaluations} NFE)",
        f"schedule {options.schedule}",
    ]
    interval = f" for t in {low:g}..{high:g}" if (low, high) != (0, 1) else ""
    parts.append(f"guidance {plan.guidance:g}{interval}{origin}")
    for name in (
        "guidance_channels",
        "guidance_rescale",
        "skip_layers",
        "skip_guidance",
        "shift",
        "eta",
        "reuse",
        "reuse_error",
    ):
        if (value := getattr(options, name)) is not None:
            numbers = value if isinstance(value, tuple) else (value,)
            parts.append(f"{name.replace('_', ' ')} {' '.join(f'{number:g}' for number in numbers)}")
    if plan.size != pipe.net.size:
        size = sides_of((*plan.size[:-2], *pipe.picture_shape_of(plan.size)[1]))
        parts.append(
            f"size {size}" + (f" (shifts the schedule by {plan.size_shift:.2f})" if plan.size_shift != 1 else "")
        )
    if plan.original is not None and plan.original.parts > 1:
        parts.append(f"in {plan.original.parts} parts")
    if plan.cache is not None and plan.cache.asked:
        parts.append(f"{plan.cache.computed:,} of {plan.cache.asked:,} evaluations whole")
    return ", ".join([*parts, pipe.net.precision])


def sample_npz(
    pipe: "BasePipeline", call: Call, out: Path, words: dict[str, Any], seed: int, count: int, batch_size: int,
) -> None:  # fmt: skip
    """Write samples.npz, and print a summary."""
    from ditlab.inference.npz import write_samples

    rank, world = process_place()
    request = call.request
    written = write_samples(
        pipe, out, screen, count=count, labels=request.label_sampling or "balanced", seed=seed,
        batch_size=batch_size, options=words, prompts=request.prompts or "", overwrite=call.files.overwrite,
        rank=rank, world=world,
    )  # fmt: skip
    if written is None:
        say("this process has finished its part; other processes are still generating")
    elif call.json:
        print_json({"file": written, "count": count})
    else:
        say(f"{counted(count, 'image')} in {written}")


def sample_images(
    pipe: "BasePipeline", call: Call, out: Path, words: dict[str, Any], seeds: list[int],
    cells: "list[Cell] | None", batch_size: int,
) -> None:  # fmt: skip
    """Write PNG or .npy files, and print a summary."""
    from ditlab.inference.folder import sample_folder

    written = sample_folder(
        pipe, call.request.labels, seeds, out, screen, batch_size=batch_size, trajectory=call.files.trajectory,
        options=words, strip=call.request.strip, cells=cells, format=call.files.format or "", fps=call.files.fps,
    )  # fmt: skip
    if written.files[0].suffix == ".png":
        report_loss(pipe)
    if call.json:
        print_json(dataclasses.asdict(written))
        return
    shown = [f"contact sheet {written.grid}"] + ([f"animation {written.trajectory}"] if written.trajectory else [])
    say(f"{counted(written.count, noun_of(pipe.net.size))} in {written.seconds:.1f} s, in {out}; {', '.join(shown)}")


def parse_seeds(texts: list[str]) -> list[int]:
    """Parse ["0-3", "7"] as [0, 1, 2, 3, 7]."""
    seeds: list[int] = []
    for text in texts:
        first, dash, last = text.partition("-")
        if (
            len(text) > 40
            or not first.isdecimal()
            or (dash and not last.isdecimal())
            or (dash and int(last) < int(first))
        ):
            raise InputError(f'seeds "{text[:40]}"; give numbers or rising ranges such as 0-15')
        check_seeds(len(seeds) + int(last or first) - int(first) + 1)
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def check_seeds(count: int) -> None:
    """Check that the images of a number of seeds can be held in memory.

    Raises:
        InputError: there are too many.
    """
    if count > MOST_SEEDS:
        raise InputError(f"{count:,} seeds; give at most {MOST_SEEDS:,} at a time, or use --npz --count")
