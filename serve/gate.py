"""The edge as an ASGI application: every request comes in, is answered, logged and counted here, crashes included."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Receive, Scope, Send

from . import ensemble
from .answer import Answer, Exchange
from .auth import authorise
from .body import ClientGoneError, check_content, check_host, discard, read_body
from .classify import Classifier
from .counters import Counters
from .deadlines import asked
from .endpoints import Call, Endpoints, Handler
from .errors import ApiError
from .failover import Dispatcher
from .failure import let_go
from .lag import Lag
from .ledger import End, Ledger
from .limits import KeyLimits
from .log import log_exchange
from .metrics import Metrics
from .relay import Relay
from .requests import Api
from .settings import EdgeSettings
from .upstream import Upstream
from .watcher import Watcher

logger = logging.getLogger("collegium.edge")

_CROWD = 32  # fewer requests than these are not what keeps a loop busy


@dataclass(frozen=True, slots=True)
class _Way:
    """A path's handler. `open` ways need no key and answer while draining."""

    name: str
    method: str
    handler: Handler
    open: bool = False


class Edge:
    """The public endpoint. Its lifespan starts and ends the expert client, the classifier and the watcher."""

    def __init__(self, settings: EdgeSettings, watcher: Watcher) -> None:
        self._settings = settings
        self._watcher = watcher
        self._upstream = Upstream(settings)
        self._classifier = Classifier(
            settings.classifier_threads, settings.classifier_queue, settings.classifier_budget
        )
        self._metrics = Metrics(settings.metrics_folder)
        self._limits = KeyLimits(Counters(settings.counters, settings.worker))
        self._lag = Lag()
        self._running: set[asyncio.Task[BaseException | None]] = set()
        self._draining = False
        self._cut = False
        dispatcher = Dispatcher(settings, Relay(settings, self._upstream), self._metrics, self._lag)
        endpoints = Endpoints(settings, dispatcher, self._classifier, self._metrics)
        self._model = _Way("models", "GET", endpoints.model)
        self._ways = {f"/v1/{api.value}": _Way(api.value, "POST", endpoints.inference(api)) for api in Api}
        self._ways |= {
            "/v1/route": _Way("route", "POST", endpoints.route),
            "/v1/models": _Way("models", "GET", endpoints.models),
            "/healthz": _Way("healthz", "GET", endpoints.health, open=True),
            "/readyz": _Way("readyz", "GET", endpoints.ready, open=True),
            "/metrics": _Way("metrics", "GET", endpoints.metrics, open=True),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)

    @property
    def ledger(self) -> Ledger:
        return self._metrics.ledger

    async def start(self) -> None:
        self._lag.start()
        await self._upstream.start()
        self._watcher.start()

    async def stop(self) -> None:
        self._lag.stop()
        await asyncio.to_thread(self._watcher.stop)
        self._classifier.close()
        await self._upstream.close()
        self._limits.close()

    async def hang_up(self) -> None:
        """Close the connections to experts, and nothing else: the process ends at once."""
        await self._upstream.close()

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, let running ones finish for so long, then end them with an error the client can see."""
        self._draining = True
        running = {task for task in self._running if task is not asyncio.current_task()}
        if running:
            await asyncio.wait(running, timeout=seconds)
        self._cut = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=1)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        way, name = self._way(scope["path"])
        exchange = Exchange(id=f"req_{uuid.uuid4().hex}", route=way.name if way else "unknown")
        answer = Answer(send, exchange)
        self._metrics.begun(exchange)
        end = End.FAILED_MID_STREAM
        task = asyncio.create_task(self._ended(scope, receive, answer, way, name))
        self._running.add(task)
        try:
            await asyncio.wait({task})
            end = await self._conclude(task, answer)
        finally:
            task.cancel()
            self._running.discard(task)
            self._metrics.ended(exchange, end)
            if way is None or not way.open:
                log_exchange(exchange)

    async def _conclude(self, task: asyncio.Task[BaseException | None], answer: Answer) -> End:
        """How the request ended; where it has no answer yet, the failure becomes one."""
        exchange = answer.exchange
        failure = _failure(task)
        if failure is None:
            return End.COMPLETED
        if isinstance(failure, ClientGoneError) or (isinstance(failure, asyncio.CancelledError) and not self._cut):
            return End.CANCELLED
        if isinstance(failure, asyncio.CancelledError):
            failure = ApiError("draining", "The server is ending.")
        end = End.FAILED_MID_STREAM if answer.started else End.FAILED_BEFORE_FIRST_BYTE
        if not answer.started and not exchange.attempts and isinstance(failure, ApiError):
            end = End.REFUSED
        if not isinstance(failure, ApiError):
            logger.error("request %s crashed", exchange.id, exc_info=failure)
            failure = ApiError("internal_error", f"Internal error; the request id is {exchange.id}.")
        try:
            await answer.fail(failure)
        except TimeoutError:
            return End.CANCELLED  # it has stopped reading
        return end

    async def _ended(
        self, scope: Scope, receive: Receive, answer: Answer, way: _Way | None, name: str
    ) -> BaseException | None:
        """Why the request failed: returned, because a task keeps the traceback of what it raises."""
        try:
            await self._serve(scope, receive, answer, way, name)
        except (ApiError, ClientGoneError, asyncio.CancelledError) as failure:
            let_go(failure)
            return failure
        return None

    async def _serve(self, scope: Scope, receive: Receive, answer: Answer, way: _Way | None, name: str) -> None:
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        snapshot = self._watcher.snapshot
        try:
            way = self._admit(scope, headers, way)
            key = None
            if not way.open:
                key = authorise(headers, snapshot.keys, api_key_header=way.name == Api.MESSAGES)
                answer.exchange.key = key.name if key else ""
            if way.method == "POST":
                check_content(headers)
            timeout = asked(headers)
            experts = ensemble.asked(headers)
            allowance = self._limits.enter(key if way.method == "POST" else None)
        except ApiError:
            await discard(receive, headers)
            raise
        worked = True
        try:
            body = await read_body(receive, headers, self._settings.max_body, self._settings.body_time)
            answer.exchange.bytes_in = len(body)
            await self._handle(way, Call(answer, body, key, snapshot, name, allowance, timeout, experts), receive)
        except ApiError:
            worked = answer.started
            raise
        finally:
            allowance.settle(answer.exchange.used, worked and bool(answer.exchange.attempts))
            allowance.leave()

    @staticmethod
    async def _handle(way: _Way, call: Call, receive: Receive) -> None:
        watch = asyncio.create_task(_cancel_when_gone(receive, asyncio.current_task(), call.answer))
        try:
            await way.handler(call)
        finally:
            watch.cancel()

    def _admit(self, scope: Scope, headers: Sequence[tuple[bytes, bytes]], way: _Way | None) -> _Way:
        check_host(headers, scope.get("http_version", "1.1"))
        if way is None:
            raise ApiError("not_found", "There is nothing at this path; see GET /v1/models and docs/api.md.")
        if scope["method"] != way.method:
            allow = ((b"allow", way.method.encode()),)
            raise ApiError("method_not_allowed", f"This path takes {way.method}.", headers=allow)
        refused = self._draining and (not way.open or way.name == "readyz")
        if not way.open and self._overloaded:
            raise ApiError("server_is_overloaded", "Too many requests are being answered.")
        if refused or (way.name == "readyz" and not self._watcher.alive):
            raise ApiError("draining", "The server is ending.", headers=((b"connection", b"close"),))
        return way

    @property
    def _overloaded(self) -> bool:
        """Too many requests, or as many as could be the reason for the loop's being late."""
        running = len(self._running)
        late = running > _CROWD and self._lag.lasting > self._settings.max_lag
        return running > self._settings.max_requests or late

    def _way(self, path: str) -> tuple[_Way | None, str]:
        """The way for a path, and the model that it names."""
        found = self._ways.get(path)
        prefix = "/v1/models/"
        if found is None and path.startswith(prefix) and "/" not in path[len(prefix) :]:
            return self._model, path[len(prefix) :]
        return found, ""


def _failure(task: asyncio.Task[BaseException | None]) -> BaseException | None:
    """What the task returned, or raised where it crashed or had not begun."""
    return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[None] | None, answer: Answer) -> None:
    while (await receive())["type"] != "http.disconnect":
        continue
    if task is not None and not answer.complete:
        task.cancel()
