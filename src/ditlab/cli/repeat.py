"""`ditlab sample --like FILE`: take all options that are not given from the record of generated images."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditlab.cli.options import Decoding, Files, Machine, Request, StartImage
from ditlab.config.sampling import SamplingOptions
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    from ditlab.inference.folder import Cell
    from ditlab.inference.pipeline import Pipeline
    from ditlab.inference.records import Repeat


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
        raise InputError(
            f'{repeat.file} does not have the path of its model "{name}"; give it: sample MODEL --like FILE'
        )
    loading = {} if call.model else dict(repeat.common.get("load_options", {}))
    if isinstance(side := loading.get("size"), list):
        loading["size"] = "x".join(map(str, side))
    precision = repeat.common.get("precision", "auto")
    return replace(
        call,
        model=str(source),
        request=repeated_request(call.request, call.files.npz, repeat),
        start=filled(call.start, paths(repeat.start, call.start.image)),
        files=replace(
            call.files,
            npz=call.files.npz or repeat.many is not None,
            format=call.files.format or (None if call.files.npz else repeat.format),
            show=call.files.show or tuple(repeat.common.get("show", ())),
        ),
        checkpoint=filled(call.checkpoint, loading),
        machine=replace(
            call.machine, precision=precision if call.machine.precision == "auto" else call.machine.precision
        ),
    ), repeat


def paths(start: dict[str, Any], given: Path | None) -> dict[str, Any]:
    """Return the recorded image to start from, with paths; `given` is the image of this call.

    Raises:
        InputError: the images start from an image whose path is not recorded.
    """
    if start and "image" not in start and given is None:
        raise InputError("these images start from an image whose path is not recorded; add --image (and --mask)")
    return {name: Path(value) if name in ("image", "mask") else value for name, value in start.items()}


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
        return filled(request, {name: recorded[name] for name in ("count", "label_sampling", "seeds")})
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
