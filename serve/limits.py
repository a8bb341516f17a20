"""Limits of an API key: requests and tokens a minute, requests at a time; and the headers that tell of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..experts.registry import KeyRecord, KeyScope
from .counters import Counters, Reading
from .errors import ApiError
from .usage import Usage

REQUESTS, TOKENS = 0, 1
_KINDS = ("requests", "tokens")

Fields = list[tuple[bytes, bytes]]


class KeyLimits:
    """Lets requests in within their key's limits."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def close(self) -> None:
        self._counters.close()

    def enter(self, key: KeyRecord | None) -> Allowance:
        """Count a request; the allowance must be left when it ends.

        Raises:
            ApiError: 429, the key has no request left, or too many run.
        """
        allowance = Allowance(self._counters, key.name if key else "", key.scope if key else KeyScope())
        allowance.begin()
        return allowance


@dataclass(slots=True)
class Allowance:
    """One request's part of its key's limits; without a key there are none."""

    _counters: Counters
    _key: str
    _scope: KeyScope
    _prompt: int = 0
    _reserved: int = 0
    _running: bool = False

    def begin(self) -> None:
        """Count the request.

        Raises:
            ApiError: 429.
        """
        scope = self._scope
        if scope.concurrent is not None:
            if not self._counters.begin(self._key, scope.concurrent):
                raise ApiError(
                    "tenant_concurrency_exceeded", f"This key may have {scope.concurrent} requests running at a time."
                )
            self._running = True
        if scope.requests_per_minute is not None:
            try:
                self._take(REQUESTS, 1, scope.requests_per_minute)
            except ApiError:
                self.leave()
                raise

    def spend(self, tokens: int, prompt: int = 0) -> None:
        """Reserve an estimate, of which `prompt` is the prompt's; `settle` corrects it.

        Raises:
            ApiError: 429, the key has not so many tokens left, or never could have.
        """
        limit = self._scope.tokens_per_minute
        if limit is None:
            return
        if tokens > limit:
            raise ApiError(
                "insufficient_quota", f"The request needs about {tokens} tokens; this key may use {limit} a minute."
            )
        self._take(TOKENS, tokens, limit)
        self._prompt, self._reserved = prompt, tokens

    def settle(self, used: Usage, worked: bool) -> None:
        """Replace what was reserved by what was used.

        Where nothing is known all of it counts. Nothing counts unless an expert has `worked` for the client.
        """
        limit = self._scope.tokens_per_minute
        if limit is None:
            return
        tokens = 0 if not worked else used.tokens(self._prompt) if used.pieces else self._reserved
        self._counters.correct(self._key, TOKENS, tokens - self._reserved, limit)
        self._reserved = tokens

    def leave(self) -> None:
        if self._running:
            self._counters.end(self._key)
            self._running = False

    def _take(self, kind: int, amount: int, limit: int) -> None:
        wait = self._counters.take(self._key, kind, amount, limit).wait
        if wait:
            raise ApiError(
                "rate_limit_exceeded",
                f"This key may use {limit} {_KINDS[kind]} a minute; try again in {duration(wait)}.",
                retry_after=math.ceil(wait),
                headers=tuple(self.headers()),
            )

    def headers(self) -> Fields:
        """OpenAI's x-ratelimit-*, for the limits that the key has."""
        limits = (self._scope.requests_per_minute, self._scope.tokens_per_minute)
        return [
            field
            for kind, limit in enumerate(limits)
            if limit is not None
            for field in _fields(kind, limit, self._counters.take(self._key, kind, 0, limit))
        ]


def _fields(kind: int, limit: int, reading: Reading) -> Fields:
    told = {
        "limit": str(limit),
        "remaining": str(math.floor(reading.remaining)),
        "reset": duration(reading.until_full),
    }
    return [(f"x-ratelimit-{name}-{_KINDS[kind]}".encode(), value.encode()) for name, value in told.items()]


def duration(seconds: float) -> str:
    """As OpenAI writes it: 17ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"
