"""The HTTP API: the form that image servers share, with server-sent events for pictures that form.

Loopback by default; a token is compared in constant time; bodies are limited before they are read; what goes wrong is
one JSON object with a message, never a traceback.
"""

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from fastapi import APIRouter, FastAPI, Request, Response, Security
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ditlab.config.reader import parse_recipe, read_toml
from ditlab.core.errors import InputError, lookup
from ditlab.core.types import Label
from ditlab.core.version import __version__
from ditlab.report.html import CURVES
from ditlab.report.run import previews, read_metrics
from ditlab.server.middleware import Guard, fault, tell_faults
from ditlab.server.requests import Generation, Looking, Name
from ditlab.server.responses import (
    GENERATED,
    METRICS,
    THUMBNAIL,
    Classes,
    Health,
    Models,
    Ready,
    Run,
    Runs,
    Seen,
    faults,
)
from ditlab.server.service import Event, Limits, Look, Order, Service, Told, as_text

PAGE = Path(__file__).parent / "page"
SHOWN = ("/", *(f"/{file.name}" for file in PAGE.iterdir()))
# Without a token: for those who only ask whether it lives, and the page, which asks people for it.
FREE = ("/health", "/ready", *SHOWN)
PathName = Annotated[str, PathParameter(min_length=1, max_length=200)]


class Counts(Told):
    """Prometheus' figures."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here = self.registry
        self.drawing = Gauge("ditlab_drawings", "drawings in progress", registry=here)
        self.made = Counter("ditlab_pictures", "pictures drawn", registry=here)
        self.turned_away = Counter("ditlab_refused", "orders for which no place was free", registry=here)
        self.ended_early = Counter("ditlab_stopped", "drawings that were stopped", registry=here)
        self.faults = Counter("ditlab_failed", "drawings that failed", registry=here)
        sizes = [float(2**i) for i in range(11)]
        self.rows = Histogram("ditlab_batch_rows", "rows of a network call", buckets=sizes, registry=here)
        self.seconds = Histogram("ditlab_call_seconds", "time of a network call", registry=here)

    def call(self, rows: int, seconds: float) -> None:
        self.rows.observe(rows)
        self.seconds.observe(seconds)

    def begun(self) -> None:
        self.drawing.inc()

    def ended(self) -> None:
        self.drawing.dec()

    def drawn(self, pictures: int) -> None:
        self.made.inc(pictures)

    def refused(self) -> None:
        self.turned_away.inc()

    def stopped(self) -> None:
        self.ended_early.inc()

    def failed(self) -> None:
        self.faults.inc()


def create_app(
    models: dict[str, Any], limits: Limits | None = None, token: str = "", runs: Mapping[str, Path] | None = None
) -> FastAPI:
    """The application.

    Args:
        models: pipelines by name, ready to draw.
        limits: of requests.
        token: that every request must bear; none if empty.
        runs: folders of training runs by name, which may be watched.
    """
    runs = runs or {}
    counts, limits = Counts(), limits or Limits()
    service = Service(models, limits, counts)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="ditlab",
        version=__version__,
        description="Draws pictures with trained diffusion transformers.",
        lifespan=life,
        docs_url=None,  # FastAPI's own pages for people load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    # What needs the token where there is one: so it is told in the description, while it is `Guard` that looks.
    bearer = [Security(HTTPBearer(auto_error=False))] if token else []
    inside = APIRouter(dependencies=bearer, responses=faults(401) if token else {})
    app.add_middleware(Guard, body=limits.body, token=token, free=FREE)
    app.state.service = service
    tell_faults(app, limits)

    @app.get("/health", response_model=Health)
    async def health() -> dict[str, str]:
        """Whether the service lives."""
        return {"status": "ok"}

    @app.get("/ready", response_model=Ready)
    async def ready() -> dict[str, Any]:
        """Whether it can draw."""
        return {"status": "ok", "models": list(service.models)}

    @inside.get("/metrics", response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        """Prometheus' figures."""
        return Response(generate_latest(counts.registry), media_type="text/plain; version=0.0.4")

    @inside.get("/v1/models", response_model=Models)
    async def list_models() -> dict[str, Any]:
        """The models, with what each draws."""
        return {"object": "list", "data": [about(name, pipe) for name, pipe in service.models.items()]}

    @inside.get("/v1/classes", response_model=Classes, responses=faults(400, 422))
    async def list_classes(model: Name | None = None) -> dict[str, Any]:
        """The classes of a model, the index being the position."""
        name, pipe = service.find(model)
        return {"model": name, "classes": pipe.classes or [str(i) for i in range(pipe.net.classes)]}

    @inside.get("/v1/thumbnails/{label}", response_class=Response, responses=THUMBNAIL | faults(400, 422, 429, 503))
    async def thumbnail(label: Annotated[int, PathParameter(ge=0, lt=2**31)], model: Name | None = None) -> Response:
        """A quick picture of a class."""
        picture = await asyncio.to_thread(service.thumbnail, model, label)
        return Response(picture, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    @inside.post(
        "/v1/images/generations",
        response_model=None,
        responses=GENERATED | faults(400, 411, 413, 422, 429, 503),
    )
    async def generate(asked: Generation, request: Request) -> Response | dict[str, Any]:
        """Draw."""
        order = await asyncio.to_thread(ordered, service, asked)
        events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended before the drawing
                loop.call_soon_threadsafe(events.put_nowait, event)

        stop = service.draw(order, tell)
        if asked.stream:
            return StreamingResponse(stream(service, order, events, stop), media_type="text/event-stream")
        gone = asyncio.create_task(left(request))
        try:
            while True:
                waiting = asyncio.create_task(events.get())
                await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    waiting.cancel()
                    return Response(status_code=499)
                event = waiting.result()
                if event.kind == "error":
                    return fault(503, event.message)
                if event.kind == "done":
                    return completed(service, order, event)
        finally:
            gone.cancel()
            stop.set()

    @inside.post("/v1/inside", response_model=Seen, responses=faults(400, 411, 413, 422, 429, 503))
    async def look(asked: Looking, request: Request) -> Response | dict[str, Any]:
        """Draw a picture and tell what the network does."""
        order = await asyncio.to_thread(looked_for, service, asked)
        seen, stop = service.look(order, asked.step, asked.attention)
        gone, waiting = asyncio.create_task(left(request)), asyncio.wrap_future(seen)
        try:
            await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
            return found(asked, order.model, waiting.result()) if waiting.done() else Response(status_code=499)
        finally:
            gone.cancel()
            waiting.cancel()
            stop.set()

    @inside.get("/v1/runs", response_model=Runs)
    async def list_runs() -> dict[str, Any]:
        """The training runs that may be watched."""
        return {"runs": list(runs)}

    @inside.get("/v1/runs/{run}", response_model=Run, responses=faults(400, 404, 422))
    async def watch_run(run: PathName) -> Response | dict[str, Any]:
        """How a training run goes."""
        folder = lookup(runs, run, "run")
        try:
            return await asyncio.to_thread(progress, folder)
        except (InputError, OSError):  # whose words name the folder
            return fault(404, f"the run {run} cannot be read; its folder has been changed or moved")

    @inside.get("/v1/runs/{run}/preview", response_class=Response, responses=THUMBNAIL | faults(400, 404, 422))
    async def preview(run: PathName) -> Response:
        """The newest preview of a training run."""
        files = previews(lookup(runs, run, "run"))
        if not files:
            return fault(404, f"the run {run} has no preview yet; come back later")
        try:
            content = await asyncio.to_thread(files[-1].read_bytes)
        except OSError:
            return fault(404, f"the preview of the run {run} cannot be read; come back later")
        return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})

    app.include_router(inside)
    page = StaticFiles(directory=PAGE)

    async def show(request: Request) -> Response:
        return await page.get_response(request.url.path.strip("/") or "index.html", request.scope)

    # Each file by its name: mounted as a folder it would answer for every path, also for those of a wrong method.
    for path in SHOWN:
        app.add_route(path, show, include_in_schema=False)
    return app


def ordered(service: Service, asked: Generation) -> Order:
    """What was asked for, checked.

    Raises:
        InputError: what cannot be drawn.
    """
    if asked.prompt is not None and asked.class_labels is not None:
        raise InputError("prompt and class_labels are both given; give one of them")
    if asked.seed is not None and asked.seeds is not None:
        raise InputError("seed and seeds are both given; give one of them")
    labels = asked.class_labels if asked.prompt is None else [asked.prompt]
    order = service.order(
        model=asked.model,
        labels=None if labels is None else list(labels),
        count=asked.n,
        seeds=asked.seeds if asked.seed is None else [asked.seed],
        to_label=asked.to_label,
        to_seed=asked.to_seed,
        picture=decoded("image", asked.image),
        mask=decoded("mask", asked.mask),
        strength=asked.strength,
        resample=asked.resample,
        previews=asked.partial_images if asked.stream else 0,
        animated=asked.animation,
        **asked.settings(),
    )
    size = about(order.model, service.models[order.model])["size"]
    if asked.size not in (None, size):
        raise InputError(f"size {asked.size}; this model draws {size}")
    return order


def looked_for(service: Service, asked: Looking) -> Order:
    """What shall be drawn while one looks inside.

    Raises:
        InputError: what cannot be drawn.
    """
    labels: list[Label] | None = None if asked.prompt is None else [asked.prompt]
    seeds = None if asked.seed is None else [asked.seed]
    return service.order(model=asked.model, labels=labels, count=1, seeds=seeds, **asked.settings())


def decoded(name: str, text: str | None) -> bytes | None:
    """The bytes of a file that came as base64."""
    try:
        return None if text is None else base64.b64decode(text, validate=True)
    except ValueError:
        raise InputError(f"the {name} is not base64; encode the file's bytes so") from None


def found(asked: Looking, model: str, look: Look) -> dict[str, Any]:
    """What was seen inside, as JSON.

    Raises:
        InputError: a step or an attention that there is not.
    """
    for name, wanted, there in (("step", asked.step, len(look.steps)), ("attention", asked.attention, look.attentions)):
        if wanted is not None and wanted >= there:
            raise InputError(f"{name} {wanted}; there are {there}" + (f", from 0 to {there - 1}" if there else ""))
    told = None
    if (attention := look.attention) is not None:
        rows = attention.weights / attention.weights.amax(1, keepdim=True).clamp(min=1e-12)
        content = (255 * rows).round().to(torch.uint8).cpu().numpy().tobytes()
        told = {"height": attention.height, "width": attention.width, "weights": as_text(content)}
    steps = [{"t": t, "b64_json": as_text(picture)} for t, picture in look.steps]
    return {
        "model": model,
        "steps": steps,
        "changes": look.changes,
        "attentions": look.attentions,
        "attention": told,
    }


def finite(value: float | None) -> bool:
    """Whether there is a number; a run that has gone wrong has others too, which JSON has not."""
    return value is not None and math.isfinite(value)


POINTS = 400  # of a curve at most


def progress(run: Path) -> dict[str, Any]:
    """How a training run goes."""
    lines = read_metrics(run)
    total = parse_recipe(read_toml(run / "recipe.toml"), source=run.name).train.images
    stride = -(-len(lines) // POINTS) or 1
    shown = lines[::-1][::stride][::-1]  # with the last one
    last: dict[str, Any] = lines[-1] if lines else {"images": 0}
    rate, spans, files = last.get("images_per_second"), last.get("loss_by_time") or [], previews(run)
    return {
        "id": run.name,
        "images": last["images"],
        "total": total,
        "seconds_left": max(0, total - last["images"]) / rate if rate and finite(rate) else None,
        "curves": {key: [(line["images"], line[key]) for line in shown if finite(line.get(key))] for key in CURVES},
        "loss_by_time": [((i + 0.5) / len(spans), loss) for i, loss in enumerate(spans) if finite(loss)],
        "preview": int(files[-1].stem) if files else None,
    }


async def left(request: Request) -> None:
    """Returns when the client has gone away; the body has been read, so that nothing else comes from it."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def about(name: str, pipe: Any) -> dict[str, Any]:
    """A model in the list."""
    height, width = pipe.picture_shape[1]
    default = pipe.defaults
    return {
        "id": name,
        "object": "model",
        "owned_by": "ditlab",
        "network": pipe.net.config["name"],
        "size": f"{width}x{height}",
        "classes": pipe.net.classes,
        "sampler": default.sampler,
        "num_inference_steps": default.steps,
        "guidance_scale": default.guidance,
        "guidance_interval": list(default.guidance_interval),
    }


def completed(service: Service, order: Order, event: Event) -> dict[str, Any]:
    """The answer with all pictures."""
    data = [
        {"b64_json": as_text(picture), "settings": service.settings(order, i)}
        for i, picture in enumerate(event.pictures)
    ]
    for one, way in zip(data, event.animations, strict=False):  # where they were asked for
        one["animation_b64"] = as_text(way)
    return {"created": int(time.time()), "model": order.model, "data": data}


async def stream(service: Service, order: Order, events: "asyncio.Queue[Event]", stop: Any) -> AsyncIterator[str]:
    """The drawing as server-sent events; whoever goes away stops it."""
    try:
        partial = 0
        while True:
            event = await events.get()
            told: dict[str, Any] = {"step": event.step, "steps": event.steps}
            if event.kind == "done":
                yield said("image_generation.completed", completed(service, order, event) | told)
                return
            if event.kind == "error":
                yield said("error", {"error": {"message": event.message}})
                return
            if event.kind == "preview":
                told |= {"partial_image_index": partial, "data": [{"b64_json": as_text(p)} for p in event.pictures]}
                partial += 1
                yield said("image_generation.partial_image", told)
            else:
                yield said("image_generation.step", told)
    finally:
        stop.set()


def said(kind: str, data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"
