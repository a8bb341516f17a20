"""ASGI middleware inside an engine: when vLLM's core is dead, the replica around it ends, so that Ray starts another.

vLLM's own server does so. Under Ray the replica would stay and answer every request with 500, quicker than a living
one, until Serve's health checks have failed three times; those took two minutes on a busy machine.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Protocol

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

LOOK = 0.25  # seconds
FAREWELL = 0.5  # seconds for the errors of the requests that ran


class Core(Protocol):
    """What vLLM's client of its core tells."""

    @property
    def errored(self) -> bool: ...


class Lifeline:
    """Learns of the core from the application that it wraps: at its start, or with the first request.

    What comes after the core's death gets 503: nothing was done for it. 500 is left to what ran meanwhile.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._core: Core | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._core is None:
            self._core = getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
            if self._core is not None:
                # A thread, because the loop may hang with the core's end.
                threading.Thread(target=end_with, args=(self._core,), name="lifeline", daemon=True).start()
        if scope["type"] == "http" and self._core is not None and self._core.errored:
            await JSONResponse({"error": "The engine has ended."}, status_code=503)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def end_with(core: Core) -> None:
    """Wait for the core's death, then end this process at once: its own shutdown may wait for the core."""
    while not core.errored:
        time.sleep(LOOK)
    time.sleep(FAREWELL)
    os._exit(1)
