"""The replicas of experts: which is asked next, which is left alone for now, and what a request holds of one."""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

from .breaker import Breaker, Permit
from .errors import ApiError
from .failure import Fault, UpstreamError
from .retry import blame
from .settings import EdgeSettings
from .snapshot import Snapshot, Target

# Waits for a place at a replica, with so many seconds left, and holds it.
Place = Callable[[Target, float], AbstractAsyncContextManager[None]]


class Replicas:
    """All replicas as this process has found them: a breaker and a count of requests for each.

    `alive` tells whether a replica answers at all, without work for it.
    """

    def __init__(self, settings: EdgeSettings, alive: Callable[[Target], Awaitable[bool]]) -> None:
        self._settings = settings
        self._alive = alive
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self._watches: dict[Breaker, asyncio.Task[None]] = {}
        self._busy: Counter[str] = Counter()
        self._turn = random.randrange(1 << 16)  # noqa: S311 - workers need not begin with the same replica
        self._snapshot: Snapshot | None = None

    def keep(self, snapshot: Snapshot) -> None:
        """Forget the breakers of replicas that are none any more: a card that names another URL begins anew."""
        if snapshot is not self._snapshot:
            self._snapshot = snapshot
            targets = snapshot.targets
            self._breakers = {
                (expert, url): breaker
                for (expert, url), breaker in self._breakers.items()
                if expert in targets and url in targets[expert].urls
            }

    def first(self, target: Target) -> Target:
        """The least busy replica that may be asked; where none may, the one that may soonest."""
        if len(target.urls) == 1:
            return target
        return target.at(self._best(target, target.urls))

    def another(self, target: Target, tried: Collection[str]) -> Target | None:
        """The least busy replica that may be asked and is not among those tried."""
        left = [url for url in target.urls if url not in tried and self._rank(target.expert, url) < (2, 0)]
        return target.at(self._best(target, left)) if left else None

    @asynccontextmanager
    async def hold(self, target: Target, place: Place, end: float) -> AsyncIterator[Hold]:
        """A request at this replica, once there is a place. `end` is the request's deadline in the loop's time.

        Raises:
            ApiError: there is no place.
        """
        hold = Hold(self, place, end, target)
        try:
            await hold.take(target)
            yield hold
        finally:
            await hold.leave()

    def breaker(self, target: Target) -> Breaker:
        key = (target.expert, target.url)
        if key not in self._breakers:
            self._breakers[key] = Breaker(self._settings.breaker_failures, self._settings.breaker_pause)
        return self._breakers[key]

    def count(self, url: str, change: int) -> None:
        """Enter that requests began or ended at a URL, whichever experts they are for."""
        self._busy[url] += change
        if not self._busy[url]:
            del self._busy[url]

    def watch(self, target: Target) -> None:
        """Look now and then whether a replica that is left alone is back."""
        breaker = self.breaker(target)
        if not breaker.closed and breaker not in self._watches:
            self._watches[breaker] = asyncio.create_task(self._look(breaker, target))

    async def _look(self, breaker: Breaker, target: Target) -> None:
        """That costs the replica nothing, unlike a request."""
        while not breaker.closed and breaker in self._breakers.values():
            await asyncio.sleep(self._settings.breaker_look)
            breaker.looked(await self._alive(target))
        del self._watches[breaker]

    def _best(self, target: Target, urls: Collection[str]) -> str:
        """By its breaker, then the number of this process's requests there; those alike take turns."""
        self._turn += 1
        places = {url: number for number, url in enumerate(target.urls)}

        def order(url: str) -> tuple[float, ...]:
            turn = (places[url] - self._turn) % len(places)
            return (*self._rank(target.expert, url), self._busy[url], turn)

        return min(urls, key=order)

    def _rank(self, expert: str, url: str) -> tuple[int, float]:
        """0: may be asked; 1: may be tried, but seems to be gone; 2: is left alone for so many seconds."""
        breaker = self._breakers.get((expert, url))
        if breaker is None or breaker.closed:
            return 0, 0.0
        if breaker.ready:
            return (0 if breaker.alive else 1), 0.0
        return 2, breaker.wait


class Hold:
    """One request's place at a replica and its leave to ask it; a stream that breaks off may move to another one."""

    def __init__(self, replicas: Replicas, place: Place, end: float, target: Target) -> None:
        self._replicas = replicas
        self._place = place
        self._end = end
        self._entered: AbstractAsyncContextManager[None] | None = None
        self._counted = False
        self._permit: Permit | None = None
        self.target = target

    @property
    def barred(self) -> UpstreamError | None:
        """Why the replica may not be asked."""
        if self._permit is not None:
            return None
        wait = max(math.ceil(self._replicas.breaker(self.target).wait), 1)
        return UpstreamError(
            Fault.OPEN, "no_healthy_expert", f"{self.target.expert} has failed several times just now.", wait=wait
        )

    async def take(self, target: Target) -> None:
        """Wait for a place.

        Raises:
            ApiError: there is none.
        """
        self.target = target
        self._replicas.count(target.url, 1)
        self._counted = True
        place = self._place(target, self._end - asyncio.get_running_loop().time())
        await place.__aenter__()
        self._entered = place
        self._permit = self._replicas.breaker(target).admit()

    async def leave(self) -> None:
        """Give back what is held; a request that has not ended says nothing of the replica."""
        if self._permit is not None:
            self._permit.abandoned()
            self._permit = None
        if self._counted:
            self._counted = False
            self._replicas.count(self.target.url, -1)
        if self._entered is not None:
            entered, self._entered = self._entered, None
            await entered.__aexit__(None, None, None)

    async def move(self, failure: UpstreamError) -> Target | None:
        """The replica at which a stream that broke off may go on, or None while there is none.

        An expert with one URL may have its replicas behind it, and the failure says little of it: there all is kept.
        """
        if len(self.target.urls) == 1:
            return self.target
        self.failed(failure)
        await self.leave()
        sibling = self._replicas.another(self.target, {self.target.url})
        with suppress(ApiError):  # no place now
            await self.take(sibling or self._replicas.first(self.target))
        if self._permit is None:
            await self.leave()
            return None
        return self.target

    def alive(self) -> None:
        """The first of the answer came."""
        if self._permit is not None:
            self._permit.alive()

    def succeeded(self) -> None:
        if self._permit is not None:
            self._permit.succeeded()

    def failed(self, failure: UpstreamError, excused: bool = False) -> None:
        """Count the failure in the replica's breaker, unless it is not the replica's."""
        if self._permit is None:
            return
        weight = blame(failure)
        if excused:
            self._permit.abandoned()
        elif weight:
            self._permit.failed(weight)
        else:
            self._permit.succeeded()
        self._replicas.watch(self.target)
