"""Middleware that checks requests before their bodies are read, security headers, and error responses as JSON."""

import asyncio
import hmac
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ditlab.core.device import release_freed_memory
from ditlab.core.errors import InputError
from ditlab.core.units import counted
from ditlab.server.bodies import TEXT
from ditlab.server.generation import Limits
from ditlab.server.hosts import Hosts
from ditlab.server.idle import Busy
from ditlab.server.requests import UNKNOWN_KEY
from ditlab.server.responses import error_body
from ditlab.server.service import Failed

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
}
TAGS = ("constrained-", "function-")  # pydantic's names for the alternatives of a union, which are no part of a path
BODIES = 4  # largest bodies in progress; each needs about three times its length in memory
LONGEST = 1000  # characters of a message


class Guard:
    """Rejects requests for other hosts, from other sites, without a valid token, and with too long bodies.

    It does so before their bodies are read, and adds headers to all responses.
    """

    def __init__(self, app: ASGIApp, limits: Limits, token: str, public: Collection[str], hosts: Hosts) -> None:
        """Middleware around an application.

        Args:
            app: the application.
            limits: of a body, and of all large bodies of requests in progress, which need memory.
            token: that requests must have; empty for none.
            public: paths that need no token, and to which links of other sites may lead.
            hosts: names of the service.
        """
        self.app, self.limits, self.token, self.public, self.hosts = app, limits, token, public, hosts
        self.large = 0  # bytes of the large bodies of requests in progress

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if (rejection := self.reject(scope["path"], scope["method"], headers)) is not None:
            await rejection(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        large = large_length(int(headers.get("content-length", "0")))
        self.large += large
        try:
            await self.app(scope, receive, with_headers)
        finally:
            self.large -= large
            if large:  # otherwise each thread keeps the memory of its largest body
                asyncio.get_running_loop().run_in_executor(None, release_freed_memory)

    def reject(self, path: str, method: str, headers: Headers) -> JSONResponse | None:
        """The response to a request that is rejected; None for a request that is not."""
        public = path in self.public
        if (message := self.hosts.rejection(headers, public and method in ("GET", "HEAD"))) is not None:
            return error_response(403, message)
        if "transfer-encoding" in headers:
            return error_response(411, "send the body with Content-Length, not in chunks")
        length = headers.get("content-length", "0")  # int() raises for some thousand digits
        if not (length.isdecimal() and len(length) < 20 and int(length) <= self.limits.body):
            return error_response(413, f"the body has {length[:20]} bytes; the limit is {self.limits.body}")
        if self.token and not public and not self.has_token(headers.get("authorization", "")):
            message = "a token is required: Authorization: Bearer TOKEN"
            return error_response(401, message, {"WWW-Authenticate": "Bearer"})
        large = large_length(int(length))
        if large and self.large + large > BODIES * self.limits.body:
            message = f"images of {self.large} bytes are in progress, which is near the limit; try again in 1 s"
            return error_response(429, message, {"Retry-After": "1"})
        return None

    def has_token(self, authorization: str) -> bool:
        """Whether a header has the token, after the word Bearer in any case."""
        scheme, _, token = authorization.partition(" ")
        # Headers are decoded as Latin-1, and the token is sent as UTF-8.
        same = hmac.compare_digest(token.strip(" ").encode("latin-1"), self.token.encode())
        return same and scheme.lower() == "bearer"


def add_error_handlers(app: FastAPI, limits: Limits) -> None:
    """Make every error of the application a JSON response of the same form."""

    @app.exception_handler(InputError)
    async def input_error(request: Request, error: InputError) -> JSONResponse:
        return error_response(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        cause = (errors[0].get("ctx") or {}).get("error")
        if isinstance(cause, InputError):  # raised by a check of ours in the form of the body
            return error_response(400, str(cause))
        if tuple(errors[0]["loc"]) == ("body",) and "json" not in request.headers.get("content-type", ""):
            return error_response(422, "the body must be JSON, with Content-Type: application/json")
        return error_response(422, validation_message(errors))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        headers, message = dict(error.headers or {}), str(error.detail)
        if error.status_code == 405:
            message = f"{request.method[:20]} is not allowed for this path; use {headers.get('Allow')}"
        return error_response(error.status_code, message, headers)

    @app.exception_handler(Failed)
    async def failed(request: Request, error: Failed) -> JSONResponse:
        return error_response(503, str(error))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:  # the server logs the traceback
        return error_response(500, "the service failed; see its log")

    @app.exception_handler(Busy)
    async def busy(request: Request, error: Busy) -> JSONResponse:
        message = f"the limit of {counted(limits.requests, 'request')} in progress is reached; try again in 1 s"
        return error_response(429, str(error) or message, {"Retry-After": "1"})


def validation_message(errors: Sequence[Any]) -> str:
    """What is wrong with a body or parameter, in one line; a value of a union has an error for each alternative."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    if first["type"] == UNKNOWN_KEY:
        return str(first["msg"])

    def path(error: Any) -> str:
        parts = [str(part) for part in error["loc"] if not str(part).startswith(TAGS)]
        return ".".join(parts[1:] or parts)

    alternatives = [error for error in errors if path(error) == path(first)]
    if first["input"] == "" and any(error["type"] == "string_too_short" for error in alternatives):
        return f"{path(first)[:200]} is empty; give a text, or leave it out"
    messages = dict.fromkeys(error["msg"] for error in alternatives)
    return f"{path(first)[:200]}: {', or: '.join(messages)}"


def large_length(length: int) -> int:
    """Bytes of a body that count against the limit of all; small bodies do not."""
    return length if length > TEXT else 0


def error_response(code: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error response in the format of common image services."""
    shown = message if len(message) <= LONGEST else f"{message[: LONGEST - 3]}..."
    return JSONResponse(error_body(code, shown), code, (headers or {}) | HEADERS)
