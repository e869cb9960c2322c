"""The service on many GPUs with LitServe: a worker process for each, and one queue for all of them.

    pip install 'ditlab[studio]' litserve
    python examples/litserve_app.py runs/demo --port 8000

Takes what `ditlab serve` takes at POST /v1/images/generations and answers the same, but for streams, which need the
service itself, and for the form of refusals, which is LitServe's. In each worker all requests in progress share the
network calls. The key that clients must bear (X-API-Key) is LIT_SERVER_API_KEY in the environment.
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
from ditlab.server.app import completed, ordered
from ditlab.server.requests import Generation
from ditlab.server.service import Event, Full, Limits, Order, Service


class Drawing(litserve.LitAPI):
    """A model in a worker."""

    def __init__(self, run: str) -> None:
        super().__init__(api_path="/v1/images/generations", enable_async=True)
        self.run = run

    def setup(self, device: str) -> None:
        """Load the model to the worker's device."""
        keep_freed_memory()
        pipe = load(self.run, device=pick_device(device)).prepared()
        self.service = Service({Path(self.run).name: pipe}, Limits())

    async def decode_request(self, request: Generation) -> Order:
        """A checked order."""
        if request.stream:
            raise HTTPException(400, "streams are not for this deployment; ask for the pictures alone")
        try:
            return await asyncio.to_thread(ordered, self.service, request)
        except InputError as error:
            raise HTTPException(400, str(error)) from None

    async def predict(self, order: Order) -> dict[str, Any]:
        """The drawing, in a thread of its own."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Event] = loop.create_future()

        def tell(event: Event) -> None:
            if event.kind in ("done", "error"):
                loop.call_soon_threadsafe(ended.set_result, event)

        try:
            self.service.draw(order, tell)
        except Full:
            raise HTTPException(
                429, "as many drawings are in progress as there may be; come back in a second"
            ) from None
        event = await ended
        if event.kind == "error":
            raise HTTPException(503, event.message)
        return completed(self.service, order, event)

    async def encode_response(self, answer: dict[str, Any]) -> dict[str, Any]:
        """As it is."""
        return answer


def main(run: str, /, *, host: str = "127.0.0.1", port: int = 8000, devices: int = 0, workers: int = 1) -> None:
    """Serve a model.

    Args:
        run: a run or model folder.
        host: address to listen on.
        port: its port.
        devices: how many GPUs; all if 0.
        workers: processes for each of them.
    """
    server = litserve.LitServer(Drawing(run), devices=devices or "auto", workers_per_device=workers, timeout=120)
    server.run(host=host, port=port, generate_client_file=False)


if __name__ == "__main__":
    cyclopts.run(main)
