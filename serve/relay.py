"""The way to an expert and back over HTTP: connect, send once, relay the answer, close at once when nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp

from .answer import Answer
from .errors import ApiError
from .prepare import upstream_body
from .requests import Api, Request
from .settings import EdgeSettings
from .snapshot import Target
from .sse import Event, EventTooLongError, Parser
from .streams import Stream, whole_answer
from .upstream_errors import translated

MAX_ERROR_BODY = 64 * 1024
# Shorter than the 5 s after which uvicorn, under vLLM and others, closes an idle connection under our hands.
IDLE = 3.0


class UnreachableError(Exception):
    """No connection was made, so the expert has seen nothing of the request."""


class _Clock:
    """One timer for a whole exchange, moved forward as it gets on; it knows what the time ran out for."""

    def __init__(self, timer: asyncio.Timeout, total: float) -> None:
        self._timer = timer
        self._loop = asyncio.get_running_loop()
        self._end = self._loop.time() + total
        self.code = "total_timeout"

    def allow(self, seconds: float, code: str) -> None:
        limit = self._loop.time() + seconds
        self.code = code if limit < self._end else "total_timeout"
        self._timer.reschedule(min(limit, self._end))


class Relay:
    """One client session for all experts. Open with `start()` in the loop that serves."""

    def __init__(self, settings: EdgeSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(
            limit=0, limit_per_host=self._settings.connections_per_expert, keepalive_timeout=IDLE
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._settings.connect),
            trust_env=False,
            auto_decompress=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def ask(self, request: Request, target: Target, answer: Answer) -> None:
        """Send the request and relay the whole answer.

        Raises:
            UnreachableError: nothing was sent.
            ApiError: the expert failed; `answer` says whether the client has had a part already.
        """
        choices = request.body.get("n")
        stream = Stream(request.api, target.expert, choices if isinstance(choices, int) else 1)
        clock = None
        try:
            async with asyncio.timeout(self._settings.total) as timer:
                clock = _Clock(timer, self._settings.total)
                async with self._open(request, target, answer.exchange.id, clock) as response:
                    await self._relay(request, target, response, answer, stream, clock)
        except TimeoutError as error:
            if not stream.complete:
                code = clock.code if clock else "total_timeout"
                raise ApiError(code, f"{target.expert} did not answer in time.") from error
        except aiohttp.ClientPayloadError as error:
            if not stream.complete:
                raise ApiError("upstream_stream_truncated", f"{target.expert} broke off its answer.") from error
        except aiohttp.ClientError as error:
            raise ApiError(
                "upstream_invalid_response", f"{target.expert} closed the connection without a valid answer."
            ) from error
        if request.streams:
            # Past its last choice an expert that hangs or breaks off has taken nothing from the answer.
            await answer.finish(stream.closing())

    @asynccontextmanager
    async def _open(
        self, request: Request, target: Target, request_id: str, clock: _Clock
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("the relay is not started")
        if request.streams:
            clock.allow(self._settings.first_byte, "ttft_timeout")
        try:
            response = await self._session.post(
                f"{target.url}/{request.api.value}",
                data=upstream_body(request, target),
                headers=_headers(request.api, target, request_id),
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            raise UnreachableError from error
        try:
            yield response
        finally:
            # A connection whose answer was read to its end goes back to the pool; any other is closed, so that the
            # expert stops working for nobody.
            response.close()

    async def _relay(
        self,
        request: Request,
        target: Target,
        response: aiohttp.ClientResponse,
        answer: Answer,
        stream: Stream,
        clock: _Clock,
    ) -> None:
        if response.status != 200:
            raw = await _read(response, MAX_ERROR_BODY)
            raise translated(target, response.status, raw, response.headers.get("retry-after"))
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ApiError("upstream_invalid_response", f"{target.expert} compressed its answer unasked.")
        if not request.streams:
            _expect(target, response, "application/json")
            raw = await _read(response, self._settings.max_answer)
            if len(raw) > self._settings.max_answer:
                raise ApiError("upstream_invalid_response", f"{target.expert} answered too much.")
            await answer.json(200, whole_answer(request.api, target.expert, raw))
            return
        _expect(target, response, "text/event-stream")
        await self._forward(target, stream, response, answer, clock)
        if not stream.complete:
            raise ApiError("upstream_stream_truncated", f"{target.expert} broke off its answer.")
        await answer.finish(stream.closing())
        await _read_to_end(response)

    async def _forward(
        self, target: Target, stream: Stream, response: aiohttp.ClientResponse, answer: Answer, clock: _Clock
    ) -> None:
        parser = Parser(self._settings.max_event)
        received = 0
        async for chunk in response.content.iter_any():
            received += len(chunk)
            if received > self._settings.max_answer:
                raise ApiError("upstream_invalid_response", f"{target.expert} answered too much.")
            try:
                events = parser.feed(chunk)
            except EventTooLongError as error:
                raise ApiError("upstream_invalid_response", f"{target.expert} sent too long an event.") from error
            if await _pass_on(events, stream, answer):
                clock.allow(self._settings.between_events, "total_timeout")
            if stream.ended:
                return


async def _pass_on(events: list[Event], stream: Stream, answer: Answer) -> bool:
    """Forward what came in one portion; whether there was anything.

    Before an error, what came with it is delivered if the stream has begun; else the error still gets its status.
    """
    ready: list[bytes] = []
    failure = None
    try:
        ready.extend(data for event in events if (data := stream.take(event)) is not None)
    except ApiError as error:
        failure = error
    answer.exchange.malformed = stream.malformed
    if ready and (failure is None or answer.started):
        await answer.open_stream()
        await answer.write(b"".join(ready))
    if failure is not None:
        raise failure
    return bool(ready)


def _headers(api: Api, target: Target, request_id: str) -> dict[str, str]:
    """Only ours: nothing of the client's headers goes on."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "collegium",
        "x-request-id": request_id,
    }
    if target.key:
        headers["authorization"] = f"Bearer {target.key}"
    if api is Api.MESSAGES:
        headers["anthropic-version"] = "2023-06-01"
        if target.key:
            headers["x-api-key"] = target.key
    return headers


def _expect(target: Target, response: aiohttp.ClientResponse, kind: str) -> None:
    if response.content_type != kind:
        raise ApiError("upstream_invalid_response", f"{target.expert} did not answer with {kind}.")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, or a little more than `limit` bytes of it."""
    parts = []
    size = 0
    async for chunk in response.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            break
    return b"".join(parts)


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """Past the end mark only the transfer's own end is left; having read it the connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(0.05):
            while await response.content.readany():
                pass
