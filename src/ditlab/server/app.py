"""The HTTP application: routes that image services share, with server-sent events for previews.

It listens on localhost by default. Tokens are compared in constant time, bodies are limited before they are read, and
every error is one JSON object with a message, never a traceback.
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
) -> FastAPI:
    """Build the application.

    Args:
        models: pipelines by name, prepared for this machine.
        limits: of requests.
        token: that every request must have; empty for none.
        runs: folders of training runs by name, of which the progress is shown.
    """
    limits, metrics = limits or Limits(), PrometheusMetrics()
    service = Service(models, limits, metrics)

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
    app.add_middleware(Guard, body=limits.body, token=token, public=PUBLIC)
    add_error_handlers(app, limits)
    app.include_router(public)
    # `Guard` checks the token; this only describes it.
    security = [Security(HTTPBearer(auto_error=False))] if token else []
    app.include_router(api, dependencies=security, responses=errors(401) if token else {})
    add_page(app)
    return app
