"""The classifier's place in the edge: a few threads, a bounded queue, a budget for each request."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..router.posterior import Posterior
from .snapshot import RoutingModel

logger = logging.getLogger("collegium.edge")


@dataclass(frozen=True, slots=True)
class NoPosterior:
    """Why there is none: `code` is classifier_timeout, classifier_error, classifier_busy or low_confidence."""

    code: str
    reason: str


class Classifier:
    """Posteriors off the event loop. A request that stops waiting takes its queued work with it."""

    def __init__(self, threads: int, queue: int, budget: float) -> None:
        """`budget` in seconds covers the wait in the queue and the work."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="classifier")
        self._room = threads + queue
        self._held = 0
        self._lock = threading.Lock()
        self._budget = budget

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def posterior(self, router: RoutingModel, text: str) -> Posterior | NoPosterior:
        """p(domain | text), or why there is none; it never raises for what the router does."""
        if not text.strip():
            return NoPosterior("low_confidence", "the request holds no text to read")
        with self._lock:
            if self._held >= self._room:
                return NoPosterior("classifier_busy", f"{self._held} prompts are being read or wait already")
            self._held += 1
        work = self._pool.submit(router.posterior, text)
        work.add_done_callback(lambda _: self._release())
        waiting = asyncio.wrap_future(work)
        try:
            await asyncio.wait({waiting}, timeout=self._budget)
        finally:
            waiting.cancel()
        if waiting.cancelled():
            return NoPosterior("classifier_timeout", f"no posterior within {self._budget * 1000:.0f} ms")
        failure = waiting.exception()
        if failure is not None:
            logger.error("classifier %s failed: %s", router.version, type(failure).__name__)
            return NoPosterior("classifier_error", "the classifier failed")
        return waiting.result()

    def _release(self) -> None:
        with self._lock:
            self._held -= 1
