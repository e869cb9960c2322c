"""The service without HTTP: checks requests, runs them in threads, and limits how many run at the same time.

Requests never name a path: the models are those that the operator loaded.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ditlab.core.device import free_memory
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Step
from ditlab.core.units import width_first
from ditlab.core.version import __version__
from ditlab.inference.base import BasePipeline
from ditlab.inference.output import frame_rate, native
from ditlab.report.sheets import frame_images, thumbnails, to_pil, to_videos
from ditlab.server.batching import Canceled, Context, Engine
from ditlab.server.files import animated_png, gif, npy, png, video_file
from ditlab.server.generation import (
    About,
    Event,
    Generation,
    Inspection,
    Limits,
    as_json,
    check_format,
    check_steps,
    choose_labels,
    choose_seeds,
    choose_size,
    described_label,
    evenly,
    start_image,
)
from ditlab.server.idle import Busy, Idle
from ditlab.server.introspection import Inspector
from ditlab.server.metrics import Metrics
from ditlab.server.requests import GenerationRequest, InspectionRequest, example, resolved
from ditlab.server.thumbnails import Thumbnail, Thumbnails

log = logging.getLogger("uvicorn.error")  # which the server prints
FAILED = "the generation failed; see the log of the service"
DECODERS = 2  # images of requests that are decoded at the same time; each needs about 20 bytes per pixel
FRAMES = 40  # most frames of an animation


def room(device: torch.device) -> int:
    """Memory in bytes that a request can use: what is free, and what PyTorch holds but does not use."""
    unused = 0
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory(device) + unused


class Failed(Exception):  # noqa: N818 - not an error of the caller
    """A generation that did not finish."""


class Service:
    """Generates images with several models for many clients at the same time."""

    def __init__(
        self,
        models: Mapping[str, BasePipeline],
        limits: Limits,
        metrics: Metrics | None = None,
        paths: Mapping[str, str] | None = None,
    ) -> None:
        """A service that accepts requests.

        Args:
            models: by the names that requests use; the first one is the default.
            limits: of each request, and of all together.
            metrics: hooks that count what happens.
            paths: folders or hub ids of models by name, which clients may read.
        """
        self.models, self.limits, self.metrics = dict(models), limits, metrics or Metrics()
        self.paths = dict(paths or {})
        self.about = {name: About.of(pipe) for name, pipe in self.models.items()}
        self.engines = {
            name: Engine(pipe, rows=limits.rows, on_call=self.metrics.network_call)
            for name, pipe in self.models.items()
        }
        self.threads = ThreadPoolExecutor(limits.requests, thread_name_prefix="generation")
        self.decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoding")
        self.slots = threading.BoundedSemaphore(limits.requests)
        self.idle = Idle()
        self.thumbnails = Thumbnails(self._thumbnail, limits.requests, limits.seconds)

    def find(self, model: str | None) -> tuple[str, BasePipeline]:
        """A model by name; the first one if None.

        Raises:
            InputError: an unknown name.
        """
        if not self.models:
            raise InputError("no model is served; restart the service when the run has a checkpoint")
        name = next(iter(self.models)) if model is None else model
        return name, lookup(self.models, name, "model")

    def prepare(self, request: GenerationRequest, context: Context | None = None) -> Generation:
        """Check a request against the model and the limits, and resolve everything that it leaves open.

        Args:
            request: a request with valid types and ranges.
            context: entered around each of its network calls, which are then not batched with others.

        Raises:
            InputError: a value that this model cannot use, or more than the limits allow.
        """
        name, pipe = self.find(request.model)
        size = choose_size(pipe, request, self.limits.tokens)
        labels = choose_labels(pipe, request, self.limits.images)
        seeds = choose_seeds(request, len(labels))
        original, settings = start_image(pipe, request, self.limits.pixels, size), request.settings()
        keywords = settings | {"size": size} | ({} if original is None else {"original": original})
        keywords |= {} if request.negative_prompt is None else {"negative_prompt": request.negative_prompt}
        total = pipe.step_count(keywords)
        check_steps(total, original, self.limits.steps)
        check_format(pipe, request.format, size)
        stop = threading.Event()
        steps = self.engines[name].steps(labels, seeds, stop, context, **keywords)
        return Generation(
            model=name,
            labels=labels,
            seeds=seeds,
            size=width_first(size),
            format=request.format,
            settings=resolved(pipe, settings | {"size": size}),
            negative=request.negative_prompt or None,
            original=original,
            previews=request.partial_images if request.stream else 0,
            animation=request.animation,
            numbers=request.numbers,
            total=total,
            steps=self._in_time(steps),
            stop=stop,
        )

    def _in_time(self, steps: Iterator[Step]) -> Iterator[Step]:
        latest = time.monotonic() + self.limits.seconds
        for step in steps:
            if time.monotonic() > latest:
                raise InputError(f"not finished after {self.limits.seconds:.0f} s; request fewer steps or images")
            yield step

    def start(self, generation: Generation, notify: Callable[[Event], None]) -> None:
        """Run a generation in a thread.

        Args:
            generation: a checked request.
            notify: called in that thread with each event.

        Raises:
            Busy: too many requests are in progress.
        """
        self._take_slot()
        self.threads.submit(self._generate, generation, notify)

    def _take_slot(self) -> None:
        if self._is_short_of_memory() or not self.slots.acquire(blocking=False):
            self.metrics.rejected()
            raise Busy
        self.idle.begin()
        self.metrics.started()

    def _is_short_of_memory(self) -> bool:
        """Whether a further request could fill the memory; one alone is accepted, because nothing could free it."""
        if not any(engine.active for engine in self.engines.values()):
            return False
        return any(room(pipe.net.device) < self.limits.memory for pipe in self.models.values())

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Frees the slot at the end, and turns every exception into `Failed`."""
        try:
            with self._reported():
                yield
        finally:
            self.idle.end()
            self.metrics.ended()
            self.slots.release()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns every exception into `Failed`, with a line for the client."""
        try:
            yield
        except Canceled:
            self.metrics.canceled()
            raise Failed("canceled") from None
        except InputError as error:
            raise Failed(str(error)) from error
        except Exception as error:
            log.exception("a generation failed")
            self.metrics.failed()
            raise Failed(FAILED) from error

    def _generate(self, generation: Generation, notify: Callable[[Event], None]) -> None:
        try:
            with self._slot():
                last = self._run(generation, notify)
        except Failed as error:
            last = Event("error", message=str(error))
        notify(last)

    def _run(self, generation: Generation, notify: Callable[[Event], None]) -> Event:
        total = generation.total
        previewed = evenly(total, generation.previews)
        animated = evenly(total, FRAMES if generation.animation else 0)
        frames: list[list[Image.Image]] = []
        for step in generation.steps:
            previews: tuple[bytes, ...] = ()
            if step.i in previewed | animated:
                shown = self.shown(generation, self.pixels(generation, step.x0))
                previews = tuple(map(png, thumbnails(shown))) if step.i in previewed else ()
                if step.i in animated:
                    frames.append(thumbnails(shown))
            notify(Event("preview" if previews else "step", step.i + 1, total, previews))
        pixels = self.pixels(generation, step.x)
        shown = self.shown(generation, pixels)
        arrays = self.arrays(generation, pixels) if generation.numbers else ()
        files = self.files(generation, shown)
        animations = zip(*frames, thumbnails(shown), strict=True) if generation.animation else ()
        self.metrics.generated(len(files))
        return Event("done", total, total, files, tuple(map(gif, animations)), arrays)

    def inspect(self, request: InspectionRequest) -> tuple["Future[Inspection]", threading.Event]:
        """Generate an image in a thread and record what the network computes.

        Args:
            request: a request with valid types and ranges. If it names an attention, sampling ends after the step.

        Returns:
            The result, and an event that cancels the work when it is set.

        Raises:
            InputError: a value that this model cannot use, or more than the limits allow.
            Busy: too many requests are in progress.
        """
        name, _ = self.find(request.model)
        inspector = Inspector(self.engines[name].pipe.net, request.attention)
        generation = self.prepare(request.generation(), inspector.watching)
        self._take_slot()
        return self.threads.submit(self._inspect, generation, inspector, request.step), generation.stop

    def _inspect(self, generation: Generation, inspector: Inspector, last: int | None) -> Inspection:
        with self._slot():
            estimates: list[tuple[float, bytes]] = []
            for step in generation.steps:
                shown = self.shown(generation, self.pixels(generation, step.x0))
                estimates.append((step.t, png(thumbnails(shown)[0])))
                if last is not None and step.i >= last:
                    break
                inspector.next_step()
            settings = self.settings(generation, 0)
            return Inspection(settings, tuple(estimates), inspector.changes, inspector.attentions, inspector.attention)

    def thumbnail(self, model: str | None, number: int) -> "Future[bytes]":
        """An example of what a model generates, as PNG; it is generated once, while nothing else is in progress.

        Args:
            model: name of the model.
            number: index of the class; for a model that reads text, number of the example prompt; otherwise the seed.

        Returns:
            The file, or `Failed` if the generation failed, or `Busy` if requests were in progress for too long.

        Raises:
            InputError: a class or an example prompt that the model does not have.
            Busy: too many thumbnails wait.
        """
        name, pipe = self.find(model)
        example(pipe, number)
        return self.thumbnails.request((name, number))

    def _thumbnail(self, thumbnail: Thumbnail, seconds: float) -> bytes | None:
        """An example of what a model generates; None if a request began meanwhile, which comes first.

        Raises:
            Busy: requests were in progress for `seconds`.
            Failed: the generation failed.
        """
        name, number = thumbnail
        pipe = self.models[name]
        preset = {} if pipe.objective.fixed_times else {"preset": "draft"}
        request = {"model": name, **preset, **example(pipe, number)}
        generation = self.prepare(GenerationRequest.model_validate(request))
        with self.idle.alone(generation.stop, seconds), self._reported(), suppress(Canceled):
            return self._run(generation, lambda event: None).images[0]
        return None

    def shown(self, generation: Generation, pixels: Tensor) -> Tensor:
        """The shown channels of decoded images or clips, uint8."""
        return self.models[generation.model].values.displayed(pixels)

    def files(self, generation: Generation, shown: Tensor) -> tuple[bytes, ...]:
        """The files of shown images or clips; PNG files, which are animated for clips, have the settings of each."""
        settings = [self.settings(generation, i) for i in range(len(shown))]
        if shown.ndim == 4:
            return tuple(map(png, to_pil(shown), settings))
        rate = frame_rate(self.models[generation.model].model.config)
        if generation.format != "png":
            return tuple(video_file(video, f".{generation.format}", rate) for video in to_videos(shown))
        return tuple(
            animated_png(frame_images(video), rate, about)
            for video, about in zip(to_videos(shown), settings, strict=True)
        )

    def arrays(self, generation: Generation, pixels: Tensor) -> tuple[bytes, ...]:
        """All numbers of decoded images, as .npy files."""
        return tuple(map(npy, native(pixels, self.models[generation.model].values)))

    def pixels(self, generation: Generation, latents: Tensor) -> Tensor:
        """The decoded images of latents; pixels that an inpainting mask keeps are those of the original."""
        pixels = self.models[generation.model].decode(latents)
        return pixels if generation.original is None else generation.original.finish(pixels)

    def settings(self, generation: Generation, i: int) -> dict[str, Any]:
        """Everything that decides image i, except for the image that it starts from."""
        about, start = self.about[generation.model], generation.original
        return {
            "model": generation.model,
            **described_label(self.models[generation.model], generation.labels[i], generation.negative),
            "seed": as_json(generation.seeds[i]),
            **generation.settings,
            **({} if start is None else start.options | start.about(i)),
            "size": generation.size,
            "precision": about.precision,
            "model_hash": about.model_hash,
            "version": __version__,
        }

    def close(self) -> None:
        """End all generations."""
        self.idle.close()
        self.thumbnails.close()
        for engine in self.engines.values():
            engine.close()
        self.decoders.shutdown()
        self.threads.shutdown()
