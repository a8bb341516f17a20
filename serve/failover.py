"""One request from its route to its answer: which expert is asked, which failures are tried again, and where."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from .answer import Answer
from .breaker import Breaker
from .failure import Fault, UpstreamError
from .lag import Lag
from .metrics import Metrics
from .relay import Relay
from .requests import Request
from .retry import Budget, blame, elsewhere, executed, pause, same_again
from .routing import Route, stand_in
from .settings import EdgeSettings
from .snapshot import Snapshot, Target
from .told import tell

# Waits for a place at an expert's engine, with so many seconds left, and holds it.
Place = Callable[[Target, float], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True)
class _Case:
    """A request under way; `end` is its deadline in the loop's time, for all attempts together."""

    request: Request
    route: Route
    snapshot: Snapshot
    answer: Answer
    place: Place
    end: float

    @property
    def impatient(self) -> bool:
        """Whether the time that the client itself set is over: that says nothing of the expert."""
        return self.request.timeout is not None and asyncio.get_running_loop().time() >= self.end


class Dispatcher:
    """Asks the chosen expert, again where that is safe, then the stand-in; nothing after the client's first byte."""

    def __init__(self, settings: EdgeSettings, relay: Relay, metrics: Metrics, lag: Lag) -> None:
        self._settings = settings
        self._relay = relay
        self._metrics = metrics
        self._lag = lag
        self._budget = Budget(settings.retry_share, settings.retry_reserve)
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._watches: dict[Breaker, asyncio.Task[None]] = {}
        self._chance = random.Random()  # noqa: S311 - spreads retries, no secret

    async def answer(self, request: Request, route: Route, snapshot: Snapshot, answer: Answer, place: Place) -> None:
        """Relay an answer to the request.

        Raises:
            UpstreamError: nobody that may be asked answered, or the answer broke off.
            ApiError: there is no place at an engine.
        """
        self._budget.earn()
        total = self._settings.total if request.timeout is None else min(self._settings.total, request.timeout)
        end = asyncio.get_running_loop().time() + total - answer.exchange.seconds
        case = _Case(request, route, snapshot, answer, place, end)
        chosen = route.decision.expert
        failure = await self._ask(case, chosen, others=stand_in(route, snapshot) is not None)
        if failure is None:
            return
        spare = stand_in(route, snapshot, failure.code == "context_length_exceeded")
        if spare is None or not self._may_go_elsewhere(case, failure):
            raise failure
        self._metrics.fell_back(failure.fault)
        reason = f"{failure.code}: {failure.message.rstrip('.')}; {spare} answers"
        tell(answer, replace(route, decision=replace(route.decision, expert=spare, reason=reason)))
        if await self._ask(case, spare, others=True, once=True) is not None:
            tell(answer, route)
            raise failure

    async def _ask(self, case: _Case, expert: str, others: bool, once: bool = False) -> UpstreamError | None:
        """Ask one expert, as often as that is safe; None when the client has its answer, else why it has none.

        Raises:
            UpstreamError: the answer broke off after its first byte.
        """
        target = case.snapshot.targets.get(expert)
        if target is None:
            return UpstreamError(Fault.OPEN, "expert_loading", f"{expert} is not ready yet.")
        sent = 0
        while True:
            async with case.place(target, case.end - asyncio.get_running_loop().time()):
                failure = await self._attempt(case, target)
            sent += 1
            if failure is None:
                return None
            if case.answer.started:
                raise failure
            if (once and executed(failure)) or not same_again(failure, target.retry_safe, sent, others):
                return failure
            wait = pause(failure, sent, self._chance)
            fits = wait <= self._settings.patience and asyncio.get_running_loop().time() + wait < case.end
            if not fits or (executed(failure) and not self._budget.spend()):
                return failure
            await asyncio.sleep(wait)

    async def _attempt(self, case: _Case, target: Target) -> UpstreamError | None:
        """One sending, counted in the expert's breaker."""
        breaker = self._breaker(target)
        permit = breaker.admit()
        if permit is None:
            wait = max(math.ceil(breaker.wait), 1)
            return UpstreamError(
                Fault.OPEN, "no_healthy_expert", f"{target.expert} has failed several times just now.", wait=wait
            )
        try:
            await self._relay.ask(case.request, target, case.answer, case.end, permit.alive)
        except UpstreamError as failure:
            weight = blame(failure)
            if case.impatient or self._late_ourselves(failure):
                permit.abandoned()
            else:
                permit.failed(weight) if weight else permit.succeeded()
            if not breaker.closed and breaker not in self._watches:
                self._watches[breaker] = asyncio.create_task(self._watch(breaker, target))
            return failure
        else:
            permit.succeeded()
            return None
        finally:
            permit.abandoned()

    async def _watch(self, breaker: Breaker, target: Target) -> None:
        """While an expert is left alone, look whether it is back: that costs it nothing, unlike a request."""
        was = True
        while not breaker.closed and breaker in self._breakers.values():
            await asyncio.sleep(self._settings.breaker_look)
            alive = await self._relay.alive(target)
            if alive and not was:
                breaker.hurry()
            was = alive
        del self._watches[breaker]

    def _late_ourselves(self, failure: UpstreamError) -> bool:
        """Whether the time ran out while this process was too busy to look: that says nothing of the expert either."""
        return failure.fault in (Fault.CONNECT, Fault.LATE) and self._lag.seconds > self._settings.max_lag

    def _may_go_elsewhere(self, case: _Case, failure: UpstreamError) -> bool:
        """A second expert is extra load only where the first may have worked on the request."""
        if not elsewhere(failure) or asyncio.get_running_loop().time() >= case.end:
            return False
        return not executed(failure) or self._budget.spend()

    def _breaker(self, target: Target) -> Breaker:
        """Of this expert at this address: a card that names another begins anew."""
        key = (target.expert, target.url)
        if key not in self._breakers:
            settings = self._settings
            self._breakers = {known: one for known, one in self._breakers.items() if known[0] != target.expert}
            self._breakers[key] = Breaker(settings.breaker_failures, settings.breaker_pause)
        return self._breakers[key]
