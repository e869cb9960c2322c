"""The command that serves models."""

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from ditlab.cli.terminal import app, say, say_note
from ditlab.config.sections import Whole
from ditlab.core.device import pick_device
from ditlab.core.errors import InputError


@app.command(group="Draw")
def serve(
    models: Annotated[list[str], Parameter(negative="")],
    /,
    *,
    host: str = "127.0.0.1",
    port: Whole = 7860,
    token: str = "",
    open_to_all: Annotated[bool, Parameter(negative="")] = False,
    pictures: Whole = 16,
    steps: Whole = 250,
    seconds: float = 120.0,
    drawings: Whole = 32,
    rows: Whole = 64,
    precision: Literal["auto", "float32", "bfloat16"] = "auto",
    device: str = "auto",
) -> None:
    """Serve models over HTTP, and show training runs; all who draw at the same time share each network call.

    Parameters
    ----------
    models
        Model or run folders, checkpoints of somebody else, or hub ids; each is served under its last name.
    host
        Address to listen on; another than loopback needs --token or --open-to-all.
    port
        Its port.
    token
        That every request must bear, as Authorization: Bearer TOKEN; better given as DITLAB_TOKEN in the environment.
    open_to_all
        Serve other machines without a token.
    pictures
        Most pictures of a request.
    steps
        Most steps of a request.
    seconds
        Longest time of a request.
    drawings
        Requests that are drawn at a time; more are answered with 429.
    rows
        Pictures in a network call, both halves of guidance counted.
    precision
        Of the networks.
    device
        auto, cpu, cuda, mps.
    """
    try:
        import uvicorn

        from ditlab.server.app import create_app
    except ImportError as error:
        raise InputError(f"the service needs {error.name}; pip install 'ditlab[studio]'") from None
    from ditlab.checkpoints import load
    from ditlab.core.weights import checkpoints
    from ditlab.server.service import Limits

    token = token or os.environ.get("DITLAB_TOKEN", "")
    if host not in ("127.0.0.1", "::1", "localhost") and not token and not open_to_all:
        raise InputError(f"--host {host} can be reached by other machines; add --token TOKEN, or --open-to-all")
    listening = listen(host, port)
    loaded: dict[str, Any] = {}
    runs: dict[str, Path] = {}
    for model in models:
        name = Path(model).name or model
        if name in loaded or name in runs:
            raise InputError(f'two models are called "{name}"; rename one of the folders')
        if (Path(model) / "metrics.jsonl").exists():
            runs[name] = Path(model)
            if not checkpoints(Path(model)):
                say(f"{name} has no checkpoint yet; it can be watched")
                continue
        loaded[name] = load(model, device=pick_device(device)).prepared(precision)
        say_note(loaded[name].config)
    limits = Limits(pictures=pictures, steps=steps, seconds=seconds, drawings=drawings, rows=rows)
    shown = f"http://{'[::1]' if host == '::1' else host}:{listening.getsockname()[1]}"
    say(f"{', '.join([*loaded] or runs)} at {shown}; Ctrl-C ends it")
    settings = uvicorn.Config(
        create_app(loaded, limits, token, runs), log_level="warning", timeout_graceful_shutdown=10
    )
    uvicorn.Server(settings).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there, before minutes of loading.

    Raises:
        InputError: an address or a port that cannot be had.
    """
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        # Connections inherit it; asyncio sets it only where it makes the socket. Otherwise answers wait 40 ms.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen on {host}:{port} ({reason}); give another --port or --host") from error
