"""Data classes of the service (limits, models, checked requests), and the checks of requests that need the model."""

import io
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from PIL.Image import Image

from ditlab.conditioning import ClassLabels, Text
from ditlab.core.errors import InputError
from ditlab.core.types import Between, Label, Seed, Step, between
from ditlab.core.units import counted, from_width_first, noun_of
from ditlab.inference.base import PROMPTS, BasePipeline
from ditlab.inference.card import about_images
from ditlab.inference.given import GivenFrames, check_frame, check_model, given_frames
from ditlab.inference.inpaint import FORMATS, Original, read_picture
from ditlab.inference.output import frame_rate
from ditlab.inference.records import recorded_size
from ditlab.inference.sizes import input_size
from ditlab.report.videos import check_video
from ditlab.server.introspection import Attention
from ditlab.server.requests import SIZE, GenerationRequest, resolved


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

    size: str  # WIDTHxHEIGHT, of clips FRAMESxWIDTHxHEIGHT
    images: str  # channels, type and range, in words
    given: bool  # whether the model takes given frames
    condition: str
    classes: int
    prompts: list[str]  # some captions of the training data; empty for a model that reads no text
    defaults: dict[str, Any]  # the sampling settings of a request that gives none
    precision: str
    model_hash: str

    @classmethod
    def of(cls, pipe: BasePipeline) -> "About":
        """The facts of a pipeline."""
        conditioner = pipe.conditioner
        return cls(
            size=recorded_size(pipe, pipe.net.size),
            images=about_images(pipe.picture_shape[0], pipe.values),
            given=takes_frames(pipe),
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
    size: str  # WIDTHxHEIGHT, of clips FRAMESxWIDTHxHEIGHT
    settings: dict[str, Any]  # every sampling setting, resolved
    negative: str | None
    original: Original | None
    previews: int
    format: str  # png, or one of clips
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
    images: tuple[bytes, ...] = ()  # PNG, or the format of the request
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


def takes_frames(pipe: BasePipeline) -> bool:
    """Whether a model takes given frames."""
    try:
        check_model(pipe)
    except InputError:
        return False
    return True


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


@contextmanager
def width_first_messages() -> Iterator[None]:
    """Turn the sizes in messages of the block from height x width to width x height, as requests have them."""
    try:
        yield
    except InputError as error:
        message = re.sub(r"(\d+)x(\d+)(?![\dx])", r"\2x\1", str(error))
        raise InputError(message.replace("height x width", "width x height")) from None


def choose_size(pipe: BasePipeline, request: GenerationRequest, most: int) -> tuple[int, ...]:
    """Height and width of the images, or frames, height and width of the clips.

    Args:
        pipe: the model.
        request: the request.
        most: tokens that an image may have, unless it has the size of the model.

    Raises:
        InputError: a size that the model cannot generate, or a larger one.
    """
    own = (*pipe.net.size[:-2], *pipe.picture_shape[1])
    if request.size is None:
        return own
    if not SIZE.fullmatch(request.size):
        raise InputError(f'size "{request.size[:50]}"; give WIDTHxHEIGHT, for clips also FRAMESxWIDTHxHEIGHT')
    size = from_width_first(request.size)
    if len(size) > len(own):
        raise InputError(f"size {request.size} has frames, and this model generates images; give WIDTHxHEIGHT")
    with width_first_messages():
        network_size = input_size(pipe, size)
    if network_size != pipe.net.size and (tokens := pipe.net.tokens_at(network_size)) > most:
        raise InputError(f"size {request.size} has {counted(tokens, 'token')}; give one of at most {most:,}")
    return (*own[: len(own) - len(size)], *size)


def start_image(pipe: BasePipeline, request: GenerationRequest, most: int, size: tuple[int, ...]) -> Original | None:
    """The image to start from, with its mask, or the given frames; None for a request without an image.

    Args:
        pipe: the model.
        request: the request.
        most: pixels that an image may have.
        size: size of the generated images or clips.

    Raises:
        InputError: a file that is not an image or too large, or a mask without an image.
    """
    clips = (request.given, request.frames, request.overlap) != (None, None, None)
    if clips and request.image is not None:
        raise InputError("image starts from an image, and given, frames and overlap are for clips; leave one out")
    image, mask = (
        None
        if (content := request.file(name)) is None
        else read_picture(io.BytesIO(content), most, FORMATS, (size[-2], size[-1]))
        for name in ("image", "mask")
    )
    if image is not None:
        return pipe.original(image, mask=mask, strength=request.strength, resample=request.resample, size=size)
    if mask is not None or request.strength is not None or request.resample is not None:
        raise InputError("mask, strength and resample need an image to start from; give image too")
    return start_frames(pipe, request, most, size) if clips else None


def start_frames(pipe: BasePipeline, request: GenerationRequest, most: int, size: tuple[int, ...]) -> GivenFrames:
    """The given frames and the length of the clips of a request, see `start_image`."""
    check_model(pipe)
    files = request.given_files(size[0])
    images: dict[int, Image] = {}
    for number, content in (files or {}).items():
        images[number] = read_picture(io.BytesIO(content), most, FORMATS, what=f"given frame {number}")
        with width_first_messages():  # at once, so that no other large image is decoded
            check_frame((images[number].height, images[number].width), number, size)
    with width_first_messages():
        return given_frames(pipe, None if files is None else images, request.frames, request.overlap, size)


def check_steps(total: int, original: Original | None, most: int) -> None:
    """Check the number of steps of a request.

    Raises:
        InputError: there are too many.
    """
    if total <= most:
        return
    if original is not None and original.parts > 1:
        raise InputError(
            f"{total:,} steps in {original.parts:,} parts; give fewer frames or steps, for at most {most} steps in all"
        )
    raise InputError(f"{total} steps; give 1 to {most}")


def check_format(pipe: BasePipeline, format: str, size: tuple[int, ...]) -> None:
    """Check that files of a format can be written.

    Raises:
        InputError: a format of clips for images, PyAV is not installed, or the format needs even sides.
    """
    if format == "png":
        return
    if noun_of(size) == "image":
        raise InputError(f"format {format} is for clips, and this model generates images; leave format out")
    with width_first_messages():
        check_video(f".{format}", size[-2:], frame_rate(pipe.model.config))


def as_json(value: Label | Seed) -> Any:
    """A label or seed as a plain value for JSON."""
    return asdict(value) if isinstance(value, Between) else value


def evenly(steps: int, count: int) -> set[int]:
    """Indices of `count` steps, evenly spaced between the first and the last step."""
    return {round((i + 1) * steps / (count + 1)) for i in range(count)}
