"""Connections of the HTTP server that are limited in number and in the time for which they wait for a client."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from ditlab.server.responses import error_body

INTERVAL = 1.0  # seconds between checks of a connection, at most
READ = 64 * 2**10  # bytes of a waiting response that a client must read within the time limit


class Connection(H11Protocol):
    """A connection that ends if its client sends a request or reads a response too slowly.

    If there are too many connections, the one that has waited longest for its client ends, so that slow clients cannot
    take the place of others.
    """

    seconds: float = 30.0
    most: int = 200

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.since = self.read = self.loop.time()  # when it began to wait for a request, and for a client that reads
        self.unread = 0
        self.timer = self.loop.call_later(0, self._check)
        if len(self._open()) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self.timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self.since = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Respond to what is not HTTP."""
        self._reject(400, "the request is not valid HTTP")

    @property
    def receiving(self) -> bool:
        """Whether a part of a request has been received."""
        return self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])

    @property
    def waits(self) -> bool:
        """Whether it waits for the client, to send a request or to read a response."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY) or self.unread > 0

    @property
    def urgency(self) -> tuple[bool, float]:
        """Smaller for a connection that has to end sooner: unfinished ones before those kept for the next request."""
        kept = self.cycle is not None and not self.receiving and not self.unread
        return kept, self.read if self.unread else self.since

    def _check(self) -> None:
        now, unread = self.loop.time(), self.transport.get_write_buffer_size()
        if unread or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.since = now
        if unread == 0 or unread > self.unread or unread <= self.unread - READ:
            self.unread, self.read = unread, now
        if now - self.read > self.seconds:
            self.transport.abort()  # closing it would wait for the client
        elif now - self.since > self.seconds:
            self._end()
        self.timer = self.loop.call_later(min(INTERVAL, self.seconds / 4), self._check)

    def _open(self) -> list["Connection"]:
        connections: list[Any] = [*self.connections]
        return [other for other in connections if not other.transport.is_closing()]

    def _make_room(self) -> None:
        waiting = [other for other in self._open() if other is not self and other.waits]
        if waiting:
            min(waiting, key=lambda other: other.urgency)._end()
        else:
            self._reject(503, f"{self.most} connections are open, which is the limit; try again in 1 s")

    def _end(self) -> None:
        if self.receiving:
            self._reject(
                408, f"the request was not complete after {self.seconds:g} s, or too many connections are open"
            )
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        self.transport.close()

    def _reject(self, status: int, message: str) -> None:
        """Send an error, unless a response has started, and close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self.transport.is_closing():
            content = json.dumps(error_body(status, message)).encode()
            headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
            response = h11.Response(
                status_code=status, headers=[*headers, ("connection", "close")], reason=STATUS_PHRASES[status]
            )
            for event in (response, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def bounded(seconds: float, most: int) -> type[Connection]:
    """The class of connections for uvicorn.

    Args:
        seconds: in which a client must send a request, and read `READ` bytes of a response or its rest.
        most: number of connections.
    """
    return type("BoundedConnection", (Connection,), {"seconds": seconds, "most": most})
