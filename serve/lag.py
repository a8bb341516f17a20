"""How late the event loop is: the sign that this process has more to do than its core can."""

from __future__ import annotations

import asyncio
import time

_STEP = 0.1


class Lag:
    """Measured by a timer that should run every 0.1 s. Not by the loop's clock, which stands still while it is busy."""

    def __init__(self) -> None:
        self._due = 0.0
        self._last = 0.0
        self._lasting = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to measure the running loop."""
        self._due = time.monotonic()
        self._tick()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def seconds(self) -> float:
        """How late the timer is, or was when it ran last."""
        return max(time.monotonic() - self._due, self._last) if self._timer is not None else 0.0

    @property
    def lasting(self) -> float:
        """How late it was at least the last two times: a process that was only held up once is not overloaded."""
        return self._lasting

    def _tick(self) -> None:
        now = time.monotonic()
        late = max(now - self._due, 0.0)
        self._last, self._lasting = late, min(late, self._last)
        self._due = now + _STEP
        self._timer = asyncio.get_running_loop().call_later(_STEP, self._tick)
