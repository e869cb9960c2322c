"""The service with Ray Serve, which starts and stops replicas with the load.

    pip install 'ditlab[server]' 'ray[serve]'
    serve run examples.ray_serve_app:build run=runs/demo

Accepts the requests of `ditlab serve` and sends the same responses, except for streams, which need `ditlab serve`. In
each replica, all requests in progress share network calls.
"""

import asyncio
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from ray import serve

from ditlab import load
from ditlab.core.device import keep_freed_memory
from ditlab.core.errors import InputError
from ditlab.server.generation import Event, Limits
from ditlab.server.requests import GenerationRequest
from ditlab.server.responses import generated
from ditlab.server.service import Busy, Service

LIMITS = Limits()
SCALING = {
    "min_replicas": 1,
    "max_replicas": 8,
    "target_ongoing_requests": 8,  # of a replica, which share network calls
    "upscale_delay_s": 10,
    "downscale_delay_s": 600,  # a new replica must load the model first
}


def failure(status: int, message: str) -> JSONResponse:
    """An error in the form of `ditlab serve`."""
    kind = "invalid_request_error" if status in (400, 422) else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": status}}, status)


@serve.deployment(
    autoscaling_config=SCALING,
    max_ongoing_requests=LIMITS.requests,
    max_queued_requests=2 * LIMITS.requests,
    ray_actor_options={"num_gpus": 1},
)
class Replica:
    """A model in a replica."""

    def __init__(self, run: str, device: str = "cuda") -> None:
        """Load the model to the GPU that Ray has assigned to this replica."""
        keep_freed_memory()
        self.service = Service({Path(run).name: load(run, device=device).prepared()}, LIMITS)

    async def __call__(self, request: Request) -> JSONResponse:
        """Respond to a generation request."""
        try:
            return JSONResponse(await self.generate(GenerationRequest.model_validate_json(await request.body())))
        except ValidationError as error:
            return failure(
                422, "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
            )
        except InputError as error:
            return failure(400, str(error))
        except Busy:
            return failure(429, "too many requests are in progress; try again in 1 s")
        except RuntimeError as error:
            return failure(503, str(error))

    async def generate(self, request: GenerationRequest) -> dict[str, Any]:
        """Generate the images, in a thread of the service."""
        if request.stream:
            raise InputError("this deployment does not stream; leave stream out")
        generation = await asyncio.to_thread(self.service.prepare, request)
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Event] = loop.create_future()

        def notify(event: Event) -> None:
            if event.kind in ("done", "error"):
                loop.call_soon_threadsafe(result.set_result, event)

        self.service.start(generation, notify)
        if (event := await result).kind == "error":
            raise RuntimeError(event.message)
        return generated(self.service, generation, event)


def build(arguments: dict[str, str]) -> Any:
    """The application for `serve run`; its argument is the run or model folder, such as run=runs/demo."""
    return Replica.bind(arguments["run"])
