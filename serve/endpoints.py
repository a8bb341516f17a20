"""What each public path does, once the gate has let a request in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial

import orjson

from ..experts.registry import KeyRecord
from . import ensemble
from .admission import Admission, Bounds
from .answer import Answer
from .classify import Classifier
from .errors import ApiError
from .failover import Dispatcher
from .limits import Allowance
from .metrics import CONTENT_TYPE, Metrics
from .requests import Api, Request, check, check_route, parse_object
from .routing import AUTO, Route, choose, shown, whole
from .settings import EdgeSettings
from .snapshot import Snapshot, Target
from .told import config_hash, route_json, tell

_LARGE = 256 * 1024  # bytes; a thread's hand-over costs as much as reading a small body


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted request: its body, the key it came with, and the registry as it was when it came.

    `experts` is how many the client wants mixed, or None.
    """

    answer: Answer
    body: bytes
    key: KeyRecord | None
    snapshot: Snapshot
    name: str
    allowance: Allowance
    timeout: float | None = None
    experts: int | None = None

    @property
    def tenant(self) -> str:
        return self.key.name if self.key else ""

    @property
    def permitted(self) -> frozenset[str] | None:
        return self.snapshot.permitted(self.key)


Handler = Callable[[Call], Awaitable[None]]


class Endpoints:
    """The handlers; they raise ApiError and leave the answer's shape to the gate."""

    def __init__(
        self, settings: EdgeSettings, dispatcher: Dispatcher, classifier: Classifier, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._dispatcher = dispatcher
        self._classifier = classifier
        self._metrics = metrics
        self._admission = Admission(Bounds(settings.queue, settings.queue_total, settings.queue_time))

    def inference(self, api: Api) -> Handler:
        """The handler of one of the four inference APIs."""

        async def handle(call: Call) -> None:
            call.answer.api = api
            checked = await _read(call.body, partial(check, api))
            request = replace(checked, tenant=call.tenant, timeout=call.timeout)
            if call.experts is not None:
                ensemble.check(request)
            self._spend(request, call)
            route = await self._choose(request, call)

            def ask(route: Route, answer: Answer) -> Awaitable[None]:
                place = partial(self._place, request)
                return self._dispatcher.answer(request, route, call.snapshot, answer, place)

            if call.experts is None:
                return await ask(route, call.answer)
            needs = replace(request.needs, permitted=call.permitted)
            weights = ensemble.members(route, call.snapshot.pool, self._settings.policy, needs, call.experts)
            return await ensemble.answer_mixed(request, route, weights, call.answer, ask)

        return handle

    async def route(self, call: Call) -> None:
        """The whole decision, without inference."""
        request = await _read(call.body, check_route)
        route = await self._choose(request, call)
        route = await whole(route, request, call.permitted, call.snapshot, self._settings.policy)
        await call.answer.json(200, orjson.dumps(route_json(route)))

    async def models(self, call: Call) -> None:
        names = [AUTO, *(name for name in call.snapshot.targets if call.permitted is None or name in call.permitted)]
        listed = {"object": "list", "data": [_model(name, call.snapshot) for name in names]}
        await call.answer.json(200, orjson.dumps(listed))

    async def model(self, call: Call) -> None:
        allowed = call.permitted is None or call.name in call.permitted
        if call.name != AUTO and not (allowed and call.name in call.snapshot.targets):
            raise ApiError("model_not_found", f"No model is named {shown(call.name)}.", "model")
        await call.answer.json(200, orjson.dumps(_model(call.name, call.snapshot)))

    async def health(self, call: Call) -> None:
        await call.answer.json(200, b'{"status":"ok"}')

    async def ready(self, call: Call) -> None:
        if not call.snapshot.targets:
            raise ApiError("no_healthy_expert", "No expert is ready.")
        await call.answer.json(200, b'{"status":"ready"}')

    async def metrics(self, call: Call) -> None:
        await call.answer.whole(200, self._metrics.render(), CONTENT_TYPE)

    def _spend(self, request: Request, call: Call) -> None:
        """Reserve the request's estimate of tokens from its key's, for each expert that it may ask."""
        experts = call.experts or 1
        call.allowance.spend(experts * request.cost, experts * request.prompt_tokens)
        call.answer.headers += call.allowance.headers()

    def _place(self, request: Request, target: Target, left: float) -> AbstractAsyncContextManager[None]:
        """A place at the target's engine, waited for if need be, while so many seconds are left."""
        places = target.limits.concurrency or self._settings.concurrency
        capacity = -(-places // self._settings.workers)
        return self._admission.place(target.url, capacity, request.tenant, request.cost, left)

    async def _choose(self, request: Request, call: Call) -> Route:
        before = call.answer.exchange.seconds
        route = await choose(request, call.permitted, call.snapshot, self._classifier, self._settings.policy)
        if not route.named:
            call.answer.exchange.classified = call.answer.exchange.seconds - before
        if route.fallback:
            self._metrics.fell_back(route.fallback)
        call.answer.vsr = config_hash(call.snapshot) if self._settings.vsr_headers else ""
        tell(call.answer, route)
        return route


async def _read(raw: bytes, check: Callable[[dict[str, object]], Request]) -> Request:
    """The request of a body; a large one is read in a thread, so that the others are not held up meanwhile."""
    if len(raw) > _LARGE:
        return await asyncio.to_thread(lambda: check(parse_object(raw)))
    return check(parse_object(raw))


def _model(name: str, snapshot: Snapshot) -> dict[str, object]:
    return {"id": name, "object": "model", "created": snapshot.updated.get(name, 0), "owned_by": "collegium"}
