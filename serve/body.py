"""A request's head and body at the door: refused early where they cannot be meant well, read within bounds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from starlette.types import Receive

from .auth import Headers, header
from .errors import ApiError

_CLOSE = ((b"connection", b"close"),)
_DISCARDED = 64 * 1024 * 1024
_DISCARD_TIME = 5.0


class ClientGoneError(Exception):
    """The client closed the connection before its request was whole."""


def check_host(headers: Headers, http_version: str) -> None:
    """HTTP/1.1 asks for exactly one Host; the parser lets none and two pass."""
    if http_version != "1.0" and len(header(headers, b"host")) != 1:
        raise ApiError("invalid_host", "The request needs exactly one Host header.", headers=_CLOSE)


def check_content(headers: Headers, kinds: Sequence[str] = ("application/json",)) -> None:
    """The body must be of one of `kinds`, in UTF-8 and not compressed."""
    given = [value.decode("latin-1") for value in header(headers, b"content-type")]
    kind, _, parameters = given[0].partition(";") if len(given) == 1 else ("", "", "")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() not in kinds or charset not in ("", "utf-8"):
        raise ApiError("unsupported_media_type", f"Content-Type must be {' or '.join(kinds)}, in UTF-8.")
    if any(value.lower() != b"identity" for value in header(headers, b"content-encoding")):
        raise ApiError("unsupported_media_type", "Compressed request bodies are not accepted.")


async def read_body(receive: Receive, headers: Headers, limit: int, seconds: float) -> bytes:
    """The whole body, never holding more than `limit` bytes.

    Raises:
        ApiError: it is larger, or did not arrive in time.
        ClientGoneError: the client left.
    """
    declared = header(headers, b"content-length")
    if declared and declared[0].isdigit() and int(declared[0]) > limit:
        await discard(receive, headers)
        raise _too_large(limit)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    parts.clear()
                    await discard(receive, headers)
                    raise _too_large(limit)
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError as error:
        raise ApiError(
            "request_incomplete", f"The body did not arrive within {seconds:g} s.", headers=_CLOSE
        ) from error


async def discard(receive: Receive, headers: Headers) -> None:
    """Let the rest of a refused body run out, within bounds: a client still sending would miss the answer."""
    if header(headers, b"expect"):
        return
    left = _DISCARDED
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_TIME):
            more = True
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message["type"] == "http.request" and bool(message.get("more_body"))


def _too_large(limit: int) -> ApiError:
    return ApiError("request_too_large", f"The body is larger than {limit} bytes.", headers=_CLOSE)
