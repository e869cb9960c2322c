"""The command `serve`."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.cli.options import Base
from ditlab.cli.terminal import app, say, say_note
from ditlab.config.fields import Natural, Positive, within
from ditlab.config.values import Location, Whole
from ditlab.core.device import pick_device, share_freed_memory
from ditlab.core.errors import InputError

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from ditlab.inference.base import BasePipeline
    from ditlab.server.generation import Limits

RENAMED = {
    "pictures": "max_images",
    "steps": "max_steps",
    "seconds": "max_seconds",
    "drawings": "max_requests",
    "rows": "max_rows",
}
HIDDEN = Parameter(show=False)
Seconds = Annotated[float, Parameter(validator=within(between=(0.01, 1_000_000)))]


@dataclass(frozen=True)
class Serving:
    """The address of the service, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on. Addresses other than localhost need --token or --open-to-all."""
    port: Annotated[Whole, Parameter(validator=within(at_least=0, below=2**16))] = 7860
    """Port to listen on."""
    token: str = ""
    """Require this token in every request, as Authorization: Bearer TOKEN. You can also set the environment variable
    DITLAB_TOKEN, which other users cannot see."""
    open_to_all: Annotated[bool, Parameter(negative="")] = False
    """Allow requests from other machines without a token."""
    max_images: Positive = 16
    """Largest number of images per request."""
    max_steps: Positive = 250
    """Largest number of sampler steps per request."""
    max_seconds: Seconds = 120.0
    """Longest duration of a request, in seconds."""
    max_requests: Positive = 32
    """Largest number of requests at the same time; further requests are rejected with status 429."""
    min_free_mib: Natural = 128
    """Free memory of the device in MiB below which further requests are rejected with status 429 while others are in
    progress (0 disables this)."""
    max_rows: Positive = 64
    """Largest number of batch rows per network call; an image with guidance has two."""
    max_pixels: Positive = 16_000_000
    """Largest number of pixels of an image or mask in a request."""
    max_connections: Positive = 200
    """Largest number of open connections; for a new one, the connection that has waited longest for its client ends."""
    client_seconds: Seconds = 30.0
    """Longest time in seconds for a client to send a request, and to read 64 KiB of a response."""
    allowed_hosts: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """Names under which clients reach the service, such as example.com or *.example.com; * allows all. By default, all
    names with a token, and otherwise localhost, the name of this machine unless the service listens on localhost, and
    all IP addresses."""
    precision: Literal["auto", "float32", "bfloat16", "int8", "float8"] = "auto"
    """Precision of the networks; auto uses the fastest one."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    pictures: Annotated[Positive | None, HIDDEN] = None
    steps: Annotated[Positive | None, HIDDEN] = None
    seconds: Annotated[Seconds | None, HIDDEN] = None
    drawings: Annotated[Positive | None, HIDDEN] = None
    rows: Annotated[Positive | None, HIDDEN] = None

    def current(self) -> "Serving":
        """Move values of previous names to the present names, and print a note for each."""
        changes: dict[str, Any] = {}
        for old, new in RENAMED.items():
            if (value := getattr(self, old)) is not None:
                say(f"--{old} is now --{new.replace('_', '-')}; the old name will be removed")
                changes |= {new: value, old: None}
        return replace(self, **changes)

    def limits(self) -> "Limits":
        """The limits of the service."""
        from ditlab.server.generation import Limits

        return Limits(
            images=self.max_images,
            steps=self.max_steps,
            seconds=self.max_seconds,
            requests=self.max_requests,
            rows=self.max_rows,
            pixels=self.max_pixels,
            memory=self.min_free_mib * 2**20,
            connections=self.max_connections,
            client_seconds=self.client_seconds,
        )


@app.command(group="Generate")
def serve(
    models: Annotated[list[Location], Parameter(negative="")],
    /,
    *,
    options: Annotated[Serving | None, Parameter(name="*")] = None,
    base: Base = None,
) -> None:
    """Serve models over HTTP and show training runs, with a web page.

    Listens on localhost by default. Requests in progress at the same time share network calls.

    Parameters
    ----------
    models
        Model or run folders, external checkpoints, or hub ids; the last part of the path is the name of the model.
    """
    try:
        import uvicorn

        from ditlab.server.app import create_app
        from ditlab.server.hosts import LOOPBACK, hosts_of
    except ImportError as error:
        raise InputError(f"the service needs {error.name}; pip install 'ditlab[server]'") from None

    share_freed_memory()
    options = (options or Serving()).current()
    token = options.token or os.environ.get("DITLAB_TOKEN", "")
    if options.host not in LOOPBACK and not token and not options.open_to_all:
        raise InputError(
            f"other machines can connect to --host {options.host}; add --token TOKEN, or --open-to-all to allow that"
        )
    limits = options.limits()
    hosts = hosts_of(options.host, socket.gethostname(), options.allowed_hosts, token)
    listening = listen(options.host, options.port)
    loaded, runs = open_models(models, options, base)
    host = "[::1]" if options.host == "::1" else options.host
    say(f"{', '.join([*loaded] or runs)} at http://{host}:{listening.getsockname()[1]}; stop with Ctrl-C")
    shared = token or options.host not in LOOPBACK
    application = create_app(loaded, limits, token, runs, hosts, {} if shared else readable_paths(models, options))
    uvicorn.Server(server_config(application, limits)).run(sockets=[listening])


def readable_paths(models: Sequence[str], options: Serving) -> dict[str, str]:
    """The models by name, for commands that the page copies; none behind a proxy, which names its host."""
    return {} if options.allowed_hosts else {Path(model).name or model: model for model in models}


def server_config(application: "FastAPI", limits: "Limits") -> "uvicorn.Config":
    """The settings of the HTTP server."""
    import uvicorn

    from ditlab.server.connections import bounded
    from ditlab.server.log import log_config

    return uvicorn.Config(
        application,
        http=bounded(limits.client_seconds, limits.connections),
        ws="none",
        log_config=log_config(),
        log_level="warning",
        timeout_graceful_shutdown=10,
    )


def open_models(
    models: Sequence[str], options: Serving, base: str | None = None
) -> tuple["dict[str, BasePipeline]", dict[str, Path]]:
    """Load models and find training runs.

    Args:
        models: the models.
        options: the device and precision.
        base: present place of the model under those models that are low-rank updates.

    Returns:
        Pipelines by name, and folders of training runs by name. A run with a checkpoint is in both.

    Raises:
        InputError: a model that cannot be loaded, or two of the same name.
    """
    from ditlab.checkpoints import load
    from ditlab.core.weights import ADAPTER, checkpoints, newest_checkpoint

    updates = [model for model in models if ((newest_checkpoint(Path(model)) or Path(model)) / ADAPTER).exists()]
    if base is not None and not updates:
        raise InputError(f"none of {', '.join(models)} holds low-rank updates; leave --base out")
    loaded: dict[str, BasePipeline] = {}
    runs: dict[str, Path] = {}
    for model in models:
        name = Path(model).name or model
        if name in loaded or name in runs:
            raise InputError(f'two models have the name "{name}"; rename one of the folders')
        if (Path(model) / "metrics.jsonl").exists():
            runs[name] = Path(model)
            if not checkpoints(Path(model)):
                say(f"{name} has no checkpoint yet; only its progress is shown")
                continue
        under, device = base if model in updates else None, pick_device(options.device)
        loaded[name] = load(model, device=device, base=under).prepared(options.precision)
        say_note(loaded[name].config)
    return loaded, runs


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; called before models are loaded, which takes minutes.

    Raises:
        InputError: the address or the port is not available.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # Without it, responses wait 40 ms. Connections inherit it; asyncio sets it only on sockets that it opens.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port} ({reason}); give another --port or --host") from error
