"""What each public path does, once the gate has let a request in."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import orjson

from ..experts.registry import KeyRecord
from .answer import Answer
from .auth import permitted
from .classify import Classifier
from .errors import ApiError
from .metrics import CONTENT_TYPE, Metrics
from .relay import Relay, UnreachableError
from .requests import Api, Request, check, check_route, parse_object
from .routing import AUTO, Route, choose, shown, stand_in
from .settings import EdgeSettings
from .snapshot import Snapshot

_REASON = 300


@dataclass(frozen=True, slots=True)
class Call:
    """One admitted request: its body, the key it came with, and the registry as it was when it came."""

    answer: Answer
    body: bytes
    key: KeyRecord | None
    snapshot: Snapshot
    name: str = ""

    @property
    def permitted(self) -> frozenset[str] | None:
        return permitted(self.key, self.snapshot.candidates)


Handler = Callable[[Call], Awaitable[None]]


class Endpoints:
    """The handlers; they raise ApiError and leave the answer's shape to the gate."""

    def __init__(self, settings: EdgeSettings, relay: Relay, classifier: Classifier, metrics: Metrics) -> None:
        self._settings = settings
        self._relay = relay
        self._classifier = classifier
        self._metrics = metrics

    def inference(self, api: Api) -> Handler:
        """The handler of one of the four inference APIs."""

        async def handle(call: Call) -> None:
            call.answer.api = api
            request = check(api, parse_object(call.body))
            route = await self._choose(request, call)
            await self._answer(request, route, call)

        return handle

    async def route(self, call: Call) -> None:
        """The whole decision, without inference."""
        request = check_route(parse_object(call.body))
        route = await self._choose(request, call)
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

    async def _choose(self, request: Request, call: Call) -> Route:
        before = call.answer.exchange.seconds
        route = await choose(request, call.permitted, call.snapshot, self._classifier, self._settings.policy)
        if not route.named:
            call.answer.exchange.classified = call.answer.exchange.seconds - before
        if route.fallback:
            self._metrics.fell_back(route.fallback)
        _tell(call.answer, route)
        return route

    async def _answer(self, request: Request, route: Route, call: Call) -> None:
        """Ask the chosen expert; one that cannot be connected to is tried twice, then the generalist takes over."""
        snapshot = call.snapshot
        chosen = route.decision.expert
        for name in (chosen, chosen, stand_in(route, snapshot)):
            if name is None or name not in snapshot.targets:
                continue
            if name != chosen:
                self._metrics.fell_back("unreachable")
                reason = f"upstream_connection_failed: {chosen} cannot be reached; {name} answers"
                _tell(call.answer, replace(route, decision=replace(route.decision, expert=name, reason=reason)))
            try:
                return await self._relay.ask(request, snapshot.targets[name], call.answer)
            except UnreachableError:
                continue
        raise ApiError("upstream_connection_failed", f"{chosen} cannot be reached.")


def _tell(answer: Answer, route: Route) -> None:
    """Put the decision into the answer's headers."""
    decision = route.decision
    told = {
        b"x-collegium-expert": decision.expert,
        b"x-collegium-domain": decision.domain,
        b"x-collegium-confidence": f"{decision.confidence:.4f}",
        b"x-collegium-router": route.router,
        b"x-collegium-reason": decision.reason,
    }
    answer.exchange.expert = decision.expert
    answer.headers = [header for header in answer.headers if header[0] not in told]
    answer.headers += [(name, _header_value(value)) for name, value in told.items()]


def _header_value(text: str) -> bytes:
    """One bounded line of printable ASCII."""
    line = "".join(character if " " <= character <= "~" else "?" for character in text)
    return line[:_REASON].encode("ascii")


def _model(name: str, snapshot: Snapshot) -> dict[str, object]:
    return {"id": name, "object": "model", "created": snapshot.updated.get(name, 0), "owned_by": "collegium"}


def route_json(route: Route) -> dict[str, object]:
    """A decision as /v1/route shows it."""
    decision = route.decision
    return {
        "object": "route",
        "expert": decision.expert,
        "domain": decision.domain,
        "confidence": decision.confidence,
        "abstained": decision.abstained,
        "reason": decision.reason,
        "runner_up": decision.runner_up,
        "router": route.router,
        "posterior": route.posterior.as_dict() if route.posterior else None,
        "experts": [
            {
                "expert": score.expert,
                "quality": score.quality,
                "cost": score.cost,
                "utility": score.utility,
                "excluded": score.excluded,
            }
            for score in decision.scores
        ],
    }
