"""A TCP proxy that does harm: latency, slicing, a rate, stalls, resets, truncation, corruption, refused connections."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from faults.expert import LeftError


@dataclass(frozen=True, slots=True)
class Harm:
    """What happens to the bytes from the expert; counted in bytes and seconds of one connection.

    `after` bytes pass unharmed, then `what` happens: "reset", "close", "stall" or "corrupt" (one byte). `slices` is
    the most bytes that pass at once, `delay` the wait before each portion. `refuse` resets at accept.
    """

    what: str = ""
    after: int = 0
    slices: int = 65536
    delay: float = 0.0
    refuse: bool = False


@dataclass
class FaultProxy:
    """Between the edge and `port`. `harm` may be changed while it runs; connections keep what they began with."""

    target: int
    harm: Harm = Harm()
    seed: int = 0
    port: int = 0
    accepted: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop(self) -> None:
        self._server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        harm, self.accepted = self.harm, self.accepted + 1
        if harm.refuse:
            _reset(writer)
            return
        onward, back = await asyncio.open_connection("127.0.0.1", self.target)
        up = asyncio.create_task(_pump(reader, back))
        down = asyncio.create_task(self._harmed(onward, writer, harm))
        try:
            await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for end in (writer, back):
                end.close()

    async def _harmed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, harm: Harm) -> None:
        passed, chance = 0, random.Random(self.seed)
        while data := await reader.read(harm.slices):
            if harm.delay:
                await asyncio.sleep(harm.delay * 2 * chance.random())
            if harm.what and passed + len(data) > harm.after:
                left = max(harm.after - passed, 0)
                if harm.what == "corrupt" and passed <= harm.after:
                    data = data[:left] + bytes([data[left] ^ (1 << chance.randrange(7))]) + data[left + 1 :]
                elif harm.what != "corrupt":
                    await _pass(data[:left], writer)
                    await _finish(harm.what, writer)
                    return
            passed += len(data)
            await _pass(data, writer)


async def _pass(data: bytes, writer: asyncio.StreamWriter) -> None:
    try:
        writer.write(data)
        await writer.drain()
    except ConnectionError as error:
        raise LeftError from error


async def _finish(what: str, writer: asyncio.StreamWriter) -> None:
    if what == "stall":
        await asyncio.sleep(3600)
    if what == "reset":
        await asyncio.sleep(0.02)  # let what was passed on arrive: RST throws away what waits
        _reset(writer)
    writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        await _pass(data, writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
