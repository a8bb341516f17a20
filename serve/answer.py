"""One request's life at the edge, and the one way to answer it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from starlette.types import Send

from .errors import ApiError
from .ledger import Attempt, End
from .requests import Api
from .streams import error_event
from .usage import Usage

_FAREWELL = 5.0  # seconds for the error of a client that may have stopped reading


@dataclass(slots=True)
class Exchange:
    """What is logged and counted: never a prompt, an answer or a key. Times in seconds, on a monotonic clock."""

    id: str
    route: str
    started: float = field(default_factory=time.monotonic)
    expert: str = ""
    end: End | None = None
    code: str = ""
    key: str = ""
    status: int = 0
    streamed: bool = False
    bytes_in: int = 0
    bytes_out: int = 0
    malformed: int = 0
    classified: float | None = None
    first_byte: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    used: Usage = field(default_factory=Usage)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def attempt(self, expert: str, kind: str = "request", url: str = "") -> Attempt:
        """Enter one more sending to an expert."""
        self.attempts.append(Attempt(expert, kind, url))
        return self.attempts[-1]


class Answer:
    """Sends the status once and counts what goes out. `headers` are added to every answer, errors included.

    `vsr` is the configuration's hash where vLLM Semantic Router's headers are wanted, else empty.
    """

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send = send
        self.exchange = exchange
        self.headers: list[tuple[bytes, bytes]] = [(b"x-request-id", exchange.id.encode())]
        self.api: Api | None = None
        self.vsr = ""
        self.started = False
        self.complete = False

    async def json(self, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        await self.whole(status, body, b"application/json", headers)

    async def whole(self, status: int, body: bytes, kind: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        await self._start(status, [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *headers])
        await self._body(body, more=False)

    async def open_stream(self) -> None:
        """Begin an event stream; later calls do nothing."""
        if not self.started:
            self.exchange.streamed = True
            await self._start(
                200,
                [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                ],
            )

    async def write(self, data: bytes) -> None:
        await self._body(data, more=True)

    async def finish(self, last: bytes = b"") -> None:
        """End the stream; later calls do nothing."""
        if not self.complete:
            await self._body(last, more=False)

    async def fail(self, error: ApiError) -> None:
        """The error as an envelope, or as the last event of a stream that has begun."""
        self.exchange.code = error.code
        if self.complete:
            return
        async with asyncio.timeout(_FAREWELL):
            if not self.started:
                await self.json(error.status, error.body(), tuple(error.headers()))
            elif self.exchange.streamed and self.api is not None:
                await self._body(error_event(self.api, error), more=False)

    async def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.started = True
        self.exchange.status = status
        attempts = len(self.exchange.attempts)
        if attempts > 1:
            headers = [*headers, (b"x-collegium-attempts", str(attempts).encode())]
        if self.vsr:
            headers = [*headers, (b"x-vsr-inference-call-count", str(attempts).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": [*self.headers, *headers]})

    async def _body(self, data: bytes, more: bool) -> None:
        if data and self.exchange.first_byte is None:
            self.exchange.first_byte = self.exchange.seconds
        self.exchange.bytes_out += len(data)
        self.complete = not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
