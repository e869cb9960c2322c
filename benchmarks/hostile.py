"""The service under good and hostile requests of all kinds at the same time: a real process, and clients over sockets.

    python benchmarks/hostile.py RUN [--requests 10000] [--minutes 30] [--clients 64] [--out FILE] [--help]

Two fifths of the requests are good. The others have costly bodies, images that decode to many pixels, other hosts and
origins, and what is not HTTP; or they are never sent to their end, or their responses are never read. Meanwhile one
more client requests /health 20 times per second. The other clients have a lower priority (nice 10) than this one and
the service, because in use they run on other machines. The exit code is 1 if a response of
/health takes a second or longer, if a good request is lost, if a response is not the expected one, or if the memory at
the end is more than 10 % above that after 500 requests.
"""

import asyncio
import base64
import http.client
import io
import json
import multiprocessing
import os
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count, takewhile
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from statistics import quantiles
from typing import Any

import cyclopts
import httpx
from PIL import Image
from serving import GENERATE, Body, Server, serving

FIRST = 500  # requests after which the memory is taken as that of a service in use
OPEN = 300  # most half-sent requests that stay open at the same time
DEAF = 50  # most clients that do not read their stream
SPAWN = multiprocessing.get_context("spawn")
JSON = {"content-type": "application/json"}
SLOWEST, GROWTH = 1.0, 0.1  # seconds of /health, part of the memory
LOST = (httpx.HTTPError, OSError)


def main(
    run: Path,
    /,
    *,
    requests: int = 10_000,
    minutes: float | None = None,
    clients: int = 64,
    out: Path | None = None,
    seed: int = 0,
) -> None:
    """Send good and hostile requests to a service with the default limits.

    Args:
        run: a run or model folder.
        requests: of all kinds together.
        minutes: soak test: send requests for this duration, instead of their number.
        clients: that send requests at the same time.
        out: JSON file for the results.
        seed: of the choice of requests.
    """
    with serving(run) as server:
        ends = None if minutes is None else time.monotonic() + 60 * minutes
        numbers = range(requests) if ends is None else takewhile(lambda _: time.monotonic() < ends, count())
        results = asyncio.run(Attack(server, random.Random(seed), clients).run(numbers))
    print(json.dumps(results, indent=1))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if sound(results) else 1)


def sound(results: dict[str, Any]) -> bool:
    """Whether the service stayed available and its memory bounded."""
    return (
        not results["unexpected"]
        and results["health"]["slowest"] < SLOWEST
        and results["memory"]["last"] <= (1 + GROWTH) * results["memory"]["first"]
    )


def png(width: int, height: int) -> str:
    """A PNG file of black RGB pixels as base64, which is small for its size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes((1 + 3 * width) * height), 9))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")).decode()


def noise(side: int) -> str:
    """A PNG file of noise as base64."""
    content = io.BytesIO()
    Image.effect_noise((side, side), 64).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


IMAGES = [noise(side) for side in (16, 64, 700)]
REJECTED: list[tuple[str, int, str, str, dict[str, Any]]] = [
    ("unknown keys", 413, "POST", GENERATE, {"content": json.dumps({f"k{i}": 1 for i in range(300_000)}).encode()}),
    ("20,000 keys", 422, "POST", GENERATE, {"content": json.dumps({f"k{i}": 1 for i in range(20_000)}).encode()}),
    ("invalid labels", 422, "POST", GENERATE, {"content": b'{"labels": [' + b"[]," * 80_000 + b"[]]}"}),
    ("deep nesting", 422, "POST", GENERATE, {"content": b"[" * 100_000}),
    ("too many digits", 422, "POST", GENERATE, {"content": b'{"n": ' + b"9" * 5000 + b"}"}),
    ("16 MB of brackets", 413, "POST", GENERATE, {"content": b"[" * 16_000_000}),
    ("50 MB", 413, "POST", GENERATE, {"content": b" " * 50_000_000}),
    ("no image", 400, "POST", GENERATE, {"content": json.dumps({"image": "A" * 16_000_000}).encode()}),
    ("image of one row", 400, "POST", GENERATE, {"content": json.dumps({"image": png(16_000_000, 1)}).encode()}),
    ("mask of one column", 400, "POST", GENERATE, {"content": json.dumps({"mask": png(1, 16_000_000)}).encode()}),
    ("too many pixels", 400, "POST", GENERATE, {"content": json.dumps({"image": png(13_000, 13_000)}).encode()}),
    ("chunks", 411, "POST", GENERATE, {"content": iter([b"{", b"}"])}),
    ("another host", 403, "GET", "/v1/models", {"headers": {"host": "evil.example"}}),
    ("another origin", 403, "POST", GENERATE, {"json": {}, "headers": {"origin": "http://evil.example"}}),
    ("another site", 403, "GET", "/v1/runs", {"headers": {"sec-fetch-site": "cross-site"}}),
    ("unknown class", 400, "POST", GENERATE, {"json": {"prompt": "no such class"}}),
    ("a path", 400, "POST", GENERATE, {"json": {"model": "../../etc/passwd"}}),
    ("404", 404, "GET", "/" + "a" * 5000, {}),
]  # fmt: skip
PARTS = [  # of requests, whose rest is never sent
    b"",
    b"GET /hea",
    b"POST " + GENERATE.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Len",
    b"POST " + GENERATE.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 16000000\r\n\r\n{"image": "' + b"A" * 1_000_000,
    b"POST " + GENERATE.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
    b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n",
]
KINDS = {  # methods of `Attack` -> their shares in percent; the first four are good
    "generate": 15,
    "start_from_image": 8,
    "stream": 7,
    "get": 10,
    "rejected": 32,
    "half": 14,
    "never_read": 6,
    "leave": 5,
    "garbage": 3,
}
GARBAGE = [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100_000, b"A" * 100_000]


@dataclass
class Attack:
    """Clients that send good and hostile requests."""

    server: Server
    rng: random.Random
    clients: int
    counts: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)
    open: list[asyncio.StreamWriter] = field(default_factory=list)
    deaf: list[asyncio.StreamWriter] = field(default_factory=list)

    async def run(self, requests: Iterable[int]) -> dict[str, Any]:
        """Send requests with these numbers, and measure."""
        ready, ended, health = SPAWN.Event(), SPAWN.Event(), SPAWN.Queue()
        SPAWN.Process(target=watch, args=(self.server.address, ready, ended, health)).start()
        ready.wait()
        os.nice(10)
        started, numbers = time.perf_counter(), iter(requests)
        async with connected(self.server) as client:

            async def work() -> None:
                for number in numbers:
                    await self.one(client)
                    if number % 100 == 99:
                        self.memory.append(self.server.memory())

            await asyncio.gather(*(work() for _ in range(self.clients)))
        ended.set()
        seconds, failures = health.get()
        self.unexpected.update(failures)
        for writer in (*self.open, *self.deaf):
            writer.close()
        first = self.memory[min(FIRST // 100, len(self.memory)) - 1]
        return {
            "requests": sum(self.counts[kind] for kind in KINDS),
            "clients": self.clients,
            "seconds": round(time.perf_counter() - started),
            "cpu_seconds": {"service": self.server.cpu(), "clients": time.process_time()},
            "of_which": dict(sorted(self.counts.items())),
            "unexpected": dict(self.unexpected),
            "health": {
                "requests": len(seconds),
                "p50": quantiles(seconds, n=100)[49],
                "p99": quantiles(seconds, n=100)[98],
                "slowest": max(seconds),
            },
            "memory": {"first": first, "last": self.memory[-1], "most": max(self.memory), "all": self.memory},
        }

    async def one(self, client: httpx.AsyncClient) -> None:
        """A request of a random kind."""
        (kind,) = self.rng.choices(list(KINDS), list(KINDS.values()))
        self.counts[kind] += 1
        try:
            await getattr(self, kind)(client)
        except (*LOST, AssertionError) as error:
            self.unexpected[f"{kind}: {error!r}"] += 1

    async def post(self, client: httpx.AsyncClient, body: Body) -> httpx.Response:
        """The response to a good request, which is repeated as long as the service is busy."""
        while (response := await client.post(GENERATE, json=body)).status_code == 429:
            self.counts["repeated"] += 1
            await asyncio.sleep(self.rng.uniform(0.2, 1.5))
        return response

    async def generate(self, client: httpx.AsyncClient) -> None:
        response = await self.post(client, {"n": self.rng.randint(1, 2), "steps": self.rng.randint(2, 8)})
        assert response.status_code == 200, response.text[:200]

    async def start_from_image(self, client: httpx.AsyncClient) -> None:
        body = {"n": 1, "steps": 4, "image": self.rng.choice(IMAGES), "strength": 0.6}
        response = await self.post(client, body)
        assert response.status_code == 200, response.text[:200]

    async def stream(self, client: httpx.AsyncClient) -> None:
        response = await self.post(client, {"n": 1, "steps": 8, "stream": True})
        assert "image_generation.completed" in response.text, response.text[-200:]

    async def get(self, client: httpx.AsyncClient) -> None:
        path = self.rng.choice(["/", "/app.js", "/ready", "/metrics", "/v1/models", "/v1/classes", "/openapi.json"])
        response = await client.get(path)
        assert response.status_code == 200, (path, response.status_code)

    async def rejected(self, client: httpx.AsyncClient) -> None:
        name, status, method, path, options = self.rng.choice(REJECTED)
        content = options.get("content")
        if content is not None and not isinstance(content, bytes):
            options = options | {"content": pieces()}
        elif content is not None:
            options = options | {"headers": JSON}
        response = await client.request(method, path, **options)
        assert response.status_code in (status, 429), (name, response.status_code, response.text[:200])
        assert response.json()["error"]["code"] == response.status_code

    async def half(self, client: httpx.AsyncClient) -> None:
        """A request that is never sent to its end; its connection stays open."""
        await self.keep(self.open, OPEN, self.rng.choice(PARTS))

    async def never_read(self, client: httpx.AsyncClient) -> None:
        """Requests for a stream with many previews, of which nothing is read."""
        body = json.dumps({"n": 16, "steps": 50, "stream": True, "partial_images": 50, "animation": True}).encode()
        await self.keep(self.deaf, DEAF, request(body))

    async def leave(self, client: httpx.AsyncClient) -> None:
        """A client that disconnects soon after its request."""
        writer = await self.connect(request(b'{"n": 4, "steps": 100, "stream": true}'))
        await asyncio.sleep(self.rng.uniform(0, 0.3))
        writer.transport.abort()

    async def garbage(self, client: httpx.AsyncClient) -> None:
        (await self.connect(self.rng.choice(GARBAGE))).close()

    async def keep(self, writers: list[asyncio.StreamWriter], most: int, content: bytes) -> None:
        writers.append(await self.connect(content))
        if len(writers) > most:
            writers.pop(0).transport.abort()

    async def connect(self, content: bytes) -> asyncio.StreamWriter:
        """A connection on which these bytes are sent; what it receives is not read."""
        host, port = self.server.address.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(content)
        with suppress(OSError, TimeoutError):  # the service may already have closed the connection
            await asyncio.wait_for(writer.drain(), 5)
        return writer


def watch(address: str, ready: Event, ended: Event, health: "Queue[Any]") -> None:
    """Request /health, each time over a new connection; in a process of its own, so that no other client delays it."""
    seconds, failures = [], Counter[str]()
    ready.set()
    while not ended.wait(0.05):
        started = time.perf_counter()
        try:
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=60)
            connection.request("GET", "/health", headers={"Connection": "close"})
            assert connection.getresponse().read() == b'{"status":"ok"}'
            connection.close()
        except (http.client.HTTPException, OSError, AssertionError) as error:
            failures[f"health: {error!r}"] += 1
        seconds.append(time.perf_counter() - started)
    health.put((seconds, failures))


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client that does not use a connection again when the service may be closing it."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
    async with httpx.AsyncClient(base_url=server.address, timeout=300, limits=limits, trust_env=False) as client:
        yield client


def request(body: bytes) -> bytes:
    """A request for images, with its headers."""
    headers = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return f"POST {GENERATE} HTTP/1.1\r\n{headers}".encode() + body


async def pieces() -> AsyncIterator[bytes]:
    """A body without Content-Length."""
    for piece in (b"{", b"}"):
        yield piece


if __name__ == "__main__":
    cyclopts.run(main)
