"""Circuit breakers: an expert that fails again and again is left alone, then tried with one request at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


class Breaker:
    """Closed until `threshold` failures in a row; then open for `pause` seconds; then half open: one request tries.

    A request that failed after its first byte counts as failed; one whose client left counts as nothing.
    """

    def __init__(self, threshold: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold = threshold
        self._pause = pause
        self._clock = clock
        self._failures = 0
        self._retry_at: float | None = None
        self._probing = False
        self.alive = True  # when last looked at, as far as is known

    @property
    def closed(self) -> bool:
        return self._retry_at is None

    @property
    def wait(self) -> float:
        """Seconds until a request may try."""
        return max((self._retry_at or 0.0) - self._clock(), 0.0)

    @property
    def ready(self) -> bool:
        """Whether a request may try now."""
        return self._retry_at is not None and not self._probing and self._clock() >= self._retry_at

    def admit(self) -> Permit | None:
        """A permit to ask the expert, or None while it is left alone."""
        if self._retry_at is None:
            return Permit(self, probe=False)
        if not self.ready:
            return None
        self._probing = True
        return Permit(self, probe=True)

    def looked(self, alive: bool) -> None:
        """Enter what a look at the expert found: where it is back after it was gone, the next request tries at once."""
        if alive and not self.alive and self._retry_at is not None:
            self._retry_at = self._clock()
        self.alive = alive

    def _succeeded(self) -> None:
        self._failures = 0
        self._retry_at = None
        self.alive = True

    def _failed(self, weight: int) -> None:
        self._failures += weight
        if self._failures >= self._threshold:
            self._retry_at = self._clock() + self._pause

    def _released(self) -> None:
        self._probing = False


@dataclass(slots=True)
class Permit:
    """One request's leave to ask; the first of its three ends counts, and `abandoned` says nothing of the expert."""

    _breaker: Breaker
    probe: bool
    _over: bool = False

    def alive(self) -> None:
        """The first content came: a probe has shown what it had to, the answer may still fail."""
        if self.probe:
            self._breaker._succeeded()
            self._release()

    def succeeded(self) -> None:
        self._end(self._breaker._succeeded)

    def failed(self, weight: int = 1) -> None:
        self._end(lambda: self._breaker._failed(weight))

    def abandoned(self) -> None:
        self._end(lambda: None)

    def _end(self, count: Callable[[], None]) -> None:
        if not self._over:
            self._over = True
            count()
            self._release()

    def _release(self) -> None:
        if self.probe:
            self.probe = False
            self._breaker._released()
