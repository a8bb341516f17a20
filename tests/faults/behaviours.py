"""What a scripted expert can do wrong: each function is, or makes, one behaviour."""

from __future__ import annotations

import json
import time

from faults.expert import Behaviour, Exchange, answer

_SECRET = "detail at http://10.0.0.1:9999/secret"


def status(code: int, body: bytes | None = None, kind: str = "text/plain", **headers: str) -> Behaviour:
    async def behave(exchange: Exchange) -> None:
        await exchange.respond(code, kind, _SECRET.encode() if body is None else body, **headers)

    return behave


def refusal(code: int, message: str, name: str | None = None) -> Behaviour:
    """A status with an error in OpenAI's shape."""
    error = {"error": {"message": f"{message}; {_SECRET}", "type": "x", "param": None, "code": name}}
    return status(code, json.dumps(error).encode(), "application/json")


async def reset(exchange: Exchange) -> None:
    """RST before the first byte."""
    exchange.reset()


async def close(exchange: Exchange) -> None:
    """FIN before the first byte."""
    exchange.fin()


async def hang(exchange: Exchange) -> None:
    await exchange.pause(3600)


def late(seconds: float) -> Behaviour:
    """The right answer, begun late."""

    async def behave(exchange: Exchange) -> None:
        await exchange.pause(seconds)
        await answer(exchange)

    return behave


def broken(after: int, how: str = "reset") -> Behaviour:
    """A stream that goes wrong after so many chunks.

    `reset`, `fin` (in the middle of the transfer), `end` (a proper end of the transfer without the mark), `stall`,
    `error` (vLLM's event when its engine died, then [DONE]), `done` (the mark, though no choice was finished).
    """

    async def behave(exchange: Exchange) -> None:
        await exchange.open()
        for chunk in exchange.generation.chunks()[:after]:
            await exchange.event(chunk)
        if 1 < after < 1000:
            await exchange.seen()  # else the edge may get the end with the beginning, and sends nothing of it
        if how == "reset":
            await exchange.pause(0.05)  # let what was sent arrive: RST throws away what waits
            exchange.reset()
        elif how == "fin":
            exchange.fin()
        elif how == "end":
            await exchange.end()
        elif how == "done":
            await exchange.chunk(b"data: [DONE]\n\n")
            await exchange.end()
        elif how == "error":
            await exchange.event({"error": {"message": _SECRET, "type": "InternalServerError", "code": 500}})
            await exchange.chunk(b"data: [DONE]\n\n")
            await exchange.end()
        else:
            await exchange.pause(3600)

    return behave


def malformed(at: int, count: int = 1) -> Behaviour:
    """Events that are no JSON among the right ones."""

    async def behave(exchange: Exchange) -> None:
        await exchange.open()
        for index, chunk in enumerate(exchange.generation.chunks()):
            if index == at:
                for _ in range(count):
                    await exchange.chunk(b'data: {"choices": [{"delta"\n\n')
            await exchange.event(chunk)
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    return behave


def unmarked(how: str = "end") -> Behaviour:
    """Every chunk with its finish_reason but no [DONE]; then the end, a reset, or an open socket that says nothing."""
    return broken(10_000, how)


def whole(body: bytes, kind: str = "application/json", **headers: str) -> Behaviour:
    return status(200, body, kind, **headers)


async def half_an_answer(exchange: Exchange) -> None:
    """An unstreamed answer cut in the middle of its body."""
    body = json.dumps(exchange.generation.whole()).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    await exchange.raw(head.encode() + body[: len(body) // 2])
    exchange.fin()


def events(*data: str, end: bool = True) -> Behaviour:
    """A stream of just these lines of data."""

    async def behave(exchange: Exchange) -> None:
        await exchange.open()
        for line in data:
            await exchange.chunk(f"data: {line}\n\n".encode())
        if end:
            await exchange.end()

    return behave


async def endless(exchange: Exchange) -> None:
    """The same chunk for ever."""
    await exchange.open()
    chunk = next(one for one in exchange.generation.chunks() if '"content": ""' not in json.dumps(one))
    while True:
        await exchange.event(chunk)


async def endless_event(exchange: Exchange) -> None:
    await exchange.open()
    await exchange.chunk(b"data: ")
    while True:
        await exchange.chunk(b"x" * 65536)


def raw(data: bytes) -> Behaviour:
    """Bytes that need not be HTTP, then FIN."""

    async def behave(exchange: Exchange) -> None:
        await exchange.raw(data)
        exchange.fin()

    return behave


def down_until(moment: float, then: Behaviour = answer) -> Behaviour:
    """503 until `moment` on the monotonic clock."""
    refuse = status(503)

    async def behave(exchange: Exchange) -> None:
        await (refuse if time.monotonic() < moment else then)(exchange)

    return behave


def unhurried(seconds: float) -> Behaviour:
    """The right stream with a pause after each chunk."""

    async def behave(exchange: Exchange) -> None:
        await exchange.open()
        for chunk in exchange.generation.chunks():
            await exchange.event(chunk)
            await exchange.pause(seconds)
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    return behave


def sliced(size: int) -> Behaviour:
    """The right stream in portions of a few bytes, across events and characters."""

    async def behave(exchange: Exchange) -> None:
        await exchange.open()
        chunks = exchange.generation.chunks()
        data = b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\r\n\r\n" for one in chunks)
        data = b": comment\r\n" + data + b"data: [DONE]\n\n"
        for start in range(0, len(data), size):
            await exchange.chunk(data[start : start + size])
        await exchange.end()

    return behave
