"""Deadlines: what the edge allows, shortened by the expert's card, and by the client for its own request."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from ..experts.card import Limits
from .auth import Headers, header
from .errors import ApiError
from .settings import EdgeSettings

TIMEOUT = "x-collegium-timeout"
_SECONDS = re.compile(r"[0-9]{1,6}(\.[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: for a connection, a stream's first content, each later portion, and the whole answer."""

    connect: float
    first_token: float
    between_tokens: float
    total: float

    @classmethod
    def of(cls, settings: EdgeSettings, limits: Limits) -> Deadlines:
        return cls(
            connect=_shorter(settings.connect, limits.connect),
            first_token=_shorter(settings.first_byte, limits.first_token),
            between_tokens=_shorter(settings.between_events, limits.between_tokens),
            total=_shorter(settings.total, limits.total),
        )


def asked(headers: Headers) -> float | None:
    """Seconds that the client gives its request from when it came, or None where it does not say.

    Raises:
        ApiError: 400, that is no number of seconds above 0.
    """
    given = [value.decode("latin-1") for value in header(headers, TIMEOUT.encode())]
    if not given:
        return None
    seconds = float(given[0]) if len(given) == 1 and _SECONDS.fullmatch(given[0]) else 0.0
    if seconds <= 0:
        raise ApiError("invalid_value", f"{TIMEOUT} must be one number of seconds above 0, as in 2.5.", TIMEOUT)
    return seconds


def _shorter(allowed: float, limit: float | None) -> float:
    return allowed if limit is None else min(allowed, limit)


class Clock:
    """One timer for a whole exchange, moved forward as it gets on; it knows what the time ran out for."""

    def __init__(self, timer: asyncio.Timeout, end: float) -> None:
        """`end` is in the loop's time, and stands whatever is allowed later."""
        self._timer = timer
        self._loop = asyncio.get_running_loop()
        self._end = end
        self.code = "total_timeout"

    def allow(self, seconds: float, code: str) -> None:
        """From now on: so many seconds, and the code of the error when they have passed."""
        limit = self._loop.time() + seconds
        self.code = code if limit < self._end else "total_timeout"
        self._timer.reschedule(min(limit, self._end))

    def rest(self) -> None:
        """Nothing is expected of the expert now, as while the client reads: only the end stands."""
        self.code = "total_timeout"
        self._timer.reschedule(self._end)
