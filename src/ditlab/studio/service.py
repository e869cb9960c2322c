"""The service behind the HTTP API, without HTTP: who may draw, how much, and what comes out.

A request becomes a drawing in a thread of its own; what it has to say (previews, pictures, the end) goes to a function
that the caller gives. No path from a request reaches the file system, and models are those that the operator loaded.
"""

import base64
import io
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ditlab.errors import InputError, lookup
from ditlab.pipeline import Label, Pipeline, to_pil
from ditlab.studio.engine import Engine, Stopped


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    pictures: int = 16
    steps: int = 250
    seconds: float = 120.0
    drawings: int = 32  # at a time; more are turned away
    body: int = 16 * 2**20  # bytes of a request
    rows: int = 64  # of a network call


@dataclass(frozen=True)
class Order:
    """A drawing as it was asked for."""

    model: str
    labels: list[Label]
    seeds: list[int]
    previews: int = 0
    settings: dict[str, Any] = field(default_factory=dict)  # of `Pipeline.steps`


@dataclass(frozen=True)
class Event:
    """What a drawing has to say."""

    kind: str  # step, preview, done, error
    step: int = 0
    steps: int = 0
    pictures: tuple[bytes, ...] = ()  # PNG
    message: str = ""


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
        name = next(iter(self.models)) if model is None else model
        return name, lookup(self.models, name, "model")

    def order(
        self,
        *,
        model: str | None,
        labels: list[Label] | None,
        count: int,
        seeds: list[int] | None,
        previews: int = 0,
        **settings: Any,
    ) -> Order:
        """A checked order: what is left out is filled in.

        Args:
            model: a name; the first model's if None.
            labels: class names or indices; None is no condition, or any classes in turn where there are some.
            count: pictures.
            seeds: of the first, or of each; drawn at random if None.
            previews: pictures of the way, evenly spread.
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
        pipe.labels(labels)  # which refuses unknown ones
        first = secrets.randbelow(2**32) if seeds is None else seeds[0]
        if seeds is None or len(seeds) == 1:
            seeds = [(first + i) % 2**63 for i in range(count)]
        if len(seeds) != count:
            raise InputError(f"{len(seeds)} seeds for {count} pictures; give one, or one for each")
        settings = {key: value for key, value in settings.items() if value is not None}
        steps = pipe.step_count(settings)
        if not 1 <= steps <= limits.steps:
            raise InputError(f"{steps} steps; give 1 to {limits.steps}")
        order = Order(name, labels, seeds, previews, settings)
        self.engines[name].steps(labels, seeds, threading.Event(), **settings)  # a setting that cannot be used
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
        if not self.places.acquire(blocking=False):
            self.told.refused()
            raise Full
        stop = threading.Event()
        self.told.begun()
        self.threads.submit(self._draw, order, tell, stop)
        return stop

    def _draw(self, order: Order, tell: Callable[[Event], None], stop: threading.Event) -> None:
        pipe, latest = self.models[order.model], time.monotonic() + self.limits.seconds
        try:
            total = pipe.step_count(order.settings)
            shown = {round((i + 1) * total / (order.previews + 1)) for i in range(order.previews)}
            for step in self.engines[order.model].steps(order.labels, order.seeds, stop, **order.settings):
                if time.monotonic() > latest:
                    raise InputError(f"not done after {self.limits.seconds:.0f} s; ask for fewer steps or pictures")
                seen = self.pictures(order, step.x0) if step.i in shown else ()
                tell(Event("preview" if seen else "step", step.i + 1, total, seen))
            pictures = self.pictures(order, step.x, told=True)
            self.told.drawn(len(pictures))
            tell(Event("done", total, total, pictures))
        except Stopped:
            self.told.stopped()
            tell(Event("error", message="stopped"))
        except InputError as error:
            tell(Event("error", message=str(error)))
        except Exception:
            self.told.failed()
            tell(Event("error", message="the drawing failed; the service's log says why"))
            raise
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

    def pictures(self, order: Order, latents: Tensor, *, told: bool = False) -> tuple[bytes, ...]:
        """PNG files, with all that draws the same picture again in their metadata."""
        with torch.no_grad():
            images = to_pil(self.models[order.model].decode(latents))
        return tuple(png(image, self.settings(order, i) if told else None) for i, image in enumerate(images))

    def settings(self, order: Order, i: int) -> dict[str, Any]:
        """All that decides one picture."""
        return {"model": order.model, "label": order.labels[i], "seed": order.seeds[i], **order.settings}

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


def png(image: Image.Image, settings: dict[str, Any] | None) -> bytes:
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
