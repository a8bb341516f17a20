"""HTTP/1.1 at the door: uvicorn's httptools protocol with the bounds that it lacks, and refusals in our envelope.

uvicorn waits forever for a request's head and for a client to read its answer, takes heads of any size, and writes its
refusal of garbage into an answer that is under way.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from asyncio.events import TimerHandle
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .errors import ApiError
from .settings import EdgeSettings

logger = logging.getLogger("collegium.edge")

_SLOWEST = 1024  # bytes a second that a client must read of an answer that is kept for it
_SLACK = 5.0  # seconds that a late body gets beyond its own time-out, which has the better answer


def bounded_protocol(settings: EdgeSettings) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn."""

    class Bounded(BoundedProtocol):
        bounds = settings

    return Bounded


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `_head` counts what came of a head that is not complete; it is None while a body is read."""

    bounds: EdgeSettings

    _deaf = False
    _completed = False
    _timer: TimerHandle | None = None
    _stall: TimerHandle | None = None
    _head: int | None = 0
    _fields = 0
    _unsent = 0
    _refusal: ApiError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.bounds.max_connections:
            self._refuse(ApiError("server_is_overloaded", "Too many connections are open."))
        self._arm(self.bounds.header_time)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._completed = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing after this would be read: the answer must say that the connection ends.
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            self._refuse(self._refusal or ApiError("invalid_http", "This is not a valid HTTP/1.1 request."))
        else:
            if self._head is not None and not self._completed:
                self._weigh(len(data))

    def _weigh(self, size: int) -> None:
        """Count bytes of an incomplete head, or empty lines before one."""
        self._head = (self._head or 0) + size
        if self._head > self.bounds.max_head:
            self._refuse(self._too_large())
        elif self._timer is None:
            self._arm(self.bounds.header_time)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head, self._fields = 0, 0
        if self._timer is None:
            self._arm(self.bounds.header_time)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def _count(self, size: int) -> None:
        self._fields += size
        if self._fields > self.bounds.max_head or len(self.headers) > self.bounds.max_headers:
            self._refusal = self._too_large()
            raise ValueError("the head is too large")  # which makes the parser stop

    def _too_large(self) -> ApiError:
        bounds = self.bounds
        return ApiError(
            "headers_too_large",
            f"The request line and headers may have {bounds.max_head} bytes and {bounds.max_headers} headers.",
        )

    def on_headers_complete(self) -> None:
        self._head = None
        self._arm(self.bounds.body_time + _SLACK)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        self._head, self._completed = 0, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._linger()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._linger()

    def _refuse(self, error: ApiError) -> None:
        """Answer what cannot be handed to the application, and close."""
        if self._busy and (self._head is not None or self.cycle.response_started or self.pipeline):
            # Written now, it would stand in the answer that is under way, or in its place.
            self._deaf = True
            self.cycle.keep_alive = False
            return
        body = error.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
            (b"x-request-id", f"req_{uuid.uuid4().hex}".encode()),
            *error.headers(),
        ]
        head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
        self.transport.write(
            head + b"".join(name + b": " + value + b"\r\n" for name, value in headers) + b"\r\n" + body
        )
        self.transport.close()
        self._linger()
        logger.debug("refused a connection: %s", error.code)

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _late(self) -> None:
        """The request did not arrive in time."""
        self._timer = None
        if self.flow.read_paused or (self._busy and self._head is not None):
            self._arm(self.bounds.header_time)  # it waits for the answer before it
        elif self._head:
            self._refuse(ApiError("request_incomplete", f"The head did not arrive in {self.bounds.header_time:g} s."))
        elif self._head is None:
            self.transport.abort()
        else:
            self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self._late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._watch()

    def resume_writing(self) -> None:
        self._rest()
        super().resume_writing()

    def _linger(self) -> None:
        """A connection that closes waits for its client to read the rest, but not forever."""
        self._unsent = self.transport.get_write_buffer_size()
        if self._unsent:
            self._watch()

    def _watch(self) -> None:
        self._rest()
        self._stall = self.loop.call_later(self.bounds.client_stall, self._stalled)

    def _stalled(self) -> None:
        """End a client that has read next to nothing for so long."""
        self._stall = None
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent > self._unsent - self.bounds.client_stall * _SLOWEST:
            self.transport.abort()
            return
        self._unsent = unsent
        if unsent:
            self._watch()

    def _rest(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
