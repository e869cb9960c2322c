"""The service on many GPUs with LitServe: one worker process for each GPU, and one queue for all of them.

    pip install 'ditlab[server]' litserve
    python examples/litserve_app.py runs/demo --port 8000

Accepts the requests of `ditlab serve` at POST /v1/images/generations and sends the same responses, except for streams,
which need `ditlab serve`, and for errors, which have LitServe's form. In each worker, all requests in progress share
network calls. If the environment variable LIT_SERVER_API_KEY is set, clients must send its value as X-API-Key.
"""

import asyncio
from pathlib import Path
from typing import Any

import cyclopts
import litserve
from fastapi import HTTPException

from ditlab import load
from ditlab.core.device import keep_freed_memory, pick_device
from ditlab.core.errors import InputError
from ditlab.server.generation import Event, Generation, Limits
from ditlab.server.requests import GenerationRequest
from ditlab.server.responses import generated
from ditlab.server.service import Busy, Service


class Worker(litserve.LitAPI):
    """A model in a worker process."""

    def __init__(self, run: str) -> None:
        super().__init__(api_path="/v1/images/generations", enable_async=True)
        self.run = run

    def setup(self, device: str) -> None:
        """Load the model to the worker's device."""
        keep_freed_memory()
        pipe = load(self.run, device=pick_device(device)).prepared()
        self.service = Service({Path(self.run).name: pipe}, Limits())

    async def decode_request(self, request: GenerationRequest) -> Generation:
        """Check a request."""
        if request.stream:
            raise HTTPException(400, "this deployment does not stream; leave stream out")
        try:
            return await asyncio.to_thread(self.service.prepare, request)
        except InputError as error:
            raise HTTPException(400, str(error)) from None

    async def predict(self, generation: Generation) -> dict[str, Any]:
        """Generate the images, in a thread of the service."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Event] = loop.create_future()

        def notify(event: Event) -> None:
            if event.kind in ("done", "error"):
                loop.call_soon_threadsafe(result.set_result, event)

        try:
            self.service.start(generation, notify)
        except Busy:
            raise HTTPException(429, "too many requests are in progress; try again in 1 s") from None
        event = await result
        if event.kind == "error":
            raise HTTPException(503, event.message)
        return generated(self.service, generation, event)

    async def encode_response(self, response: dict[str, Any]) -> dict[str, Any]:
        """Send the response unchanged."""
        return response


def main(run: str, /, *, host: str = "127.0.0.1", port: int = 8000, devices: int = 0, workers: int = 1) -> None:
    """Serve a model.

    Args:
        run: a run or model folder.
        host: address to listen on.
        port: port to listen on.
        devices: number of GPUs; 0 uses all.
        workers: processes for each GPU.
    """
    server = litserve.LitServer(Worker(run), devices=devices or "auto", workers_per_device=workers, timeout=120)
    server.run(host=host, port=port, generate_client_file=False)


if __name__ == "__main__":
    cyclopts.run(main)
