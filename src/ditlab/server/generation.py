"""Data classes of the service (limits, models, checked requests), and the checks of requests that need the model."""

import io
import secrets
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from ditlab.conditioning import ClassLabels, Text
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Label, Seed, Step, between
from ditlab.core.units import counted
from ditlab.inference.base import PROMPTS, BasePipeline
from ditlab.inference.card import about_images
from ditlab.inference.inpaint import FORMATS, Original, read_picture
from ditlab.inference.sizes import input_size
from ditlab.server.introspection import Attention
from ditlab.server.requests import GenerationRequest, resolved


@dataclass(frozen=True)
class Limits:
    """Limits of a request, and of all requests together."""

    images: int = 16
    steps: int = 250
    seconds: float = 120.0
    requests: int = 32  # in progress at the same time
    body: int = 16 * 2**20  # bytes
    pixels: int = 16_000_000  # of an image in a request
    tokens: int = 16_384  # of a generated image whose size the request gives
    rows: int = 64  # of a network call
    memory: int = 128 * 2**20  # bytes that must be free for a request, while others are in progress
    connections: int = 200  # open at the same time; some systems allow a process 256 files
    client_seconds: float = 30.0  # to send a request, and to read a part of a response


@dataclass(frozen=True)
class About:
    """Facts of a model that do not change while it is served."""

    size: str
    images: str  # channels, type and range, in words
    condition: str
    classes: int
    prompts: list[str]  # some captions of the training data; empty for a model that reads no text
    defaults: dict[str, Any]  # the sampling settings of a request that gives none
    precision: str
    model_hash: str

    @classmethod
    def of(cls, pipe: BasePipeline) -> "About":
        """The facts of a pipeline."""
        channels, (height, width) = pipe.picture_shape
        conditioner = pipe.conditioner
        return cls(
            size=f"{width}x{height}",
            images=about_images(channels, pipe.values),
            condition=conditioner.config["kind"],
            classes=conditioner.classes if isinstance(conditioner, ClassLabels) else 0,
            prompts=list(pipe.model.config.get(PROMPTS, [])) if isinstance(conditioner, Text) else [],
            defaults=resolved(pipe, {}),
            precision=pipe.net.precision,
            model_hash=pipe.model.identity()["weights_hash"],
        )


@dataclass(frozen=True)
class Generation:
    """A checked request that can be run once."""

    model: str
    labels: list[Label]
    seeds: list[Seed]
    size: str  # WIDTHxHEIGHT
    settings: dict[str, Any]  # every sampling setting, resolved
    negative: str | None
    original: Original | None
    previews: int
    animation: bool
    numbers: bool
    total: int  # steps, with those that inpainting repeats
    steps: Iterator[Step]
    stop: threading.Event  # set it to cancel the generation


@dataclass(frozen=True)
class Event:
    """What happens while a generation runs; the last event is "done" or "error"."""

    kind: str  # step, preview, done, error
    step: int = 0
    steps: int = 0
    images: tuple[bytes, ...] = ()  # PNG
    animations: tuple[bytes, ...] = ()  # GIF
    arrays: tuple[bytes, ...] = ()  # .npy
    message: str = ""


@dataclass(frozen=True)
class Inspection:
    """What the network computed while it generated an image."""

    settings: dict[str, Any]
    steps: tuple[tuple[float, bytes], ...]  # time after each step, and the estimate of the image as PNG
    changes: list[list[float | None]]  # from the second step on: of each block
    attentions: int  # in a network call
    attention: Attention | None


def choose_labels(pipe: BasePipeline, request: GenerationRequest, most: int) -> list[Label]:
    """What each image shows: the labels of the request, or all classes in turn.

    Args:
        pipe: the model.
        request: the request.
        most: images that a request may have.

    Raises:
        InputError: the wrong number of labels, or too many images.
    """
    requested = request.values()
    count = request.n if requested is None or request.n > 1 else len(requested)
    if requested is not None and len(requested) not in (1, count):
        raise InputError(
            f"{counted(len(requested), 'label')} for {counted(count, 'image')}; give one label, or one for each image"
        )
    if count > most:
        raise InputError(f"{count} images; give 1 to {most}")
    if requested is None:
        all_labels = pipe.examples
        labels: list[Label] = [all_labels[i % len(all_labels)] for i in range(count)]
    else:
        labels = [*requested] * (count if len(requested) == 1 else 1)
    if request.to_label is not None:
        labels = list(between(labels[0], request.to_label, count))
    return labels


def described_label(pipe: BasePipeline, label: Label, negative: str | None) -> dict[str, Any]:
    """What an image shows, for its settings: the label, or the prompts with what the model does not read of them."""
    if not isinstance(pipe.conditioner, Text):
        return {"label": as_json(label)}
    ends = (label.first, label.second) if isinstance(label, Between) else (label,)
    cut = [end for text in ends if isinstance(text, str) and (end := pipe.conditioner.encoder.cut(text))]
    described = {"prompt": as_json(label), **({"left_out": " / ".join(cut)} if cut else {})}
    if negative is None:
        return described
    end = pipe.conditioner.encoder.cut(negative)
    return described | {"negative_prompt": negative, **({"negative_left_out": end} if end else {})}


def choose_seeds(request: GenerationRequest, count: int) -> list[Seed]:
    """The seed of each image: those of the request, consecutive ones, or random ones.

    Raises:
        InputError: more or fewer seeds than images.
    """
    seeds = request.seeds or [secrets.randbelow(2**32)]
    if len(seeds) not in (1, count):
        raise InputError(
            f"{counted(len(seeds), 'seed')} for {counted(count, 'image')}; give one seed, or one for each image"
        )
    if request.to_seed is not None:
        return list(between(seeds[0], request.to_seed, count))
    if request.to_label is not None:
        return [seeds[0]] * count
    return list(seeds) if len(seeds) == count else [(seeds[0] + i) % 2**63 for i in range(count)]


def choose_size(pipe: BasePipeline, request: GenerationRequest, most: int) -> tuple[int, int]:
    """Height and width of the images.

    Args:
        pipe: the model.
        request: the request.
        most: tokens that an image may have, unless it has the size of the model.

    Raises:
        InputError: a size that the model cannot generate, or a larger one.
    """
    if request.size is None:
        return pipe.picture_shape[1]
    width, height = map(int, request.size.split("x"))
    try:
        size = input_size(pipe, (height, width))
    except InputError as error:
        raise InputError(f"size {request.size} (width x height): {error}") from None
    if size != pipe.net.size and (tokens := pipe.net.tokens_at(size)) > most:
        raise InputError(f"size {request.size} has {counted(tokens, 'token')}; give one of at most {most:,}")
    return height, width


def start_image(pipe: BasePipeline, request: GenerationRequest, most: int, size: tuple[int, int]) -> Original | None:
    """The image to start from, with its mask; None for a request without an image.

    Args:
        pipe: the model.
        request: the request.
        most: pixels that an image may have.
        size: height and width of the generated images.

    Raises:
        InputError: a file that is not an image or too large, or a mask without an image.
    """
    image, mask = (
        None if (content := request.file(name)) is None else read_picture(io.BytesIO(content), most, FORMATS, size)
        for name in ("image", "mask")
    )
    if image is not None:
        return pipe.original(image, mask=mask, strength=request.strength, resample=request.resample, size=size)
    if mask is not None or request.strength is not None or request.resample is not None:
        raise InputError("mask, strength and resample need an image to start from; give image too")
    return None


def as_json(value: Label | Seed) -> Any:
    """A label or seed as a plain value for JSON."""
    return asdict(value) if isinstance(value, Between) else value


def evenly(steps: int, count: int) -> set[int]:
    """Indices of `count` steps, evenly spaced between the first and the last step."""
    return {round((i + 1) * steps / (count + 1)) for i in range(count)}
