"""Who may ask an expert now, who waits, and who is refused at once: a bounded queue for each engine, fair between keys.

Keys take turns by deficit round robin (Shreedhar and Varghese 1995) over estimated tokens, so that neither many nor
long requests of one key hold up another's.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from .errors import ApiError

QUANTUM = 1024  # tokens that a key's turn adds
_DEAREST = 32 * QUANTUM
_SMOOTHING = 0.1
_LONGEST_ADVICE = 60.0
_HOPE = 0.8  # of the patience: who is expected to wait longer is refused, so that hardly any wait in vain


@dataclass(frozen=True, slots=True)
class Bounds:
    """`queue` requests may wait for one engine, `queues` in all, each for at most `patience` seconds."""

    queue: int = 512
    queues: int = 2048
    patience: float = 10.0


@dataclass(slots=True, eq=False)
class _Waiter:
    key: str
    cost: int
    turn: asyncio.Future[None]


@dataclass(slots=True)
class _Lane:
    """One engine's places: `running` are taken, and the waiting stand in one row for each key."""

    capacity: int
    first: float  # when the first place was taken
    running: int = 0
    waiting: int = 0
    seconds: float | None = None  # that a place is held, smoothed
    rows: dict[str, deque[_Waiter]] = field(default_factory=dict)
    order: deque[str] = field(default_factory=deque)
    deficits: dict[str, int] = field(default_factory=dict)

    def join(self, waiter: _Waiter) -> None:
        if waiter.key not in self.rows:
            self.rows[waiter.key] = deque()
            self.order.append(waiter.key)
            self.deficits[waiter.key] = 0
        self.rows[waiter.key].append(waiter)
        self.waiting += 1

    def drop(self, waiter: _Waiter) -> None:
        """Take out one that no longer waits."""
        row = self.rows.get(waiter.key)
        if row is not None and waiter in row:
            row.remove(waiter)
            self.waiting -= 1
            self._tidy(waiter.key)

    def next(self) -> _Waiter | None:
        while self.order:
            key = self.order[0]
            first = self.rows[key][0]
            if self.deficits[key] >= first.cost:
                self.deficits[key] -= first.cost
                self.drop(first)
                return first
            self.deficits[key] += QUANTUM
            self.order.rotate(-1)
        return None

    def expected_wait(self, key: str, now: float) -> float:
        """Seconds until a newcomer of this key has its turn: keys alternate, so only so many of each come before it."""
        # Until a place is given back nobody knows how long one is held; so long at least.
        seconds = now - self.first if self.seconds is None else self.seconds
        own = len(self.rows.get(key, ())) + 1
        ahead = sum(min(len(row), own) for name, row in self.rows.items() if name != key) + own
        return ahead * seconds / self.capacity

    def hog(self) -> str:
        """The key with most waiting."""
        return max(self.rows, key=lambda key: len(self.rows[key]))

    def _tidy(self, key: str) -> None:
        if not self.rows[key]:
            del self.rows[key], self.deficits[key]
            self.order.remove(key)


class Admission:
    """Places for requests at the engines. Everything happens in the event loop; nothing here blocks.

    `clock` tells seconds, and never goes back.
    """

    def __init__(self, bounds: Bounds, clock: Callable[[], float] = time.monotonic) -> None:
        self._bounds = bounds
        self._clock = clock
        self._lanes: dict[str, _Lane] = {}
        self._waiting = 0

    @property
    def waiting(self) -> int:
        return self._waiting

    @property
    def running(self) -> int:
        return sum(lane.running for lane in self._lanes.values())

    @asynccontextmanager
    async def place(
        self, engine: str, capacity: int, key: str, cost: int, left: float = math.inf
    ) -> AsyncIterator[None]:
        """Hold one of the engine's `capacity` places. `cost` is the request's estimate in tokens.

        `left` is how many seconds its client has yet.

        Raises:
            ApiError: 503, it would wait too long, did wait too long, or the queue is full.
        """
        lane = self._lanes.setdefault(engine, _Lane(capacity, self._clock()))
        lane.capacity = capacity
        if lane.running < capacity and not lane.waiting:
            lane.running += 1
        else:
            patience = max(min(self._bounds.patience, left), 0.0)
            await self._wait(lane, _Waiter(key, min(max(cost, 1), _DEAREST), asyncio.Future()), patience)
        since = self._clock()
        try:
            yield
        finally:
            held = self._clock() - since
            lane.seconds = held if lane.seconds is None else lane.seconds + _SMOOTHING * (held - lane.seconds)
            self._release(engine, lane)

    async def _wait(self, lane: _Lane, waiter: _Waiter, patience: float) -> None:
        expected = lane.expected_wait(waiter.key, self._clock())
        if expected > _HOPE * patience:
            raise _overloaded(expected)
        self._make_room(lane, waiter.key, expected)
        lane.join(waiter)
        self._waiting += 1
        try:
            async with asyncio.timeout(patience):
                await waiter.turn
        except TimeoutError as error:
            self._give_up(lane, waiter)
            raise _overloaded(lane.expected_wait(waiter.key, self._clock())) from error
        except asyncio.CancelledError:
            self._give_up(lane, waiter)
            raise
        finally:
            self._waiting -= 1

    def _make_room(self, lane: _Lane, key: str, expected: float) -> None:
        """A full queue refuses the newcomer, unless another key holds more of it: then that one's newest leaves."""
        full = lane.waiting >= self._bounds.queue
        if not full and self._waiting < self._bounds.queues:
            return
        rows = lane.rows
        if not rows or len(rows[hog := lane.hog()]) <= len(rows.get(key, ())) + 1:
            raise _overloaded(expected)
        newest = rows[hog][-1]
        lane.drop(newest)
        if not newest.turn.done():  # done: it left, and does not know yet
            newest.turn.set_exception(_overloaded(expected))

    def _give_up(self, lane: _Lane, waiter: _Waiter) -> None:
        """It left while it waited; a place that it was given in the same moment goes to the next."""
        if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
            self._pass_on(lane)
        lane.drop(waiter)

    def _release(self, engine: str, lane: _Lane) -> None:
        self._pass_on(lane)
        if not lane.running and not lane.waiting and self._lanes.get(engine) is lane:
            del self._lanes[engine]

    @staticmethod
    def _pass_on(lane: _Lane) -> None:
        lane.running -= 1
        while lane.running < lane.capacity and (waiter := lane.next()) is not None:
            if not waiter.turn.done():
                lane.running += 1
                waiter.turn.set_result(None)


def _overloaded(expected: float) -> ApiError:
    # Spread, so that those refused together do not come back together.
    after = min(max(expected, 1.0), _LONGEST_ADVICE) * random.uniform(1.0, 1.5)  # noqa: S311 - no secret
    return ApiError(
        "server_is_overloaded", "The expert is busy and its queue is full or too slow.", retry_after=math.ceil(after)
    )
