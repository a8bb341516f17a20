"""What may be sent again after a failure, where, when, and how often in all."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .failure import Fault, UpstreamError

MAX_ATTEMPTS = 3
_BASE = 0.1
_LONGEST = 2.0
# A second sending to the same expert: it has done nothing, or (RETRY_SAFE) its work may be done twice. A deadline that
# passed is not among them: an expert that is late is not made faster by asking again.
_UNDONE = frozenset({Fault.CONNECT, Fault.BUSY})
_RETRY_SAFE = frozenset({Fault.RESET, Fault.ERROR, Fault.INVALID, Fault.BROKEN})
_ELSEWHERE = frozenset(set(Fault) - {Fault.REFUSED})
# What an engine's end looks like, to a request under way and to the next one.
ENDS = frozenset({Fault.RESET, Fault.ERROR, Fault.BROKEN})
_GONE = frozenset({Fault.CONNECT, Fault.OPEN, Fault.BUSY, *ENDS})
# Failures that say something of the expert's health; the weight is in failures of a breaker.
_BLAME = {
    Fault.CONNECT: 1, Fault.RESET: 1, Fault.ERROR: 1, Fault.LATE: 1, Fault.INVALID: 1, Fault.BROKEN: 1,
    Fault.MISCONFIGURED: 3,
}  # fmt: skip


class Budget:
    """Second sendings in all: `share` of the requests, saved up to `reserve` for a bad moment."""

    def __init__(self, share: float = 0.1, reserve: float = 100.0) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve

    def earn(self) -> None:
        self._left = min(self._left + self._share, self._reserve)

    def spend(self) -> bool:
        """Whether one more sending is within the budget; if so it is spent."""
        if self._left < 1:
            return False
        self._left -= 1
        return True


def sibling(failure: UpstreamError, sent: int, others: bool) -> bool:
    """Whether another replica may be asked after so many sendings; one is left for the stand-in where there is one."""
    return sent < _sendings(others) and failure.fault in _ELSEWHERE


def same_again(failure: UpstreamError, retry_safe: bool, sent: int, others: bool) -> bool:
    """Whether the same expert, asked `sent` times, may be asked again; once only where there is another to ask."""
    if sent >= _sendings(others):
        return False
    if failure.fault is Fault.BUSY:
        return True
    return sent < 2 and (failure.fault in _UNDONE or (retry_safe and failure.fault in _RETRY_SAFE))


def may_return(failures: Sequence[UpstreamError]) -> bool:
    """Whether an engine of ours that failed so may be started again just now, and be asked again then.

    A request that it failed at MAX_ATTEMPTS times may be the reason for its end.
    """
    last = failures[-1]
    worked = sum(failure.fault in ENDS for failure in failures)
    return last.fault in _GONE and last.code != "rate_limit_exceeded" and worked < MAX_ATTEMPTS


def _sendings(others: bool) -> int:
    return MAX_ATTEMPTS - (1 if others else 0)


def elsewhere(failure: UpstreamError) -> bool:
    """Whether another expert may be asked; one with a larger window where the request did not fit."""
    return failure.fault in _ELSEWHERE or failure.code == "context_length_exceeded"


def executed(failure: UpstreamError) -> bool:
    """Whether the expert may have worked on the request: then another sending is extra load."""
    return failure.fault not in (Fault.CONNECT, Fault.OPEN)


def blame(failure: UpstreamError) -> int:
    """How many failures this counts for in the expert's breaker. 503 is one, a rate limit none."""
    if failure.fault is Fault.BUSY:
        return 1 if failure.status == 503 else 0
    return _BLAME.get(failure.fault, 0)


def pause(failure: UpstreamError, sent: int, chance: random.Random) -> float:
    """Seconds to wait before the next sending to the same expert: what it asked for and a little, else full jitter."""
    if failure.wait is not None:
        return failure.wait + chance.uniform(0, _BASE)
    if failure.fault is Fault.CONNECT:
        return chance.uniform(0, _BASE / 2)
    return chance.uniform(0, min(_BASE * 2**sent, _LONGEST))
