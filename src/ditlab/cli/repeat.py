"""`ditlab sample --like FILE`: take all options that are not given from the record of generated images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.cli.options import Decoding, Files, Machine, Request, StartImage
from ditlab.cli.terminal import say
from ditlab.config.sampling import SamplingOptions
from ditlab.core.errors import InputError, PlugInError

if TYPE_CHECKING:
    from ditlab.inference.folder import Cell
    from ditlab.inference.pipeline import Pipeline
    from ditlab.inference.records import Repeat


GIVE_MODEL = "give it: sample MODEL --like FILE"


@dataclass(frozen=True)
class Call:
    """All arguments of `ditlab sample`."""

    model: str | None
    request: Request
    options: SamplingOptions
    start: StartImage
    files: Files
    checkpoint: Decoding
    machine: Machine
    json: bool


def read_like(call: Call) -> "tuple[Call, Repeat | None]":
    """Return the arguments with those of the file of --like for options that are not given, and its record.

    Raises:
        InputError: the file has no record, or the model is not known.
    """
    if call.request.like is None:
        if call.model is None:
            raise InputError("no model; give a model or run folder, or repeat an image with --like FILE")
        return call, None
    from ditlab.inference.records import read_record

    repeat = read_record(call.request.like)
    source = call.model or repeat.common.get("source")
    if source is None:
        name = repeat.common.get("model")
        raise InputError(f'{repeat.file} does not have the path of its model "{name}"; {GIVE_MODEL}')
    loading = {} if call.model else dict(repeat.common.get("load_options", {}))
    if call.model is None:
        source = located(str(source), repeat.file, "model")
    for name in ("autoencoder", "base"):
        if isinstance(place := loading.get(name), str):
            loading[name] = located(place, repeat.file, name)
    if isinstance(side := loading.pop("size", None), list):
        loading["latent_size"] = "x".join(map(str, side))
    precision, npz = repeat.common.get("precision", "auto"), call.files.npz or repeat.many is not None
    return replace(
        call,
        model=str(source),
        request=repeated_request(call.request, call.files.npz, repeat),
        start=filled(call.start, paths(repeat.start, call.start, repeat.file)),
        files=replace(
            call.files,
            npz=npz,
            show=call.files.show or (() if npz else tuple(repeat.common.get("show", ()))),
            format=call.files.format or (None if npz else repeat.format),
            fps=call.files.fps or repeat.common.get("fps"),
        ),
        checkpoint=filled(call.checkpoint, loading),
        machine=replace(
            call.machine, precision=precision if call.machine.precision == "auto" else call.machine.precision
        ),
    ), repeat


def located(recorded: str, file: Path, what: str) -> str:
    """A path that `file` records; a relative one that is not in the current folder is found in those above the file."""
    with suppress(OSError):  # such as a name that is too long
        if Path(recorded).exists():
            return recorded
        for folder in file.resolve().parents:
            if (place := folder / recorded).exists():
                say(f"{file} records the {what} {recorded}, which is not in the current folder; using {place}")
                return str(place)
    return recorded


def paths(start: dict[str, Any], given: StartImage, file: Path) -> dict[str, Any]:
    """Return the image to start from that `file` records, with paths; `given` are the options of this call.

    Raises:
        InputError: the images start from an image whose path is not recorded, or which is not there.
    """
    if "given" in start and not given.given:
        if not start["given"]:
            raise InputError("these clips have given frames whose paths are not recorded; add --given")
        pairs = [str(pair).partition("=") for pair in start["given"]]
        start = start | {"given": tuple(f"{place}={located(path, file, 'frame')}" for place, _, path in pairs)}
    if "given" in start or "frames" in start:
        return start
    if start and "image" not in start and given.image is None:
        raise InputError("these images start from an image whose path is not recorded; add --image (and --mask)")
    values = dict(start)
    for name in [name for name in ("image", "mask") if name in start]:
        values[name] = Path(start[name] if getattr(given, name) else located(start[name], file, name))
        if getattr(given, name) is None and not values[name].exists():
            raise InputError(f"{file} records the {name} {values[name]}, which does not exist; give it with --{name}")
    return values


@contextmanager
def recorded_model(call: Call, repeat: "Repeat | None") -> Iterator[None]:
    """Say where the model comes from if the enclosed block cannot load it and only the record names it.

    Raises:
        InputError: the block raised one.
    """
    try:
        yield
    except PlugInError:
        raise
    except InputError as error:
        if repeat is None or call.model != repeat.common.get("source"):
            raise
        if not (path := Path(str(call.model))).is_absolute() and not path.exists():
            raise InputError(
                f"{repeat.file} records the model {path}, which is neither in the current folder nor in a folder above "
                f"the file ({error}); {GIVE_MODEL}"
            ) from error
        raise InputError(f"{repeat.file} records a model that cannot be loaded ({error}); {GIVE_MODEL}") from error


def filled(options: Any, recorded: dict[str, Any]) -> Any:
    """Replace the options of a dataclass that have their default by recorded values, where there are some."""
    free = {field.name for field in fields(options) if getattr(options, field.name) == field.default}
    return replace(options, **{name: value for name, value in recorded.items() if name in free})


def repeated_request(request: Request, npz: bool, repeat: "Repeat") -> Request:
    """Fill in what is recorded of an .npz file; for --count and --strip also labels and seeds of images.

    Raises:
        InputError: a strip between images that lie on a strip themselves.
    """
    if repeat.many is not None:
        recorded = repeat.many | {"seeds": (str(repeat.many["seed"]),)}
        names = ("count", "label_sampling", "seeds", "prompts")
        return filled(request, {name: recorded[name] for name in names if name in recorded})
    if npz or (request.count is None and request.strip is None):
        return request
    if repeat.interpolates:
        raise InputError(
            f"{repeat.file} is an interpolation; give --labels and --seeds, or leave --count and --strip out"
        )
    seeds = tuple(str(seed) for seed in repeat.distinct("seed"))
    return filled(request, {"labels": repeat.distinct("label"), "seeds": seeds})


def repeated_cells(pipe: "Pipeline", request: Request, repeat: "Repeat", seeds: Sequence[int]) -> "list[Cell] | None":
    """Return the images of a record, with given labels and seeds in place of those that are recorded.

    Args:
        pipe: the model.
        request: the request.
        repeat: the record of --like.
        seeds: the given seeds.

    Returns:
        The images; None if the request sets their number, so that only single settings follow from the record.
    """
    from ditlab.inference.folder import repeated

    if repeat.many is not None or request.count is not None or request.strip is not None:
        return None
    return repeated(pipe, repeat, request.labels, None if request.seeds is None else seeds)
