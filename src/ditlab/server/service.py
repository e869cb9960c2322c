"""The service behind the HTTP API, without HTTP: who may draw, how much, and what comes out.

A request becomes a drawing in a thread of its own; what it has to say (previews, pictures, the end) goes to a function
that the caller gives. No path from a request reaches the file system, and models are those that the operator loaded.
"""

import base64
import io
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import Any

from PIL import Image, PngImagePlugin
from torch import Tensor

from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Between, Label, Seed, Step, between
from ditlab.inference.inpaint import FORMATS, Original, read_picture
from ditlab.inference.pipeline import Pipeline
from ditlab.report.sheets import save_animation, to_pil
from ditlab.server.batching import Engine, Stopped
from ditlab.server.introspection import Attention, Inside

log = logging.getLogger("uvicorn.error")  # which the server shows
BROKEN = "the drawing failed; the service's log says why"
FRAMES = 40  # of an animation at most
SHOWN = 256  # pixels along its shorter side, about


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    pictures: int = 16
    steps: int = 250
    seconds: float = 120.0
    drawings: int = 32  # at a time; more are turned away
    body: int = 16 * 2**20  # bytes of a request
    pixels: int = 16_000_000  # of a picture that comes in
    rows: int = 64  # of a network call


@dataclass(frozen=True)
class Order:
    """A drawing as it was asked for."""

    model: str
    labels: list[Label]
    seeds: list[Seed]
    previews: int = 0
    animated: bool = False
    original: Original | None = None
    settings: dict[str, Any] = field(default_factory=dict)  # of `Pipeline.steps`


@dataclass(frozen=True)
class Event:
    """What a drawing has to say."""

    kind: str  # step, preview, done, error
    step: int = 0
    steps: int = 0
    pictures: tuple[bytes, ...] = ()  # PNG
    animations: tuple[bytes, ...] = ()  # GIF
    message: str = ""


@dataclass(frozen=True)
class Look:
    """What was seen inside."""

    steps: tuple[tuple[float, bytes], ...]  # time behind each step, and its x0 as PNG
    changes: list[list[float | None]]  # from the second step on: of each block
    attentions: int  # in a network call
    attention: Attention | None


class Full(Exception):  # noqa: N818 - it is not the caller's fault
    """No place is free."""


class Failed(Exception):  # noqa: N818 - it is not the caller's fault
    """A drawing that did not come to its end."""


class Service:
    """Models by name, and those who draw with them."""

    def __init__(self, models: Mapping[str, Pipeline], limits: Limits, told: "Told | None" = None) -> None:
        """Ready to draw.

        Args:
            models: by the names under which they are asked for; the first one is the default.
            limits: of each request, and of all.
            told: who counts.
        """
        self.models, self.limits, self.told = dict(models), limits, told or Told()
        self.engines = {name: Engine(pipe, rows=limits.rows, told=self.told.call) for name, pipe in self.models.items()}
        self.threads = ThreadPoolExecutor(limits.drawings, thread_name_prefix="drawing")
        self.places = threading.BoundedSemaphore(limits.drawings)
        self.thumbnails: dict[tuple[str, int], bytes] = {}

    def find(self, model: str | None) -> tuple[str, Pipeline]:
        """A model by name; the first one if None.

        Raises:
            InputError: an unknown name.
        """
        if not self.models:
            raise InputError("no model is served yet; start again when its run has a checkpoint")
        name = next(iter(self.models)) if model is None else model
        return name, lookup(self.models, name, "model")

    def order(
        self,
        *,
        model: str | None,
        labels: list[Label] | None,
        count: int,
        seeds: list[int] | None,
        to_label: Label = None,
        to_seed: int | None = None,
        picture: bytes | None = None,
        mask: bytes | None = None,
        strength: float | None = None,
        resample: int | None = None,
        previews: int = 0,
        animated: bool = False,
        **settings: Any,
    ) -> Order:
        """A checked order: what is left out is filled in.

        Args:
            model: a name; the first model's if None.
            labels: class names or indices; None is no condition, or any classes in turn where there are some.
            count: pictures.
            seeds: of the first, or of each; drawn at random if None.
            to_label, to_seed: where the way of all pictures ends that begins at the first label and seed.
            picture, mask: files to start from, see `Pipeline.original`.
            strength, resample: as there.
            previews: pictures of the way, evenly spread.
            animated: the way of each picture is wanted too.
            settings: of `Pipeline.steps`.

        Raises:
            InputError: anything that cannot be used, or more than is allowed.
        """
        (name, pipe), limits = self.find(model), self.limits
        if labels is not None and count == 1:
            count = len(labels)
        if labels is not None and len(labels) not in (1, count):
            raise InputError(f"{len(labels)} labels for {count} pictures; give one, or one for each")
        if not 1 <= count <= limits.pictures:
            raise InputError(f"{count} pictures; give 1 to {limits.pictures}")
        if labels is None:
            labels = [i % pipe.net.classes if pipe.net.classes else None for i in range(count)]
        labels = labels * count if len(labels) == 1 else labels
        pipe.conditioner.encode(labels)  # which refuses unknown ones
        first = secrets.randbelow(2**32) if seeds is None else seeds[0]
        if seeds is None or len(seeds) == 1:
            seeds = [(first + i) % 2**63 for i in range(count)]
        if len(seeds) != count:
            raise InputError(f"{len(seeds)} seeds for {count} pictures; give one, or one for each")
        names, numbers = labels, list[Seed](seeds)
        if to_label is not None:
            pipe.conditioner.encode([to_label])
            names = list[Label](between(labels[0], to_label, count))
        if to_label is not None or to_seed is not None:
            numbers = [first] * count if to_seed is None else list[Seed](between(first, to_seed, count))
        original = None
        if picture is not None:
            area = None if mask is None else read_picture(io.BytesIO(mask), limits.pixels, FORMATS)
            image = read_picture(io.BytesIO(picture), limits.pixels, FORMATS)
            original = pipe.original(image, mask=area, strength=strength, resample=resample)
        elif mask is not None or strength is not None or resample is not None:
            raise InputError("a mask, strength or resample without a picture to start from; give it as image")
        settings = {key: value for key, value in settings.items() if value is not None}
        steps = pipe.step_count(settings | {"original": original})
        if not 1 <= steps <= limits.steps:
            raise InputError(f"{steps} steps; give 1 to {limits.steps}")
        order = Order(name, names, numbers, previews, animated, original, settings)
        self._steps(order, threading.Event())  # a setting that cannot be used
        return order

    def draw(self, order: Order, tell: Callable[[Event], None]) -> threading.Event:
        """Begin a drawing; the last event is "done" or "error".

        Args:
            order: what to draw.
            tell: called in the drawing's thread.

        Returns:
            What ends it early when it is set.

        Raises:
            Full: as many as may are drawing already.
        """
        stop = self._begin()
        self.threads.submit(self._draw, order, tell, stop)
        return stop

    def _begin(self) -> threading.Event:
        """Take a place; what ends the work in it early when it is set."""
        if not self.places.acquire(blocking=False):
            self.told.refused()
            raise Full
        self.told.begun()
        return threading.Event()

    def _steps(
        self, order: Order, stop: threading.Event, around: Callable[[], AbstractContextManager[None]] | None = None
    ) -> Iterator[Step]:
        """The engine's steps, as long as there is time."""
        options = order.settings | ({} if order.original is None else {"original": order.original})
        steps = self.engines[order.model].steps(order.labels, order.seeds, stop, around, **options)
        return self._in_time(steps)

    def _in_time(self, steps: Iterator[Step]) -> Iterator[Step]:
        latest = time.monotonic() + self.limits.seconds
        for step in steps:
            if time.monotonic() > latest:
                raise InputError(f"not done after {self.limits.seconds:.0f} s; ask for fewer steps or pictures")
            yield step

    def _draw(self, order: Order, tell: Callable[[Event], None], stop: threading.Event) -> None:
        try:
            total = self.models[order.model].step_count(order.settings | {"original": order.original})
            shown, kept = spread(total, order.previews), spread(total, FRAMES if order.animated else 0)
            frames: list[list[Image.Image]] = []
            for step in self._steps(order, stop):
                if step.i in kept:
                    frames.append(self.images(order, step.x0))
                seen = tuple(map(png, self.images(order, step.x0))) if step.i in shown else ()
                tell(Event("preview" if seen else "step", step.i + 1, total, seen))
            images = self.images(order, step.x)
            pictures = tuple(png(image, self.settings(order, i)) for i, image in enumerate(images))
            ways = zip(*frames, images, strict=True) if order.animated else ()
            self.told.drawn(len(pictures))
            tell(Event("done", total, total, pictures, tuple(map(gif, ways))))
        except Stopped:
            self.told.stopped()
            tell(Event("error", message="stopped"))
        except InputError as error:
            tell(Event("error", message=str(error)))
        except Exception:
            log.exception("a drawing failed")
            self.told.failed()
            tell(Event("error", message=BROKEN))
        finally:
            self.told.ended()
            self.places.release()

    def look(self, order: Order, step: int | None, attention: int | None) -> tuple["Future[Look]", threading.Event]:
        """Begin a look inside the network while it draws.

        Args:
            order: what to draw.
            step, attention: the step, and the number of the self-attention in its network call, whose weights are
                wanted; the drawing ends behind it. None looks at all steps instead.

        Returns:
            What was seen, and what ends it early when it is set.

        Raises:
            Full: as many as may are drawing already.
        """
        stop = self._begin()
        return self.threads.submit(self._look, order, step, attention, stop), stop

    def _look(self, order: Order, step: int | None, attention: int | None, stop: threading.Event) -> Look:
        try:
            watcher = Inside(self.engines[order.model].pipe.net, attention)
            seen: list[tuple[float, bytes]] = []
            for each in self._steps(order, stop, watcher.around):
                seen.append((each.t, png(self.images(order, each.x0)[0])))
                if step is not None and each.i >= step:
                    break
                watcher.attention = None
                watcher.step += 1
            return Look(tuple(seen), watcher.changes, watcher.attentions, watcher.attention)
        except Stopped:
            self.told.stopped()
            raise
        except InputError as error:
            raise Failed(str(error)) from error
        except Exception as error:
            log.exception("a look inside failed")
            self.told.failed()
            raise Failed(BROKEN) from error
        finally:
            self.told.ended()
            self.places.release()

    def thumbnail(self, model: str | None, label: int) -> bytes:
        """A quick picture of a class as PNG, drawn when it is first asked for.

        Raises:
            InputError: a class that the model does not have.
            Full: no place is free.
            Failed: the drawing did.
        """
        name, _ = self.find(model)
        if (name, label) not in self.thumbnails:
            order = self.order(model=name, labels=[label], count=1, seeds=[0], preset="draft")
            events: SimpleQueue[Event] = SimpleQueue()
            self.draw(order, events.put)
            while (event := events.get()).kind != "done":
                if event.kind == "error":
                    raise Failed(event.message)
            self.thumbnails[name, label] = event.pictures[0]
        return self.thumbnails[name, label]

    def images(self, order: Order, latents: Tensor) -> list[Image.Image]:
        """Pictures of the latents, with the pixels that shall stay."""
        pixels = self.models[order.model].decode(latents)
        return to_pil(pixels if order.original is None else order.original.finish(pixels))

    def settings(self, order: Order, i: int) -> dict[str, Any]:
        """All that decides one picture, but for the picture that it started from."""
        start = order.original
        return {
            "model": order.model,
            "label": told(order.labels[i]),
            "seed": told(order.seeds[i]),
            **order.settings,
            **({} if start is None else {"strength": start.strength, "resample": start.resample}),
        }

    def close(self) -> None:
        """End all drawings."""
        for engine in self.engines.values():
            engine.close()
        self.threads.shutdown()


class Told:
    """Who counts what happens; here nobody."""

    def call(self, rows: int, seconds: float) -> None:
        """A network call."""

    def begun(self) -> None:
        """A drawing."""

    def ended(self) -> None:
        """It has ended in any way."""

    def drawn(self, pictures: int) -> None:
        """With so many pictures."""

    def refused(self) -> None:
        """An order for which there was no place."""

    def stopped(self) -> None:
        """A drawing that nobody wants any more."""

    def failed(self) -> None:
        """A fault of the service."""


def told(value: Any) -> Any:
    """A label or seed as JSON."""
    return asdict(value) if isinstance(value, Between) else value


def spread(steps: int, count: int) -> set[int]:
    """Numbers of so many steps, evenly between the first and the last."""
    return {round((i + 1) * steps / (count + 1)) for i in range(count)}


def gif(frames: Iterable[Image.Image]) -> bytes:
    """An animation, enlarged to what one can look at."""
    shown = list(frames)
    factor = max(1, SHOWN // min(shown[0].size))
    large = [each.resize((each.width * factor, each.height * factor), Image.Resampling.NEAREST) for each in shown]
    content = io.BytesIO()
    save_animation(large, content)
    return content.getvalue()


def png(image: Image.Image, settings: dict[str, Any] | None = None) -> bytes:
    """The file's content."""
    told = PngImagePlugin.PngInfo()
    if settings is not None:
        told.add_text("ditlab", json.dumps(settings))
    content = io.BytesIO()
    image.save(content, format="PNG", pnginfo=told)
    return content.getvalue()


def as_text(picture: bytes) -> str:
    """Base64."""
    return base64.b64encode(picture).decode()
