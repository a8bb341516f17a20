"""The classifier's place in the edge: cheap routers inline, others in a few threads with a bounded queue and a budget.

Prompts are never put together into one batch: a route must not depend on who else is asking.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..router.posterior import Posterior
from .snapshot import RoutingModel

logger = logging.getLogger("collegium.edge")

# So long, in seconds, a router may keep the event loop from its other work; one that takes longer several times
# running is read in threads from then on.
_INLINE = 0.01
_SLOW_READINGS = 3


@dataclass(frozen=True, slots=True)
class NoPosterior:
    """Why there is none: `code` is classifier_timeout, classifier_error, classifier_busy or low_confidence."""

    code: str
    reason: str


class Classifier:
    """Posteriors within a budget. A request that stops waiting takes its queued work with it."""

    def __init__(self, threads: int, queue: int, budget: float) -> None:
        """`budget` in seconds covers the wait in the queue and the work."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="classifier")
        self._room = threads + queue
        self._held = 0
        self._lock = threading.Lock()
        self.budget = budget
        self._version = ""
        self._slow = 0

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def posterior(self, router: RoutingModel, text: str) -> Posterior | NoPosterior:
        """p(domain | text), or why there is none; it never raises for what the router does."""
        if not text.strip():
            return NoPosterior("low_confidence", "the request holds no text to read")
        if getattr(router, "inline", False) and self._is_quick(router.version):
            # A task, so that whatever the router raises is this prompt's failure and nobody else's.
            reading: asyncio.Future[Posterior] = asyncio.create_task(self._read(router, text))
            await asyncio.wait({reading})
        else:
            with self._lock:
                if self._held >= self._room:
                    return NoPosterior("classifier_busy", f"{self._held} prompts are being read or wait already")
                self._held += 1
            work = self._pool.submit(router.posterior, text)
            work.add_done_callback(lambda _: self._release())
            reading = asyncio.wrap_future(work)
            try:
                await asyncio.wait({reading}, timeout=self.budget)
            finally:
                reading.cancel()
        if reading.cancelled():
            return NoPosterior("classifier_timeout", f"no posterior within {self.budget * 1000:.0f} ms")
        failure = reading.exception()
        if failure is not None:
            logger.error("classifier %s failed: %s", router.version, type(failure).__name__)
            return NoPosterior("classifier_error", "the classifier failed")
        return reading.result()

    def _is_quick(self, version: str) -> bool:
        if version != self._version:
            self._version, self._slow = version, 0
        return self._slow < _SLOW_READINGS

    async def _read(self, router: RoutingModel, text: str) -> Posterior:
        """In the event loop: a thread's hand-over would cost as much as the reading."""
        started = time.thread_time()  # not the wall's: a busy machine is no slow router
        try:
            return router.posterior(text)
        finally:
            self._slow = self._slow + 1 if time.thread_time() - started > _INLINE else 0
            if self._slow == _SLOW_READINGS:
                logger.warning("router %s is too slow for the event loop; threads read from now on", router.version)

    def _release(self) -> None:
        with self._lock:
            self._held -= 1
