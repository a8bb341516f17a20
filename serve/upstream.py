"""The HTTP client towards experts: one session, one request at a time of it, failures in our words."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial

import aiohttp
import orjson

from ..experts.networks import Networks
from .errors import ApiError
from .failure import Fault, UpstreamError
from .ledger import Attempt
from .requests import Api
from .settings import EdgeSettings
from .snapshot import Target
from .upstream_errors import translated

logger = logging.getLogger("collegium.edge")

MAX_ERROR_BODY = 64 * 1024
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS})
# Shorter than the 5 s after which uvicorn, under vLLM and others, closes an idle connection under our hands.
_IDLE = 3.0
_WINDOW_TIME = 5.0
_ALIVE_TIME = 2.0


class Upstream:
    """A client session for our own engines and one for remote experts, whose addresses are checked as it connects.

    Open with `start()` in the loop that serves.
    """

    def __init__(self, settings: EdgeSettings) -> None:
        self._connections = settings.connections_per_expert
        self._networks = settings.networks
        self._own: aiohttp.ClientSession | None = None
        self._remote: aiohttp.ClientSession | None = None
        self._timeouts: dict[float, aiohttp.ClientTimeout] = {}

    async def start(self) -> None:
        self._own = self._session(None)
        self._remote = self._session(self._networks)

    def _session(self, networks: Networks | None) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=0,
            limit_per_host=self._connections,
            keepalive_timeout=_IDLE,
            socket_factory=partial(_bounded_socket, networks) if networks is not None else None,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
            auto_decompress=False,
        )

    async def close(self) -> None:
        for session in (self._own, self._remote):
            if session is not None:
                await session.close()

    @asynccontextmanager
    async def post(
        self, target: Target, api: Api, body: Mapping[str, object], request_id: str, attempt: Attempt, connect: float
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send once; what comes back with status 200 is an answer or a stream of one.

        Raises:
            UpstreamError: no connection, no answer, or one with another status.
            ApiError: this process can open no connection to anybody, which says nothing of the expert.
        """
        try:
            response = await self._opened(target).post(
                f"{target.url}/{api.value}",
                data=orjson.dumps(body),
                headers=_headers(api, target, request_id),
                timeout=self._timeout(connect),
                allow_redirects=False,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            if getattr(error, "errno", None) in _EXHAUSTED:
                raise ApiError("server_is_overloaded", "This server has no file or port left.") from error
            raise UpstreamError(
                Fault.CONNECT, "upstream_connection_failed", f"{target.expert} cannot be reached."
            ) from error
        except aiohttp.ClientError as error:
            fault = Fault.INVALID if isinstance(error, aiohttp.ClientResponseError) else Fault.RESET
            raise _closed(target, fault) from error
        try:
            attempt.status = response.status
            if response.status != 200:
                raise translated(
                    target, response.status, await self._error_body(response), response.headers.get("retry-after")
                )
            yield response
        finally:
            # A connection whose answer was read to its end goes back to the pool; any other is closed, so that the
            # expert stops working for nobody.
            response.close()

    async def window(self, target: Target) -> int | None:
        """The engine's context window in tokens, as vLLM lists it; None where it cannot be had."""
        headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
        timeout = aiohttp.ClientTimeout(total=_WINDOW_TIME)
        try:
            async with self._opened(target).get(
                f"{target.url}/models", headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                listed = orjson.loads(await response.content.read(MAX_ERROR_BODY)).get("data", [])
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError, AttributeError):
            return None
        windows = [model.get("max_model_len") for model in listed if isinstance(model, dict)]
        return min((one for one in windows if isinstance(one, int)), default=None)

    async def alive(self, target: Target) -> bool:
        """Whether the expert lists its models: cheap to ask, and no proof that it can answer."""
        headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
        timeout = aiohttp.ClientTimeout(total=_ALIVE_TIME)
        try:
            async with self._opened(target).get(
                f"{target.url}/models", headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                return response.status < 500
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _opened(self, target: Target) -> aiohttp.ClientSession:
        session = self._own if target.vouched else self._remote
        if session is None:
            raise RuntimeError("the client is not started")
        return session

    def _timeout(self, connect: float) -> aiohttp.ClientTimeout:
        if connect not in self._timeouts:
            self._timeouts[connect] = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        return self._timeouts[connect]

    async def _error_body(self, response: aiohttp.ClientResponse) -> bytes:
        """What the expert says of its failure; the status alone does where that breaks off."""
        with suppress(aiohttp.ClientError):
            return await read(response, MAX_ERROR_BODY)
        return b""


def _bounded_socket(networks: Networks, address: tuple[object, ...]) -> socket.socket:
    """A socket for the one address that will be connected to, be it from a name or from the URL itself.

    Raises:
        OSError: a remote expert may not be there.
    """
    family, kind, protocol, _, place = address
    host = str(place[0]) if isinstance(place, tuple) else ""
    if not networks.permit(host):
        logger.warning("a remote expert is at %s, which is not a public address; see --allow-network", host)
        raise OSError(errno.EACCES, "not a public address")
    return socket.socket(int(str(family)), int(str(kind)), int(str(protocol)))


def _closed(target: Target, fault: Fault) -> UpstreamError:
    return UpstreamError(
        fault, "upstream_invalid_response", f"{target.expert} closed the connection without a valid answer."
    )


def _headers(api: Api, target: Target, request_id: str) -> dict[str, str]:
    """Only ours: nothing of the client's headers goes on."""
    headers = {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",
        "user-agent": "collegium",
        "x-request-id": request_id,
    }
    if target.key:
        headers["authorization"] = f"Bearer {target.key}"
    if api is Api.MESSAGES:
        headers["anthropic-version"] = "2023-06-01"
        if target.key:
            headers["x-api-key"] = target.key
    return headers


async def read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body, or a little more than `limit` bytes of it."""
    parts = []
    size = 0
    async for chunk in response.content.iter_any():
        parts.append(chunk)
        size += len(chunk)
        if size > limit:
            break
    return b"".join(parts)
