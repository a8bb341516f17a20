"""ASGI middleware inside an engine: when vLLM's core is dead, the replica around it ends, so that Ray starts another.

vLLM's own server does so. Under Ray the replica would stay and answer every request with 500, quicker than a living
one, until Serve's health checks have failed three times; those took two minutes on a busy machine.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

LOOK = 0.25  # seconds
FAREWELL = 0.5  # seconds for the errors of the requests that ran


class Core(Protocol):
    """What vLLM's client of its core tells."""

    @property
    def errored(self) -> bool: ...


class Lifeline:
    """Learns of the core from the application that it wraps: at its start, or with the first request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._watched = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._watched:
            core = getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
            if core is not None:
                self._watched = True
                # A thread, because the loop may hang with the core's end.
                threading.Thread(target=end_with, args=(core,), name="lifeline", daemon=True).start()
        await self._app(scope, receive, send)


def end_with(core: Core) -> None:
    """Wait for the core's death, then end this process at once: its own shutdown may wait for the core."""
    while not core.errored:
        time.sleep(LOOK)
    time.sleep(FAREWELL)
    os._exit(1)
