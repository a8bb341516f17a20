"""An answer's way from the expert to the client: held until it is real, checked event by event, continued if cut."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import aiohttp

from .answer import Answer
from .deadlines import Clock, Deadlines
from .failure import Fault, UpstreamError, let_go
from .ledger import Attempt
from .prepare import upstream_body
from .replicas import Hold
from .requests import Api, Request
from .settings import EdgeSettings
from .snapshot import Target
from .sse import Event, EventTooLongError, Parser
from .streams import Stream, whole_answer
from .transcript import Transcript, continuable
from .upstream import Upstream, read
from .usage import Usage

MAX_CONTINUATIONS = 3
# An expert that has finished all choices but forgets the end mark is waited for so long: usage may still come.
_AFTER_FINISH = 1.0
_HEARTBEAT = b": keep-alive\n\n"
_RESUME_PAUSE = (0.1, 2.0)


@dataclass(frozen=True, slots=True)
class _Leg:
    """One sending of a request, or of the rest of it, to one expert.

    Until `end` it may answer; its answer must have begun at `begin`.
    """

    target: Target
    api: Api
    body: Mapping[str, object]
    stream: Stream
    answer: Answer
    attempt: Attempt
    begin: float
    end: float
    alive: Callable[[], None]


class Relay:
    """Sends a request to an expert once and relays its answer; what to do after a failure is the caller's business."""

    def __init__(self, settings: EdgeSettings, upstream: Upstream) -> None:
        self._settings = settings
        self._upstream = upstream
        self._chance = random.Random()  # noqa: S311 - spreads retries, no secret

    async def ask(self, request: Request, answer: Answer, end: float, hold: Hold) -> None:
        """Send the request to the replica that is held and relay the whole answer.

        `end` is the request's deadline in the loop's time.

        Raises:
            UpstreamError: the expert failed; `answer` says whether the client has had a part already.
        """
        target = hold.target
        body = upstream_body(request, target)
        transcript = None
        if request.streams and continuable(request.api, body, target, request.needs.tokens):
            transcript = Transcript(body)
            body = {**body, "return_token_ids": True}
        choices = request.body.get("n")
        used = answer.exchange.used = Usage()  # what an earlier attempt counted is not this answer's
        stream = Stream(request.api, target.expert, choices if isinstance(choices, int) else 1, transcript, used)
        leg = _Leg(target, request.api, body, stream, answer, _entered(answer, target), end, end, hold.alive)
        try:
            await self._send(leg, request.streams)
        except UpstreamError as failure:
            if not answer.started or transcript is None or not transcript.usable or failure.fault is Fault.INVALID:
                raise
            let_go(failure)
            await self._continue(leg, transcript, failure, hold)
        if request.streams:
            await answer.finish(stream.closing())

    async def alive(self, target: Target) -> bool:
        """Whether the expert answers at all, asked without work for it."""
        return await self._upstream.alive(target)

    async def _continue(self, first: _Leg, transcript: Transcript, failure: UpstreamError, hold: Hold) -> None:
        """Let another replica, or the restarted one, go on from the tokens that the client has."""
        first.stream.continued()
        window = None
        if transcript.limit is None:
            window = first.target.limits.context_window or await self._find_window(first)
        broken = failure
        for _ in range(MAX_CONTINUATIONS):
            again = await self._resumed(first, transcript, window, broken, hold)
            if again is None:
                return
            broken = again
        raise failure

    async def _resumed(
        self, first: _Leg, transcript: Transcript, window: int | None, failure: UpstreamError, hold: Hold
    ) -> UpstreamError | None:
        """None when the answer is complete; if it went on but broke off once more, why."""
        last = failure
        async for until in self._tries(first):
            target = await hold.move(last)
            if target is None:
                continue
            transcript.rewind()
            attempt = _entered(first.answer, target, "continuation")
            asked = transcript.request(target.model, window)
            leg = replace(first, target=target, api=Api.COMPLETIONS, body=asked, attempt=attempt, begin=until)
            try:
                await self._send(leg, streams=True)
                return None
            except UpstreamError as again:
                let_go(again)
                last = again
                if again.fault in (Fault.INVALID, Fault.REFUSED, Fault.MISCONFIGURED):
                    raise failure from again
                if attempt.first_byte is not None:
                    return again
        raise failure

    async def _find_window(self, first: _Leg) -> int | None:
        """The context window, from whichever replica answers first."""
        siblings = [first.target.at(url) for url in first.target.urls if url != first.target.url]
        async for _ in self._tries(first):
            for target in (*siblings, first.target):
                if window := await self._upstream.window(target):
                    return window
        return None

    async def _tries(self, leg: _Leg) -> AsyncIterator[float]:
        """Times to try, with growing pauses, until the recovery time is over; the client gets a comment meanwhile."""
        loop = asyncio.get_running_loop()
        until = min(leg.end, loop.time() + self._settings.recovery)
        wait, longest = _RESUME_PAUSE
        beat = loop.time()
        while loop.time() < until:
            yield until
            await asyncio.sleep(self._chance.uniform(wait / 2, wait))
            wait = min(2 * wait, longest)
            if loop.time() - beat > self._settings.heartbeat:
                beat = loop.time()
                await leg.answer.write(_HEARTBEAT)

    async def _send(self, leg: _Leg, streams: bool) -> None:
        deadlines = Deadlines.of(self._settings, leg.target.limits)
        now = asyncio.get_running_loop().time()
        end = min(leg.end, now + deadlines.total)
        async with _bounded(leg, end) as clock:
            if streams:
                clock.allow(min(deadlines.first_token, leg.begin - now), "ttft_timeout")
            async with self._upstream.post(
                leg.target, leg.api, leg.body, leg.answer.exchange.id, leg.attempt, deadlines.connect
            ) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise _invalid(leg, "compressed its answer unasked")
                await (self._stream(leg, response, clock, deadlines) if streams else self._whole(leg, response))
        leg.attempt.close("ok")

    async def _whole(self, leg: _Leg, response: aiohttp.ClientResponse) -> None:
        _expect(leg, response, "application/json")
        raw = await read(response, self._settings.max_answer)
        leg.attempt.bytes_in = len(raw)
        if len(raw) > self._settings.max_answer:
            raise _invalid(leg, "answered too much")
        await leg.answer.json(200, whole_answer(leg.api, leg.target.expert, raw, leg.answer.exchange.used))

    async def _stream(self, leg: _Leg, response: aiohttp.ClientResponse, clock: Clock, deadlines: Deadlines) -> None:
        _expect(leg, response, "text/event-stream")
        parser, stream, answer = Parser(self._settings.max_event), leg.stream, leg.answer
        held: list[bytes] = []
        async for chunk in self._portions(response, answer):
            failure = _take(self._events(leg, parser, chunk), stream, held)
            answer.exchange.malformed = stream.malformed
            if held and stream.real and (failure is None or answer.started):
                if leg.attempt.first_byte is None:
                    leg.attempt.first_byte = answer.exchange.seconds
                    leg.alive()
                clock.rest()
                await answer.open_stream()
                await answer.write(b"".join(held))
                held.clear()
                clock.allow(_AFTER_FINISH if stream.complete else deadlines.between_tokens, "total_timeout")
            if failure is not None:
                raise failure
            if not stream.real and leg.attempt.bytes_in > self._settings.max_event:
                raise _invalid(leg, "sent much but no answer")
            if stream.ended:
                break
        if not stream.complete:
            raise _broken(leg)
        await answer.finish(stream.closing())
        await _read_to_end(response)

    def _events(self, leg: _Leg, parser: Parser, chunk: bytes) -> list[Event]:
        leg.attempt.bytes_in += len(chunk)
        if leg.attempt.bytes_in > self._settings.max_answer:
            raise _invalid(leg, "answered too much")
        try:
            return parser.feed(chunk)
        except EventTooLongError as error:
            raise _invalid(leg, "sent too long an event") from error

    async def _portions(self, response: aiohttp.ClientResponse, answer: Answer) -> AsyncIterator[bytes]:
        """What arrives, as it arrives; a quiet stream that the client has begun to read gets a comment now and then."""
        while True:
            try:
                async with asyncio.timeout(self._settings.heartbeat):
                    chunk = await response.content.readany()
            except TimeoutError:
                if answer.started:
                    await answer.write(_HEARTBEAT)
                continue
            if not chunk:
                return
            yield chunk


def _take(events: list[Event], stream: Stream, ready: list[bytes]) -> UpstreamError | None:
    """Put what the events become at the end of `ready`; the failure that stopped it."""
    for event in events:
        try:
            data = stream.take(event)
        except UpstreamError as failure:
            return failure
        if data is not None:
            ready.append(data)
    return None


@asynccontextmanager
async def _bounded(leg: _Leg, end: float) -> AsyncIterator[Clock]:
    """The sending until `end`: what breaks inside is told as an UpstreamError, and noted with the attempt.

    Past its last choice an expert that hangs or breaks off has taken nothing from the answer.
    """
    clock = None
    try:
        async with asyncio.timeout_at(end) as timer:
            clock = Clock(timer, end)
            yield clock
    except TimeoutError as error:
        if not leg.stream.complete:
            fault = Fault.BROKEN if leg.attempt.first_byte is not None else Fault.LATE
            leg.attempt.close(fault)
            code = clock.code if clock else "total_timeout"
            raise UpstreamError(fault, code, f"{leg.target.expert} did not answer in time.") from error
    except aiohttp.ClientError as error:
        if not leg.stream.complete:
            leg.attempt.close(Fault.BROKEN)
            raise _broken(leg) from error
    except UpstreamError as failure:
        leg.attempt.close(failure.fault)
        raise


def _entered(answer: Answer, target: Target, kind: str = "request") -> Attempt:
    return answer.exchange.attempt(target.expert, kind, target.url if len(target.urls) > 1 else "")


def _broken(leg: _Leg) -> UpstreamError:
    return UpstreamError(Fault.BROKEN, "upstream_stream_truncated", f"{leg.target.expert} broke off its answer.")


def _invalid(leg: _Leg, did: str) -> UpstreamError:
    return UpstreamError(Fault.INVALID, "upstream_invalid_response", f"{leg.target.expert} {did}.")


def _expect(leg: _Leg, response: aiohttp.ClientResponse, kind: str) -> None:
    if response.content_type != kind:
        raise _invalid(leg, f"did not answer with {kind}")


async def _read_to_end(response: aiohttp.ClientResponse) -> None:
    """Past the end mark only the transfer's own end is left; having read it the connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(0.05):
            while await response.content.readany():
                pass
