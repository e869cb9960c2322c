"""The HTTP application: routes that image services share, with server-sent events for previews.

Hosts, origins and tokens are checked and bodies are limited before they are read. Every error is one JSON object with a
message, never a traceback.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer

from ditlab.core.version import __version__
from ditlab.inference.base import BasePipeline
from ditlab.server.generation import Limits
from ditlab.server.hosts import Hosts
from ditlab.server.metrics import PrometheusMetrics
from ditlab.server.middleware import Guard, add_error_handlers
from ditlab.server.responses import errors
from ditlab.server.routes import PUBLIC, add_page, api, public
from ditlab.server.service import Service


def create_app(
    models: Mapping[str, BasePipeline],
    limits: Limits | None = None,
    token: str = "",
    runs: Mapping[str, Path] | None = None,
    hosts: Hosts | None = None,
    paths: Mapping[str, str] | None = None,
) -> FastAPI:
    """Build the application.

    Args:
        models: pipelines by name, prepared for this machine.
        limits: of requests.
        token: that every request must have; empty for none.
        runs: folders of training runs by name, of which the progress is shown.
        hosts: names of the service, to which requests must be addressed; None for any name.
        paths: folders or hub ids of models by name, which clients may read.
    """
    limits, metrics = limits or Limits(), PrometheusMetrics()
    service = Service(models, limits, metrics, paths)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="ditlab",
        version=__version__,
        description="Generate images with diffusion transformers.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's documentation pages load scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.service, app.state.metrics, app.state.runs = service, metrics, dict(runs or {})
    app.add_middleware(Guard, limits=limits, token=token, public=PUBLIC, hosts=hosts or Hosts())
    add_error_handlers(app, limits)
    app.include_router(public, responses=errors(403))
    # `Guard` checks the token; this only describes it.
    security = [Security(HTTPBearer(auto_error=False))] if token else []
    app.include_router(api, dependencies=security, responses=errors(403, *([401] if token else [])))
    add_page(app)
    return app
