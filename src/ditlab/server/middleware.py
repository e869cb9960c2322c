"""What stands around the HTTP API: who may come in, what browsers may do, and how faults are told."""

import hmac
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ditlab.core.errors import InputError
from ditlab.server.service import Failed, Full, Limits

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
}
TAGS = ("constrained-", "function-")  # pydantic's names for the ways of reading a value, not part of its place


class Guard:
    """Refuses what must not come in, before it is read, and says to browsers what they may do with what goes out.

    Bodies have at most so many bytes; without the token, if there is one, only the free paths may be seen.
    """

    def __init__(self, app: ASGIApp, body: int, token: str, free: Collection[str]) -> None:
        self.app, self.body, self.token, self.free = app, body, token, free

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if (refused := self.refuse(scope["path"], Headers(scope=scope))) is not None:
            await refused(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)

    def refuse(self, path: str, headers: Headers) -> JSONResponse | None:
        """The answer to what is refused; None for what is not."""
        if "transfer-encoding" in headers:
            return fault(411, "the body's length must be told before; send it in one piece, with Content-Length")
        length = headers.get("content-length", "0")  # of which int() refuses more than some thousand digits
        if not (length.isdecimal() and len(length) < 20 and int(length) <= self.body):
            return fault(413, f"a body of {length[:20]} bytes; at most {self.body} are taken")
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if self.token and path not in self.free and not hmac.compare_digest(given.encode(), self.token.encode()):
            return fault(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        return None


def tell_faults(app: FastAPI, limits: Limits) -> None:
    """Tell all that goes wrong in one form."""

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> JSONResponse:
        return fault(400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = error.errors()
        if tuple(errors[0]["loc"]) == ("body",) and "json" not in request.headers.get("content-type", ""):
            return fault(422, "the body must be JSON, with Content-Type: application/json")
        return fault(422, misfit(errors))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        headers, line = dict(error.headers or {}), str(error.detail)
        if error.status_code == 405:
            line = f"{request.method[:20]} is not for this path; use {headers.get('Allow')}"
        return fault(error.status_code, line, headers)

    @app.exception_handler(Failed)
    async def failed(request: Request, error: Failed) -> JSONResponse:
        return fault(503, str(error))

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> JSONResponse:  # which the server's log tells
        return fault(500, "the service failed; its log says why")

    @app.exception_handler(Full)
    async def full(request: Request, error: Full) -> JSONResponse:
        line = f"{limits.drawings} drawings are in progress, which is as many as there may be; come back in a second"
        return fault(429, line, {"Retry-After": "1"})


def misfit(errors: Sequence[Any]) -> str:
    """What is wrong with a body or a parameter; a value that may be one of several things has an error for each."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"

    def place(each: Any) -> str:
        parts = [str(part) for part in each["loc"] if not str(part).startswith(TAGS)]
        return ".".join(parts[1:] or parts)

    lines = dict.fromkeys(each["msg"] for each in errors if place(each) == place(first))
    return f"{place(first)[:200]}: {', or: '.join(lines)}"


def fault(code: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """What went wrong, in the form that clients know."""
    kind = "invalid_request_error" if code < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "code": code}}, code, (headers or {}) | HEADERS)
