"""The routes of the HTTP API. The service is in `app.state.service`."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import StreamingResponse
from fastapi.staticfiles import StaticFiles

from ditlab.core.errors import InputError, lookup
from ditlab.report.run import previews
from ditlab.server.bodies import BoundedRoute
from ditlab.server.events import Events
from ditlab.server.files import as_base64
from ditlab.server.generation import Event, Generation
from ditlab.server.metrics import CONTENT_TYPE
from ditlab.server.middleware import error_response
from ditlab.server.requests import GenerationRequest, InspectionRequest, Name, require_classes
from ditlab.server.responses import (
    GENERATED,
    METRICS,
    PNG,
    Classes,
    Health,
    Inspected,
    Models,
    Ready,
    Run,
    Runs,
    errors,
    generated,
    inspected,
    model_info,
)
from ditlab.server.runs import run_progress
from ditlab.server.service import Service

T = TypeVar("T")
PAGE = Path(__file__).parent / "page"
PAGE_PATHS = ("/", *(f"/{file.name}" for file in PAGE.iterdir()))
# Without a token: health checks, and the page, which asks the user for the token.
PUBLIC = ("/health", "/ready", *PAGE_PATHS)
CLIENT_CLOSED = 499  # nginx's status for a client that has disconnected

public, api = APIRouter(), APIRouter(route_class=BoundedRoute)


async def get_service(request: Request) -> Service:
    """The service of the application."""
    service: Service = request.app.state.service
    return service


async def get_run(request: Request, run: Annotated[str, PathParameter(min_length=1, max_length=200)]) -> Path:
    """The folder of a training run.

    Raises:
        InputError: an unknown name.
    """
    folder: Path = lookup(request.app.state.runs, run, "run")
    return folder


Served = Annotated[Service, Depends(get_service)]
RunFolder = Annotated[Path, Depends(get_run)]


# ---------------------------------------------------------------- state of the service


@public.get("/health", response_model=Health)
async def health() -> dict[str, str]:
    """Whether the service is running."""
    return {"status": "ok"}


@public.get("/ready", response_model=Ready)
async def ready(service: Served) -> dict[str, Any]:
    """Whether the service accepts requests."""
    return {"status": "ok", "models": list(service.models)}


@api.get("/metrics", response_class=Response, responses=METRICS)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus."""
    return Response(request.app.state.metrics.text(), media_type=CONTENT_TYPE)


# ---------------------------------------------------------------- models


@api.get("/v1/models", response_model=Models)
async def list_models(service: Served) -> dict[str, Any]:
    """The models and their default settings."""
    return {"object": "list", "data": [model_info(service, name) for name in service.models]}


@api.get("/v1/classes", response_model=Classes, responses=errors(400, 422))
async def list_classes(service: Served, model: Name | None = None) -> dict[str, Any]:
    """The class names of a model, and the label of each class in a request; the position is the class index."""
    name, pipe = service.find(model)
    labels = require_classes(name, pipe)
    names = labels.names or [str(i) for i in range(labels.classes)]
    return {"model": name, "classes": names, "labels": [labels.value(i) for i in range(len(names))]}


@api.get("/v1/thumbnails/{number}", response_class=Response, responses=PNG | errors(400, 422, 429, 503))
async def thumbnail(
    request: Request,
    service: Served,
    number: Annotated[int, PathParameter(ge=0, lt=2**31)],
    model: Name | None = None,
) -> Response:
    """An example: of a class by its index, of an example prompt by its number, or of a seed.

    It is generated once, when no request is in progress: the response waits for that.
    """
    future = await asyncio.to_thread(service.thumbnail, model, number)
    image = await unless_disconnected(request, asyncio.wrap_future(future))
    if image is None:
        return Response(status_code=CLIENT_CLOSED)
    return Response(image, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


# ---------------------------------------------------------------- images


@api.post("/v1/images/generations", response_model=None, responses=GENERATED | errors(400, 411, 413, 422, 429, 503))
async def generate(body: GenerationRequest, request: Request, service: Served) -> Response | dict[str, Any]:
    """Generate images."""
    executor = None if (body.image, body.mask, body.given) == (None, None, None) else service.decoders
    generation = await asyncio.get_running_loop().run_in_executor(executor, service.prepare, body)
    events = start(service, generation)
    if body.stream:
        return StreamingResponse(stream(service, generation, events), media_type="text/event-stream")
    event = await unless_disconnected(request, events.last(), generation.stop)
    if event is None:
        return Response(status_code=CLIENT_CLOSED)
    if event.kind == "error":
        return error_response(503, event.message)
    return generated(service, generation, event)


@api.post("/v1/inside", response_model=Inspected, include_in_schema=False)  # the earlier path
@api.post("/v1/inspect", response_model=Inspected, responses=errors(400, 411, 413, 422, 429, 503))
async def inspect(body: InspectionRequest, request: Request, service: Served) -> Response | dict[str, Any]:
    """Generate an image and return what the network computes."""
    future, stop = await asyncio.to_thread(service.inspect, body)
    inspection = await unless_disconnected(request, asyncio.wrap_future(future), stop)
    return Response(status_code=CLIENT_CLOSED) if inspection is None else inspected(body, inspection)


def start(service: Service, generation: Generation) -> Events:
    """Run a generation, with its events in a queue."""
    events = Events()
    loop = asyncio.get_running_loop()

    def notify(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended before the generation
            loop.call_soon_threadsafe(events.put, event)

    service.start(generation, notify)
    return events


async def unless_disconnected(request: Request, result: Awaitable[T], stop: threading.Event | None = None) -> T | None:
    """Wait for a result, or for the client to disconnect; `stop` is set in both cases, and the waiting is canceled.

    Returns:
        The result; None if the client has disconnected.
    """
    gone, waiting = asyncio.ensure_future(disconnected(request)), asyncio.ensure_future(result)
    try:
        await asyncio.wait((waiting, gone), return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        gone.cancel()
        waiting.cancel()
        if stop is not None:
            stop.set()


async def disconnected(request: Request) -> None:
    """Wait for the client to disconnect; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def stream(service: Service, generation: Generation, events: Events) -> AsyncIterator[str]:
    """A generation as server-sent events; it is canceled when the client disconnects."""
    try:
        previews = 0
        while True:
            event = await events.get()
            data: dict[str, Any] = {"step": event.step, "steps": event.steps}
            if event.kind == "done":
                yield sent_event("image_generation.completed", generated(service, generation, event) | data)
                return
            if event.kind == "error":
                yield sent_event("error", {"error": {"message": event.message}})
                return
            if event.kind == "preview":
                images = [{"b64_json": as_base64(image)} for image in event.images]
                yield sent_event(
                    "image_generation.partial_image", data | {"partial_image_index": previews, "data": images}
                )
                previews += 1
            else:
                yield sent_event("image_generation.step", data)
    finally:
        generation.stop.set()


def sent_event(kind: str, data: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"


# ---------------------------------------------------------------- training runs


@api.get("/v1/runs", response_model=Runs)
async def list_runs(request: Request) -> dict[str, Any]:
    """The names of the training runs."""
    return {"runs": list(request.app.state.runs)}


@api.get("/v1/runs/{run}", response_model=Run, responses=errors(400, 404, 422))
async def get_progress(folder: RunFolder, run: str) -> Response | dict[str, Any]:
    """The progress of a training run."""
    try:
        return await asyncio.to_thread(run_progress, folder) | {"id": run}
    except (InputError, OSError):  # their messages name the folder
        return error_response(404, f"run {run} cannot be read; its folder was changed or moved")


@api.get("/v1/runs/{run}/preview", response_class=Response, responses=PNG | errors(400, 404, 422))
async def get_preview(folder: RunFolder, run: str) -> Response:
    """The latest preview of a training run."""
    files = previews(folder)
    if not files:
        return error_response(404, f"run {run} has no preview yet; try again later")
    try:
        content = await asyncio.to_thread(files[-1].read_bytes)
    except OSError:
        return error_response(404, f"the preview of run {run} cannot be read; try again later")
    return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})


# ---------------------------------------------------------------- the page


def add_page(app: FastAPI) -> None:
    """Serve each file of the page under its own path; a mounted folder would respond to every path and method."""
    files = StaticFiles(directory=PAGE)

    async def page(request: Request) -> Response:
        return await files.get_response(request.url.path.strip("/") or "index.html", request.scope)

    for path in PAGE_PATHS:
        app.add_route(path, page, include_in_schema=False)
