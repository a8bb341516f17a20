"""One request from its route to its answer: which expert is asked, which failures are tried again, and where."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace

from .answer import Answer
from .failure import Fault, UpstreamError, let_go
from .lag import Lag
from .metrics import Metrics
from .relay import Relay
from .replicas import Hold, Place, Replicas
from .requests import Request
from .retry import ENDS, Budget, elsewhere, executed, may_return, pause, same_again, sibling
from .routing import Route, stand_in
from .settings import EdgeSettings
from .snapshot import Snapshot
from .told import tell

_RETURN_PAUSE = (0.5, 2.0)  # seconds between two tries of an engine that is started again, growing


@dataclass(frozen=True, slots=True)
class _Case:
    """A request under way; `end` is its deadline in the loop's time, for all attempts together."""

    request: Request
    route: Route
    snapshot: Snapshot
    answer: Answer
    place: Place
    end: float
    failures: list[UpstreamError] = field(default_factory=list)

    @property
    def impatient(self) -> bool:
        """Whether the time that the client itself set is over: that says nothing of the expert."""
        return self.request.timeout is not None and asyncio.get_running_loop().time() >= self.end


class Dispatcher:
    """Asks the chosen expert, its other replicas or it again where that is safe, then the stand-in.

    An engine of ours that is gone is waited for where nobody else answers. After the first byte nobody is asked.
    """

    def __init__(self, settings: EdgeSettings, relay: Relay, metrics: Metrics, lag: Lag) -> None:
        self._settings = settings
        self._relay = relay
        self._metrics = metrics
        self._lag = lag
        self._budget = Budget(settings.retry_share, settings.retry_reserve)
        self._replicas = Replicas(settings, relay.alive)
        self._chance = random.Random()  # noqa: S311 - spreads retries, no secret

    async def answer(self, request: Request, route: Route, snapshot: Snapshot, answer: Answer, place: Place) -> None:
        """Relay an answer to the request.

        Raises:
            UpstreamError: nobody that may be asked answered, or the answer broke off.
            ApiError: there is no place at an engine.
        """
        self._replicas.keep(snapshot)
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
            await self._answer_later(case, chosen, failure)
            return
        self._metrics.fell_back(failure.fault)
        reason = f"{failure.code}: {failure.message.rstrip('.')}; {spare} answers"
        tell(answer, replace(route, decision=replace(route.decision, expert=spare, reason=reason)))
        if await self._ask(case, spare, others=True, once=True) is not None:
            tell(answer, route)
            await self._answer_later(case, chosen, failure)

    async def _answer_later(self, case: _Case, expert: str, failure: UpstreamError) -> None:
        """Ray starts an engine again that has ended: ask it as soon as it is back.

        Raises:
            UpstreamError: it is none of ours, or does not come back in time, or fails otherwise.
        """
        target = case.snapshot.targets.get(expert)
        loop = asyncio.get_running_loop()
        until = min(case.end, loop.time() + self._settings.recovery)
        wait, longest = _RETURN_PAUSE
        while target is not None and target.vouched and may_return(case.failures) and loop.time() + wait < until:
            await asyncio.sleep(self._chance.uniform(wait / 2, wait))
            wait = min(2 * wait, longest)
            async with self._replicas.hold(self._replicas.first(target), case.place, case.end) as hold:
                if hold.barred is not None:
                    continue
                if case.failures[-1].fault in ENDS and not self._budget.spend():
                    break
                again = await self._attempt(case, hold)
            if again is None:
                return
            if case.answer.started:
                raise again
            failure = again
            case.failures.append(again)
        raise failure

    async def _ask(self, case: _Case, expert: str, others: bool, once: bool = False) -> UpstreamError | None:
        """Ask one expert's replicas, as often as that is safe; None when the client has its answer, else why not.

        Raises:
            UpstreamError: the answer broke off after its first byte.
        """
        target = case.snapshot.targets.get(expert)
        if target is None:
            return UpstreamError(Fault.OPEN, "expert_loading", f"{expert} is not ready yet.")
        replica, sent, tried = self._replicas.first(target), 0, set[str]()
        while True:
            async with self._replicas.hold(replica, case.place, case.end) as hold:
                failure = await self._attempt(case, hold)
            if failure is None:
                return None
            if case.answer.started:
                raise failure
            case.failures.append(failure)
            if once and executed(failure):
                return failure
            sent += failure.fault is not Fault.OPEN
            tried.add(replica.url)
            other = self._replicas.another(target, tried) if sibling(failure, sent, others) else None
            if other is not None and self._may_go_elsewhere(case, failure):
                replica = other
                continue
            if not same_again(failure, target.retry_safe, sent, others):
                return failure
            wait = pause(failure, sent, self._chance)
            fits = wait <= self._settings.patience and asyncio.get_running_loop().time() + wait < case.end
            if not fits or (executed(failure) and not self._budget.spend()):
                return failure
            await asyncio.sleep(wait)
            replica = self._replicas.first(target)

    async def _attempt(self, case: _Case, hold: Hold) -> UpstreamError | None:
        """One sending, counted in the replica's breaker."""
        if (barred := hold.barred) is not None:
            return barred
        try:
            await self._relay.ask(case.request, case.answer, case.end, hold)
        except UpstreamError as failure:
            hold.failed(failure, excused=case.impatient or self._late_ourselves(failure))
            let_go(failure)
            return failure
        hold.succeeded()
        return None

    def _late_ourselves(self, failure: UpstreamError) -> bool:
        """Whether the time ran out while this process was too busy to look: that says nothing of the expert either."""
        return failure.fault in (Fault.CONNECT, Fault.LATE) and self._lag.seconds > self._settings.max_lag

    def _may_go_elsewhere(self, case: _Case, failure: UpstreamError) -> bool:
        """A second sending is extra load only where the first may have been worked on; two late ones are enough."""
        late = sum(one.fault is Fault.LATE for one in case.failures)
        if late > 1 or not elsewhere(failure) or asyncio.get_running_loop().time() >= case.end:
            return False
        return not executed(failure) or self._budget.spend()
