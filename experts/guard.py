"""ASGI middleware inside an engine: everything but health and metrics needs the engine's key.

vLLM asks for the key under /v1 only, while /adapters loads LoRA adapters and /invocations answers prompts.
"""

from __future__ import annotations

import hmac
import os

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

KEY = "VLLM_API_KEY"
_OPEN = frozenset({"/health", "/metrics"})


class Guard:
    """Wraps vLLM's own application; it is made in the engine's process, whose environment holds the key."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ[KEY]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._may_pass(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await JSONResponse({"error": "Unauthorized"}, status_code=401)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    def _may_pass(self, scope: Scope) -> bool:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        given = Headers(scope=scope).get("authorization", "")
        return path in _OPEN or hmac.compare_digest(given.encode(), self._expected)
