"""A scripted OpenAI-compatible expert on raw sockets: the n-th attempt at a prompt does what the test wrote down.

Run as a program it is a process of its own, to be stopped or killed: `python expert.py PORT [milliseconds a token]`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from faults.engine import Generation

APIS = ("/v1/chat/completions", "/v1/completions")


class LeftError(Exception):
    """The client closed its side."""


@dataclass
class Attempt:
    """One request as the expert saw it. Times are monotonic seconds; `left` is when the client went before the end."""

    number: int
    tag: str
    path: str
    headers: dict[str, str]
    body: dict[str, object]
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None
    left: float | None = None

    @property
    def id(self) -> str:
        return self.headers.get("x-request-id", "")


class _Protocol(asyncio.StreamReaderProtocol):
    """Tells at once when the other side closes, while the reader is not being read."""

    def __init__(self, reader: asyncio.StreamReader, connected: Callable[..., Awaitable[None]]) -> None:
        self.gone = asyncio.Event()

        async def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await connected(reader, writer, self.gone)

        super().__init__(reader, begin)

    def eof_received(self) -> bool | None:
        self.gone.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()
        super().connection_lost(exc)


class Exchange:
    """What a behaviour does its work with: the request, and the raw connection."""

    def __init__(self, attempt: Attempt, writer: asyncio.StreamWriter, gone: asyncio.Event, expert: Expert) -> None:
        self.attempt = attempt
        self.expert = expert
        self._writer = writer
        self._gone = gone
        self.keep = True

    @property
    def generation(self) -> Generation:
        number = self.attempt.number
        return Generation(self.attempt.body, "chat" in self.attempt.path, f"up-{number}", self.expert.seed)

    @property
    def peer(self) -> object:
        """Which connection this is."""
        return self._writer.get_extra_info("peername")

    async def raw(self, data: bytes) -> None:
        if self._gone.is_set():
            raise LeftError
        self._writer.write(data)
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise LeftError from error

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than the client does."""
        try:
            await asyncio.wait_for(self._gone.wait(), seconds)
        except TimeoutError:
            return
        raise LeftError

    async def seen(self) -> None:
        """Until the client has the beginning of this answer; the test says so."""
        while self.attempt.id not in self.expert.begun:
            await self.pause(0.005)

    async def respond(self, status: int, kind: str, body: bytes, **headers: str) -> None:
        shown = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{shown}\r\n"
        await self.raw(head.encode() + body)

    async def open(self, kind: str = "text/event-stream", headers: str = "") -> None:
        await self.raw(
            f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n{headers}\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, data: object) -> None:
        await self.chunk(b"data: " + json.dumps(data).encode() + b"\n\n")

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    def reset(self) -> None:
        """RST: what was not delivered yet is lost."""
        self.keep = False
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def fin(self) -> None:
        self.keep = False
        self._writer.close()


Behaviour = Callable[[Exchange], Awaitable[None]]


async def answer(exchange: Exchange) -> None:
    """The right answer, streamed or whole."""
    generation = exchange.generation
    if not exchange.attempt.body.get("stream"):
        return await exchange.respond(200, "application/json", json.dumps(generation.whole()).encode())
    await exchange.open()
    for chunk in generation.chunks():
        await exchange.event(chunk)
        if exchange.expert.pace:
            await exchange.pause(exchange.expert.pace)
    await exchange.chunk(b"data: [DONE]\n\n")
    await exchange.end()
    return None


@dataclass
class Expert:
    """Runs in a thread between `__enter__` and `__exit__`.

    A prompt's first word is its tag; `plan(tag, first, second)` scripts the tag's attempts in their order, and `always`
    what happens to every attempt without a script.
    """

    seed: int = 0
    pace: float = 0.0
    port: int = 0
    always: Behaviour = answer
    window: int = 4096
    down_until: float = 0.0
    tls: ssl.SSLContext | None = None
    attempts: list[Attempt] = field(default_factory=list)
    connections: int = 0
    begun: set[str] = field(default_factory=set)
    _plans: dict[str, list[Behaviour]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}/v1"

    def plan(self, tag: str, *behaviours: Behaviour) -> None:
        self._plans[tag] = list(behaviours)

    def of(self, tag: str) -> list[Attempt]:
        return [attempt for attempt in self.attempts if attempt.tag == tag]

    def forget(self) -> list[Attempt]:
        """All attempts so far, which are over; the next at the same prompts are the first again."""
        told, self.attempts = self.attempts, []
        self._counts.clear()
        return told

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def start(self) -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> _Protocol:
            return _Protocol(asyncio.StreamReader(1 << 26), self._connected)

        self._server = await loop.create_server(protocol, "127.0.0.1", self.port, ssl=self.tls, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        own = set(self._tasks)
        for task in own:
            task.cancel()
        await asyncio.gather(*own)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._exchange(reader, writer, gone):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, LeftError, asyncio.CancelledError):
            pass  # the last is `stop`, which waits
        finally:
            self._tasks.discard(task)
            self.connections -= 1
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gone: asyncio.Event) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request, *lines = head.rstrip().split("\r\n")
        method, path, _ = request.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        raw = await reader.readexactly(int(headers.get("content-length", 0)))
        if method == "GET":
            attempt = Attempt(0, "", path, headers, {})
            models = {"object": "list", "data": [{"id": "scripted", "object": "model", "max_model_len": self.window}]}
            status = 503 if time.monotonic() < self.down_until else 200
            await Exchange(attempt, writer, gone, self).respond(status, "application/json", json.dumps(models).encode())
            return True
        body = json.loads(raw)
        tag = _tag(body)
        attempt = Attempt(self._counts[tag], tag, path, headers, body)
        self._counts[tag] += 1
        self.attempts.append(attempt)
        plan = self._plans.get(tag, [])
        behaviour = plan[attempt.number] if attempt.number < len(plan) else self.always
        exchange = Exchange(attempt, writer, gone, self)
        try:
            await behaviour(exchange)
            attempt.ended = time.monotonic()
        except LeftError:
            attempt.left = time.monotonic()
            raise
        return exchange.keep


def _tag(body: dict[str, object]) -> str:
    """The prompt's first word, of several the first one's, also where a continuation sends it as token ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and isinstance(prompt[0], str):
        return str(prompt[0]).split(" ")[0]
    if isinstance(prompt, list):
        raw = bytes(one for one in prompt[: prompt.index(998)] if one < 256).decode(errors="replace")
        try:
            messages = json.loads(raw)
        except json.JSONDecodeError:
            return raw.split(" ")[0]
    else:
        messages = body.get("messages", [{"content": prompt}])
    return str(messages[-1]["content"]).split(" ")[0]


async def _main(port: int, pace: float) -> None:
    expert = Expert(port=port, pace=pace)
    await expert.start()
    print(expert.port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0))
