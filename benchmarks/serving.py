"""The service under load: a real process, and clients over HTTP.

    python benchmarks/serving.py RUN [--out FILE] [--soak MINUTES] [--help]

Measures images per second of 1, 8 and 32 clients against a plain loop that generates one image after another, in turns;
then a thousand requests, the time to the first preview, network calls after a client has disconnected, and a soak test
with valid and invalid requests of all kinds, which records the memory of the service. Prints a table and writes JSON to
--out. The exit code is 1 if a request was lost, a response was not the expected one, or an image depended on the other
requests in progress.
"""

import asyncio
import base64
import io
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated, Any

import cyclopts
import httpx
import numpy as np
from cyclopts import Parameter
from PIL import Image
from rich.console import Console

import ditlab
from ditlab.core.device import describe, keep_freed_memory
from ditlab.diffusion.samplers import SAMPLERS
from ditlab.inference.pipeline import Pipeline

MIB = 2**20
PREVIEWS = 12  # as the page requests
GENERATE = "/v1/images/generations"
Body = dict[str, Any]


def main(
    run: Path,
    /,
    *,
    out: Path | None = None,
    clients: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (1, 8, 32),
    rounds: int = 5,
    images: int = 64,
    requests: int = 1000,
    repeats: int = 20,
    soak: float = 10.0,
    seed: int = 0,
) -> None:
    """Measure the service on a model.

    Args:
        run: a run or model folder.
        out: JSON file for all results.
        clients: numbers of clients for images per second.
        rounds: of the plain loop and the clients in turns.
        images: of the loop, and of the clients, in a round.
        requests: of the load test with 32 clients.
        repeats: of first previews, and of clients that disconnect.
        soak: minutes.
        seed: of the choice of requests.
    """
    keep_freed_memory()
    console, rng = Console(stderr=True), random.Random(seed)
    pipe = ditlab.load(run).prepared()
    results: dict[str, Any] = {"model": str(run), "machine": describe(str(pipe.net.device)), "defaults": defaults(pipe)}
    with serving(run) as server:
        for name, measure in {
            "images": lambda: throughput(server, pipe, clients, rounds, images),
            "load": lambda: asyncio.run(load(server, pipe, requests)),
            "preview": lambda: asyncio.run(first_preview(server, repeats)),
            "disconnects": lambda: asyncio.run(disconnects(server, repeats)),
            "soak": lambda: asyncio.run(Soak(server, pipe, rng).run(60 * soak)),
        }.items():
            with console.status(name):
                results[name] = measure()
            console.print(f"{name}: {json.dumps(results[name])}", highlight=False, markup=False)
    print(table(results))
    if out is not None:
        out.write_text(json.dumps(results, indent=1) + "\n")
    sys.exit(0 if sound(results) else 1)


@dataclass
class Server:
    """A service in a separate process."""

    address: str
    process: "subprocess.Popen[bytes]"

    def memory(self) -> float:
        """Resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def cpu(self) -> float:
        """CPU time in seconds."""
        user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """A client without a limit of connections, and without a proxy."""
        wide = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self.address, timeout=300, limits=wide, trust_env=False) as client:
            yield client


@contextmanager
def serving(run: Path) -> Iterator[Server]:
    """`ditlab serve` in a separate process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ditlab", "serve", str(run), f"--port={port}"], stdout=log, stderr=log
        )
        server = Server(f"http://127.0.0.1:{port}", process)
        try:
            while not ready(server):
                if process.poll() is not None:
                    sys.exit("the service did not start")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            process.wait(30)
            log.seek(0)
            sys.stderr.write(log.read().decode())


def ready(server: Server) -> bool:
    """Whether it responds."""
    try:
        return httpx.get(f"{server.address}/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


def defaults(pipe: Pipeline) -> dict[str, Any]:
    """The default settings of the model."""
    default = pipe.defaults
    return {"sampler": default.sampler, "steps": default.steps, "guidance": default.guidance}


def bodies(pipe: Pipeline, count: int, first: int = 0) -> list[Body]:
    """Requests for one image each, all classes in turn, with the default settings of the model."""
    classes = pipe.net.classes
    return [({"prompt": i % classes} if classes else {}) | {"seeds": first + i} for i in range(count)]


async def generate(client: httpx.AsyncClient, body: Body, counts: Counter[str]) -> list[np.ndarray[Any, Any]]:
    """The images of a request; it is repeated as long as the service rejects it with 429."""
    while (response := await client.post(GENERATE, json=body)).status_code == 429:
        counts["rejected"] += 1
        await asyncio.sleep(float(response.headers["retry-after"]))
    response.raise_for_status()
    files = [base64.b64decode(item["b64_json"]) for item in response.json()["data"]]
    return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]


async def together(many: int, work: Callable[[int], Awaitable[None]], count: int) -> None:
    """Run work 0 to count - 1, at most `many` at the same time."""
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(one() for _ in range(many)))


# ---------------------------------------------------------------- images per second


def throughput(server: Server, pipe: Pipeline, clients: tuple[int, ...], rounds: int, count: int) -> dict[str, Any]:
    """Images per second of the plain loop and of clients, in turns, and the largest difference of their images."""
    requests = bodies(pipe, count)
    rates: dict[str, list[float]] = {name: [] for name in ("loop", *map(str, clients))}
    worst = 0
    for i in range(rounds + 1):  # the first one only warms up
        started = time.perf_counter()
        plain = [np.asarray(pipe(body.get("prompt"), seeds=body["seeds"]).images[0]).astype(int) for body in requests]
        seconds = {"loop": time.perf_counter() - started}
        for many in clients:
            started = time.perf_counter()
            served = asyncio.run(generate_all(server, requests, many))
            seconds[str(many)] = time.perf_counter() - started
            worst = max(worst, *(int(np.abs(a - b).max()) for a, b in zip(plain, served, strict=True)))
        for name in seconds if i else ():
            rates[name].append(count / seconds[name])
    ratios = {name: median(a / b for a, b in zip(rates[name], rates["loop"], strict=True)) for name in rates}
    per_second = {name: median(each) for name, each in rates.items()}
    return {"per_second": per_second, "against_loop": ratios, "rounds": rounds, "gray_levels_apart": worst}


async def generate_all(server: Server, requests: list[Body], many: int) -> list[np.ndarray[Any, Any]]:
    """The images of the requests, with `many` clients."""
    results: list[Any] = [None] * len(requests)
    async with server.client() as client:

        async def work(i: int) -> None:
            (results[i],) = await generate(client, requests[i], Counter())

        await together(many, work, len(requests))
    return results


# ---------------------------------------------------------------- many requests


async def load(server: Server, pipe: Pipeline, count: int, many: int = 32) -> dict[str, Any]:
    """Requests for one image each: how many are lost, how long they take, and the memory of the service."""
    requests, counts, before = bodies(pipe, count), Counter[str](), server.memory()
    seconds: list[float] = []
    started = time.perf_counter()
    async with server.client() as client:

        async def work(i: int) -> None:
            sent = time.perf_counter()
            with suppress(httpx.HTTPError):
                await generate(client, requests[i], counts)
                seconds.append(time.perf_counter() - sent)

        await together(many, work, count)
    return {
        "requests": count,
        "clients": many,
        "lost": count - len(seconds),
        "rejected": counts["rejected"],
        "per_second": len(seconds) / (time.perf_counter() - started),
        "memory_before": before,
        "memory_after": server.memory(),
        **percentiles(seconds),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In seconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {f"p{part}": cuts[part - 1] for part in (50, 90, 99)} | {"longest": max(seconds)}


# ---------------------------------------------------------------- streams


async def events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The data of the events of a stream."""
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def first_preview(server: Server, repeats: int) -> dict[str, Any]:
    """Seconds from a request for four images to their first preview, without other requests."""
    body: Body = {"n": 4, "stream": True, "partial_images": PREVIEWS}
    seconds: list[float] = []
    async with server.client() as client:
        for i in range(repeats):
            started = time.perf_counter()
            async with client.stream("POST", GENERATE, json=body | {"seeds": i}) as response:
                async for event in events(response):
                    if event["type"].endswith("partial_image") and len(seconds) == i:
                        seconds.append(time.perf_counter() - started)
    return {"repeats": repeats, "median": median(seconds), "longest": max(seconds)}


async def disconnects(server: Server, repeats: int) -> dict[str, Any]:
    """Network calls that end after a client has disconnected; one of them is in progress at that time.

    The client counts the steps of the stream, the service its network calls; Euler makes one call for each step.
    """
    body: Body = {"n": 16, "stream": True, "partial_images": 0, "sampler": "euler", "steps": 200}
    calls, seconds = [], []
    async with server.client() as client:
        for i in range(repeats):
            before = await metrics(client)
            async with client.stream("POST", GENERATE, json=body | {"seeds": i}) as response:
                async for event in events(response):
                    if event["step"] >= 5 + i % 7:
                        break
            left = time.perf_counter()
            while (await metrics(client))[IN_PROGRESS]:
                pass
            seconds.append(time.perf_counter() - left)
            await asyncio.sleep(0.1)  # a call is counted after it has ended
            after = await metrics(client)
            calls.append(round(after[CALLS] - before[CALLS]) - event["step"])
    step = (after[SECONDS] - before[SECONDS]) / (after[CALLS] - before[CALLS])
    result = {"repeats": repeats, "calls_median": median(calls), "calls_most": max(calls), "call_seconds": step}
    return result | {"seconds_median": median(seconds), "seconds_longest": max(seconds)}


IN_PROGRESS = "ditlab_requests_in_progress"
CALLS, SECONDS = "ditlab_call_seconds_count", "ditlab_call_seconds_sum"


async def metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """The metrics of the service."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


# ---------------------------------------------------------------- soak

INVALID: list[tuple[int, str, str, dict[str, Any]]] = [
    (400, "POST", GENERATE, {"json": {"prompt": "no such class"}}),
    (400, "POST", GENERATE, {"json": {"n": 1024}}),
    (400, "POST", GENERATE, {"json": {"model": "../../etc/passwd"}}),
    (400, "POST", GENERATE, {"json": {"steps": 100_000}}),
    (400, "POST", GENERATE, {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}),
    (411, "POST", GENERATE, {"content": iter([b"{", b"}"])}),
    (413, "POST", GENERATE, {"content": b" " * (50 * MIB)}),
    (422, "POST", GENERATE, {"json": {"n": "4"}}),
    (422, "POST", GENERATE, {"content": b'{"n": 1', "headers": {"content-type": "application/json"}}),
    (404, "GET", "/nothing", {}),
    (405, "DELETE", "/v1/models", {}),
]
PATHS = ["/", "/app.js", "/health", "/ready", "/metrics", "/v1/models", "/v1/classes", "/v1/runs", "/openapi.json"]


@dataclass
class Soak:
    """Clients of all kinds, more than the service accepts at the same time."""

    server: Server
    pipe: Pipeline
    rng: random.Random
    many: int = 40
    counts: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)

    async def run(self, seconds: float) -> dict[str, Any]:
        """Send requests for this duration."""
        ends = time.monotonic() + seconds
        async with self.server.client() as client:
            reference = bodies(self.pipe, 1)[0]
            before = await generate(client, reference, Counter())
            watching = asyncio.create_task(self.watch(seconds))
            await asyncio.gather(*(self.one(client, ends) for _ in range(self.many)))
            watching.cancel()
            while (last := await metrics(client))[IN_PROGRESS]:
                await asyncio.sleep(0.1)
            after = await generate(client, reference, Counter())
        part = max(len(self.memory) // 5, 1)
        return {
            "minutes": seconds / 60,
            "clients": self.many,
            "requests": self.counts.total() - self.counts["rejected"],
            "of_which": dict(self.counts),
            "images": last["ditlab_images_total"],
            "failed": last["ditlab_requests_failed_total"],
            "unexpected": dict(self.unexpected),
            # Of the second fifth and the last one: in the first fifth all shapes occur for the first time.
            "memory_early": median(self.memory[part : 2 * part] or self.memory),
            "memory_late": median(self.memory[-part:]),
            "memory": [round(each) for each in self.memory],
            "same_image": bool((before[0] == after[0]).all()),
        }

    async def watch(self, seconds: float) -> None:
        while True:
            self.memory.append(self.server.memory())
            await asyncio.sleep(min(5.0, seconds / 20))

    async def one(self, client: httpx.AsyncClient, ends: float) -> None:
        kinds = {
            self.generate: 55,
            self.stream: 15,
            self.disconnect: 12,
            self.invalid: 8,
            self.inspect: 5,
            self.get: 5,
        }
        while time.monotonic() < ends:
            (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
            self.counts[kind.__name__] += 1
            try:
                await kind(client)
            except (httpx.HTTPError, AssertionError) as error:
                self.unexpected[f"{kind.__name__}: {error!r}"] += 1

    @cached_property
    def start(self) -> str:
        """An image to start from."""
        content = io.BytesIO()
        Image.effect_noise((64, 64), 64).save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    def body(self) -> Body:
        """A random request for images."""
        count, classes = self.rng.randint(1, 4), self.pipe.net.classes
        body: Body = {"n": count, "seeds": self.rng.randrange(2**32), "sampler": self.rng.choice(list(SAMPLERS))}
        body["steps"] = self.rng.randint(2, 30)
        if classes:
            body["labels"] = [self.rng.randrange(classes) for _ in range(count)]
            body["guidance"] = self.rng.choice([1.0, 1.5, 4.0])
        if self.rng.random() < 0.2:
            body |= {"image": self.start, "strength": 0.6}
        return body

    async def generate(self, client: httpx.AsyncClient) -> None:
        body = self.body()
        assert len(await generate(client, body, self.counts)) == body["n"]

    async def stream(self, client: httpx.AsyncClient) -> None:
        await self.streamed(client, self.body(), None)

    async def disconnect(self, client: httpx.AsyncClient) -> None:
        await self.streamed(client, self.body(), self.rng.randint(1, 10))

    async def streamed(self, client: httpx.AsyncClient, body: Body, most: int | None) -> None:
        """A stream to its end, or its first `most` events."""
        async with client.stream("POST", GENERATE, json=body | {"stream": True}) as response:
            if response.status_code == 429:
                self.counts["rejected"] += 1
                return
            response.raise_for_status()
            kinds = []
            async for event in events(response):
                kinds.append(event["type"])
                if len(kinds) == most:
                    return
            assert kinds[-1] == "image_generation.completed", kinds

    async def inspect(self, client: httpx.AsyncClient) -> None:
        body = {"seeds": self.rng.randrange(2**32), "steps": 12, "step": 6, "attention": 0}
        response = await client.post("/v1/inspect", json=body)
        assert response.status_code in (200, 429), response.status_code

    async def invalid(self, client: httpx.AsyncClient) -> None:
        code, method, path, options = self.rng.choice(INVALID)
        if isinstance(body := options.get("content"), Iterator):
            options = options | {"content": pieces(body)}
        response = await client.request(method, path, **options)
        assert response.status_code == code, (method, path, code, response.status_code)
        assert response.json()["error"]["code"] == code

    async def get(self, client: httpx.AsyncClient) -> None:
        paths = PATHS + [f"/v1/thumbnails/{i}" for i in range(min(self.pipe.net.classes, 8))]
        response = await client.get(self.rng.choice(paths))
        assert response.status_code in (200, 429), response.status_code


async def pieces(body: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A body without Content-Length."""
    for piece in body:
        yield piece


# ---------------------------------------------------------------- results


def sound(results: dict[str, Any]) -> bool:
    """Whether nothing was lost and nothing unexpected happened."""
    soak = results["soak"]
    quiet = not soak["unexpected"] and not soak["failed"] and soak["same_image"]
    return quiet and not results["load"]["lost"] and results["images"]["gray_levels_apart"] <= 1


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table."""
    images, load, preview, left, soak = (results[key] for key in ("images", "load", "preview", "disconnects", "soak"))
    rates = images["per_second"]
    rows = [("plain loop, one image after another", f"{rates['loop']:.1f} images/s")]
    rows += [
        (
            "1 client" if many == "1" else f"{many} clients at the same time",
            f"{rate:.1f} images/s, {images['against_loop'][many]:.2f}x the loop",
        )
        for many, rate in rates.items()
        if many != "loop"
    ]
    growth = soak["memory_late"] - soak["memory_early"]
    rows += [
        ("the same image, alone and batched", f"at most {images['gray_levels_apart']} gray levels apart"),
        (
            f"{load['requests']:,} requests from {load['clients']} clients",
            f"{load['lost']} lost, {load['rejected']} rejected and repeated",
        ),
        ("latency: p50, p90, p99", f"{load['p50']:.2f}, {load['p90']:.2f}, {load['p99']:.2f} s"),
        ("memory before and after them", f"{load['memory_before']:.0f} and {load['memory_after']:.0f} MiB"),
        ("first preview of four images", f"{preview['median']:.3f} s, at most {preview['longest']:.3f} s"),
        (
            "network calls that end after the client has disconnected",
            f"{left['calls_median']:.0f}, at most {left['calls_most']}, of {1000 * left['call_seconds']:.0f} ms each",
        ),
        ("until the request has ended", f"{left['seconds_median']:.3f} s, at most {left['seconds_longest']:.3f} s"),
        (
            f"soak of {soak['minutes']:g} minutes, {soak['clients']} clients",
            f"{soak['requests']:,} requests, {sum(soak['unexpected'].values())} unexpected responses, "
            f"{soak['failed']:.0f} failed generations",
        ),
        ("memory, early and late", f"{soak['memory_early']:.0f} and {soak['memory_late']:.0f} MiB ({growth:+.0f})"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    cyclopts.run(main)
