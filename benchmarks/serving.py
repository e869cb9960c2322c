"""The service under load: a real process, and clients over HTTP.

    python benchmarks/serving.py RUN [--out FILE] [--soak MINUTES] [--help]

Pictures per second of so many clients at a time, against a plain loop that draws one picture after another, in turns;
then a thousand requests, the time to the first preview, what happens after a client has left, and a soak of requests of
all kinds, right and wrong, while the memory of the service is watched. Prints a table and writes JSON to --out; 1 is
returned where a request was lost, an answer was not the expected one, or a picture depended on its company.
"""

import asyncio
import base64
import io
import json
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
PREVIEWS = 12  # as the page asks for
DRAW = "/v1/images/generations"
Order = dict[str, Any]


def main(
    run: Path,
    /,
    *,
    out: Path | None = None,
    clients: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (1, 8, 32),
    rounds: int = 5,
    pictures: int = 64,
    requests: int = 1000,
    repeats: int = 20,
    soak: float = 10.0,
    seed: int = 0,
) -> None:
    """Measure the service on a model.

    Args:
        run: a run or model folder.
        out: JSON file for all that was found.
        clients: how many at a time, for pictures per second.
        rounds: of the plain loop and the clients in turns.
        pictures: of each side in a round.
        requests: of the load from 32 clients.
        repeats: of first previews, and of clients that leave.
        soak: minutes.
        seed: of what is asked for.
    """
    keep_freed_memory()
    console, chance = Console(stderr=True), random.Random(seed)
    pipe = ditlab.load(run).prepared()
    found: dict[str, Any] = {"model": str(run), "machine": describe(str(pipe.net.device)), "defaults": told(pipe)}
    with serving(run) as server:
        for name, measure in {
            "pictures": lambda: throughput(server, pipe, clients, rounds, pictures),
            "load": lambda: asyncio.run(load(server, pipe, requests)),
            "preview": lambda: asyncio.run(first_preview(server, pipe, repeats)),
            "leaving": lambda: asyncio.run(leaving(server, pipe, repeats)),
            "soak": lambda: asyncio.run(Soak(server, pipe, chance).run(60 * soak)),
        }.items():
            with console.status(name):
                found[name] = measure()
            console.print(f"{name}: {json.dumps(found[name])}", highlight=False, markup=False)
    print(table(found))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if sound(found) else 1)


@dataclass
class Server:
    """A service in a process of its own."""

    address: str
    process: "subprocess.Popen[bytes]"

    def memory(self) -> float:
        """Resident memory in MiB, as Linux tells it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """As many connections as are asked for, and no proxy."""
        wide = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=self.address, timeout=300, limits=wide, trust_env=False) as client:
            yield client


@contextmanager
def serving(run: Path) -> Iterator[Server]:
    """`ditlab serve`, as users start it."""
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
    """Whether it answers."""
    try:
        return httpx.get(f"{server.address}/ready", trust_env=False).is_success
    except httpx.TransportError:
        return False


def told(pipe: Pipeline) -> dict[str, Any]:
    """How the model draws if nothing else is said."""
    default = pipe.defaults
    return {"sampler": default.sampler, "steps": default.steps, "guidance": default.guidance}


def orders(pipe: Pipeline, count: int, first: int = 0) -> list[Order]:
    """Orders for one picture each, all classes in turn, drawn as the model does by itself."""
    classes = pipe.net.classes
    return [({"prompt": i % classes} if classes else {}) | {"seed": first + i} for i in range(count)]


async def drawn(client: httpx.AsyncClient, order: Order, counts: Counter[str]) -> list[np.ndarray[Any, Any]]:
    """The pictures; comes back as it is told while no place is free."""
    while (answer := await client.post(DRAW, json=order)).status_code == 429:
        counts["turned_away"] += 1
        await asyncio.sleep(float(answer.headers["retry-after"]))
    answer.raise_for_status()
    files = [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]
    return [np.asarray(Image.open(io.BytesIO(file))).astype(int) for file in files]


async def together(many: int, work: Callable[[int], Awaitable[None]], count: int) -> None:
    """Work 0 to count - 1, shared by so many that each do one thing at a time."""
    numbers = iter(range(count))

    async def one() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(one() for _ in range(many)))


# ---------------------------------------------------------------- pictures per second


def throughput(server: Server, pipe: Pipeline, clients: tuple[int, ...], rounds: int, count: int) -> dict[str, Any]:
    """Pictures per second of the plain loop and of clients, in turns, and how far apart their pictures are."""
    asked = orders(pipe, count)
    rates: dict[str, list[float]] = {name: [] for name in ("loop", *map(str, clients))}
    worst = 0
    for i in range(rounds + 1):  # the first one only warms up
        begun = time.perf_counter()
        plain = [np.asarray(pipe(each.get("prompt"), seeds=each["seed"]).images[0]).astype(int) for each in asked]
        seconds = {"loop": time.perf_counter() - begun}
        for many in clients:
            begun = time.perf_counter()
            served = asyncio.run(all_drawn(server, asked, many))
            seconds[str(many)] = time.perf_counter() - begun
            worst = max(worst, *(int(np.abs(a - b).max()) for a, b in zip(plain, served, strict=True)))
        for name in seconds if i else ():
            rates[name].append(count / seconds[name])
    ratios = {name: median(a / b for a, b in zip(rates[name], rates["loop"], strict=True)) for name in rates}
    per_second = {name: median(each) for name, each in rates.items()}
    return {"per_second": per_second, "against_loop": ratios, "rounds": rounds, "grey_levels_apart": worst}


async def all_drawn(server: Server, asked: list[Order], many: int) -> list[np.ndarray[Any, Any]]:
    """The orders' pictures, by so many clients."""
    found: list[Any] = [None] * len(asked)
    async with server.client() as client:

        async def work(i: int) -> None:
            (found[i],) = await drawn(client, asked[i], Counter())

        await together(many, work, len(asked))
    return found


# ---------------------------------------------------------------- many requests


async def load(server: Server, pipe: Pipeline, count: int, many: int = 32) -> dict[str, Any]:
    """Requests for a picture each: how many are lost, how long they take, and the service's memory."""
    asked, counts, before = orders(pipe, count), Counter[str](), server.memory()
    seconds: list[float] = []
    begun = time.perf_counter()
    async with server.client() as client:

        async def work(i: int) -> None:
            sent = time.perf_counter()
            with suppress(httpx.HTTPError):
                await drawn(client, asked[i], counts)
                seconds.append(time.perf_counter() - sent)

        await together(many, work, count)
    return {
        "requests": count,
        "clients": many,
        "lost": count - len(seconds),
        "turned_away": counts["turned_away"],
        "per_second": len(seconds) / (time.perf_counter() - begun),
        "memory_before": before,
        "memory_after": server.memory(),
        **percentiles(seconds),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """In seconds."""
    cuts = quantiles(seconds, n=100, method="inclusive")
    return {f"p{part}": cuts[part - 1] for part in (50, 90, 99)} | {"longest": max(seconds)}


# ---------------------------------------------------------------- streams


async def events(answer: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """What a stream tells."""
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


async def first_preview(server: Server, pipe: Pipeline, repeats: int) -> dict[str, Any]:
    """Seconds from a request for four pictures to the first preview of them, with nobody else there."""
    order: Order = {"n": 4, "stream": True, "partial_images": PREVIEWS}
    seconds: list[float] = []
    async with server.client() as client:
        for i in range(repeats):
            begun = time.perf_counter()
            async with client.stream("POST", DRAW, json=order | {"seed": i}) as answer:
                async for event in events(answer):
                    if event["type"].endswith("partial_image") and len(seconds) == i:
                        seconds.append(time.perf_counter() - begun)
    return {"repeats": repeats, "median": median(seconds), "longest": max(seconds)}


async def leaving(server: Server, pipe: Pipeline, repeats: int) -> dict[str, Any]:
    """Network calls that end after a client has left in the middle of a drawing, one of them being in progress then.

    The client counts the steps that it was told, the service its network calls; Euler's steps have one each.
    """
    order: Order = {"n": 16, "stream": True, "partial_images": 0, "sampler": "euler", "num_inference_steps": 200}
    calls, seconds = [], []
    async with server.client() as client:
        for i in range(repeats):
            before = await figures(client)
            async with client.stream("POST", DRAW, json=order | {"seed": i}) as answer:
                async for event in events(answer):
                    if event["step"] >= 5 + i % 7:
                        break
            left = time.perf_counter()
            while (await figures(client))["ditlab_drawings"]:
                pass
            seconds.append(time.perf_counter() - left)
            await asyncio.sleep(0.1)  # a call is counted after it has been answered
            after = await figures(client)
            calls.append(round(after[CALLS] - before[CALLS]) - event["step"])
    step = (after[SECONDS] - before[SECONDS]) / (after[CALLS] - before[CALLS])
    told = {"repeats": repeats, "calls_median": median(calls), "calls_most": max(calls), "call_seconds": step}
    return told | {"seconds_median": median(seconds), "seconds_longest": max(seconds)}


CALLS, SECONDS = "ditlab_call_seconds_count", "ditlab_call_seconds_sum"


async def figures(client: httpx.AsyncClient) -> dict[str, float]:
    """Those that the service tells of itself."""
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, value in (line.split() for line in lines if not line.startswith("#"))}


# ---------------------------------------------------------------- soak

WRONG: list[tuple[int, str, str, dict[str, Any]]] = [
    (400, "POST", DRAW, {"json": {"prompt": "no such class"}}),
    (400, "POST", DRAW, {"json": {"n": 1024}}),
    (400, "POST", DRAW, {"json": {"model": "../../etc/passwd"}}),
    (400, "POST", DRAW, {"json": {"num_inference_steps": 100_000}}),
    (400, "POST", DRAW, {"content": b"[" * 100_000, "headers": {"content-type": "application/json"}}),
    (411, "POST", DRAW, {"content": iter([b"{", b"}"])}),
    (413, "POST", DRAW, {"content": b" " * (50 * MIB)}),
    (422, "POST", DRAW, {"json": {"n": "4"}}),
    (422, "POST", DRAW, {"content": b'{"n": 1', "headers": {"content-type": "application/json"}}),
    (404, "GET", "/nothing", {}),
    (405, "DELETE", "/v1/models", {}),
]
RIGHT = ["/", "/app.js", "/health", "/ready", "/metrics", "/v1/models", "/v1/classes", "/v1/runs", "/openapi.json"]


@dataclass
class Soak:
    """Clients of all kinds, more of them than there are places."""

    server: Server
    pipe: Pipeline
    chance: random.Random
    many: int = 40
    counts: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)

    async def run(self, seconds: float) -> dict[str, Any]:
        """Ask for so long."""
        ends = time.monotonic() + seconds
        async with self.server.client() as client:
            reference = orders(self.pipe, 1)[0]
            before = await drawn(client, reference, Counter())
            watching = asyncio.create_task(self.watch(seconds))
            await asyncio.gather(*(self.one(client, ends) for _ in range(self.many)))
            watching.cancel()
            while (last := await figures(client))["ditlab_drawings"]:
                await asyncio.sleep(0.1)
            after = await drawn(client, reference, Counter())
        part = max(len(self.memory) // 5, 1)
        return {
            "minutes": seconds / 60,
            "clients": self.many,
            "requests": self.counts.total() - self.counts["turned_away"],
            "of_which": dict(self.counts),
            "pictures": last["ditlab_pictures_total"],
            "failed": last["ditlab_failed_total"],
            "unexpected": dict(self.unexpected),
            # Of the second fifth and the last one: in the first one all shapes come for the first time.
            "memory_early": median(self.memory[part : 2 * part] or self.memory),
            "memory_late": median(self.memory[-part:]),
            "memory": [round(each) for each in self.memory],
            "same_picture": bool((before[0] == after[0]).all()),
        }

    async def watch(self, seconds: float) -> None:
        while True:
            self.memory.append(self.server.memory())
            await asyncio.sleep(min(5.0, seconds / 20))

    async def one(self, client: httpx.AsyncClient, ends: float) -> None:
        kinds = {self.draw: 55, self.stream: 15, self.leave: 12, self.err: 8, self.inside: 5, self.look: 5}
        while time.monotonic() < ends:
            (kind,) = self.chance.choices(list(kinds), list(kinds.values()))
            self.counts[kind.__name__] += 1
            try:
                await kind(client)
            except (httpx.HTTPError, AssertionError) as error:
                self.unexpected[f"{kind.__name__}: {error!r}"] += 1

    @cached_property
    def start(self) -> str:
        """A picture to start from."""
        content = io.BytesIO()
        Image.effect_noise((64, 64), 64).save(content, "PNG")
        return base64.b64encode(content.getvalue()).decode()

    def order(self) -> Order:
        """Some pictures, in some way."""
        count, classes = self.chance.randint(1, 4), self.pipe.net.classes
        order: Order = {"n": count, "seed": self.chance.randrange(2**32), "sampler": self.chance.choice(list(SAMPLERS))}
        order["num_inference_steps"] = self.chance.randint(2, 30)
        if classes:
            order["class_labels"] = [self.chance.randrange(classes) for _ in range(count)]
            order["guidance_scale"] = self.chance.choice([1.0, 1.5, 4.0])
        if self.chance.random() < 0.2:
            order |= {"image": self.start, "strength": 0.6}
        return order

    async def draw(self, client: httpx.AsyncClient) -> None:
        order = self.order()
        assert len(await drawn(client, order, self.counts)) == order["n"]

    async def stream(self, client: httpx.AsyncClient) -> None:
        await self.streamed(client, self.order(), None)

    async def leave(self, client: httpx.AsyncClient) -> None:
        await self.streamed(client, self.order(), self.chance.randint(1, 10))

    async def streamed(self, client: httpx.AsyncClient, order: Order, most: int | None) -> None:
        """A stream to its end, or so many events of it."""
        async with client.stream("POST", DRAW, json=order | {"stream": True}) as answer:
            if answer.status_code == 429:
                self.counts["turned_away"] += 1
                return
            answer.raise_for_status()
            kinds = []
            async for event in events(answer):
                kinds.append(event["type"])
                if len(kinds) == most:
                    return
            assert kinds[-1] == "image_generation.completed", kinds

    async def inside(self, client: httpx.AsyncClient) -> None:
        order = {"seed": self.chance.randrange(2**32), "num_inference_steps": 12, "step": 6, "attention": 0}
        answer = await client.post("/v1/inside", json=order)
        assert answer.status_code in (200, 429), answer.status_code

    async def err(self, client: httpx.AsyncClient) -> None:
        code, method, path, options = self.chance.choice(WRONG)
        if isinstance(body := options.get("content"), Iterator):
            options = options | {"content": pieces(body)}
        answer = await client.request(method, path, **options)
        assert answer.status_code == code, (method, path, code, answer.status_code)
        assert answer.json()["error"]["code"] == code

    async def look(self, client: httpx.AsyncClient) -> None:
        paths = RIGHT + [f"/v1/thumbnails/{i}" for i in range(min(self.pipe.net.classes, 8))]
        answer = await client.get(self.chance.choice(paths))
        assert answer.status_code in (200, 429), answer.status_code


async def pieces(body: Iterator[bytes]) -> AsyncIterator[bytes]:
    """A body whose length is not told."""
    for piece in body:
        yield piece


# ---------------------------------------------------------------- what was found


def sound(found: dict[str, Any]) -> bool:
    """Whether nothing was lost and nothing unexpected happened."""
    soak = found["soak"]
    quiet = not soak["unexpected"] and not soak["failed"] and soak["same_picture"]
    return quiet and not found["load"]["lost"] and found["pictures"]["grey_levels_apart"] <= 1


def table(found: dict[str, Any]) -> str:
    """As the documentation has it."""
    drawn, load, preview, left, soak = (found[key] for key in ("pictures", "load", "preview", "leaving", "soak"))
    rates = drawn["per_second"]
    rows = [("plain loop, one picture after another", f"{rates['loop']:.1f} pictures/s")]
    rows += [
        (
            "1 client" if many == "1" else f"{many} clients at a time",
            f"{rate:.1f} pictures/s, {drawn['against_loop'][many]:.2f} x the loop",
        )
        for many, rate in rates.items()
        if many != "loop"
    ]
    growth = soak["memory_late"] - soak["memory_early"]
    rows += [
        ("the same picture, alone and in company", f"{drawn['grey_levels_apart']} grey levels apart at most"),
        (
            f"{load['requests']:,} requests from {load['clients']} clients",
            f"{load['lost']} lost, {load['turned_away']} told to come back",
        ),
        ("their latency: p50, p90, p99", f"{load['p50']:.2f}, {load['p90']:.2f}, {load['p99']:.2f} s"),
        ("memory before and after them", f"{load['memory_before']:.0f} and {load['memory_after']:.0f} MiB"),
        ("first preview of four pictures", f"{preview['median']:.3f} s, {preview['longest']:.3f} s at most"),
        (
            "network calls that end after the client has left",
            f"{left['calls_median']:.0f}, {left['calls_most']} at most, of {1000 * left['call_seconds']:.0f} ms each",
        ),
        ("until its place is free", f"{left['seconds_median']:.3f} s, {left['seconds_longest']:.3f} s at most"),
        (
            f"soak of {soak['minutes']:g} minutes, {soak['clients']} clients",
            f"{soak['requests']:,} requests, {sum(soak['unexpected'].values())} unexpected answers, "
            f"{soak['failed']:.0f} failed drawings",
        ),
        ("its memory, early and late", f"{soak['memory_early']:.0f} and {soak['memory_late']:.0f} MiB ({growth:+.0f})"),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


if __name__ == "__main__":
    cyclopts.run(main)
