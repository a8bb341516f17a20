"""The ledger: every request that came in has one id and exactly one end; what went in equals what came out."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

logger = logging.getLogger("collegium.edge")


class End(StrEnum):
    """How a request ended. REFUSED: answered with an error before any expert was asked."""

    COMPLETED = "completed"
    FAILED_BEFORE_FIRST_BYTE = "failed_before_first_byte"
    FAILED_MID_STREAM = "failed_mid_stream"
    CANCELLED = "client_cancelled"
    REFUSED = "refused"


@dataclass(slots=True)
class Attempt:
    """One sending of a request to an expert. Seconds; `result` is "ok", a fault's name, or "cancelled".

    `url` says which replica it was where there are several.
    """

    expert: str
    kind: str = "request"
    url: str = ""
    started: float = field(default_factory=time.monotonic)
    result: str = ""
    status: int | None = None
    first_byte: float | None = None
    seconds: float = 0.0
    bytes_in: int = 0

    def close(self, result: str) -> None:
        if not self.result:
            self.result = result
            self.seconds = time.monotonic() - self.started

    def as_dict(self) -> dict[str, object]:
        """For the log."""
        return {
            "expert": self.expert,
            "kind": self.kind,
            **({"url": self.url} if self.url else {}),
            "result": self.result,
            "status": self.status,
            "first_byte": None if self.first_byte is None else round(self.first_byte, 4),
            "seconds": round(self.seconds, 4),
            "bytes": self.bytes_in,
        }


class Ledger:
    """Counts of one edge process. `breaches` counts requests that were closed twice or never opened: always 0."""

    def __init__(self) -> None:
        self._open: set[str] = set()
        self.accepted = 0
        self.ended: Counter[End] = Counter()
        self.attempts = 0
        self.breaches = 0

    @property
    def in_flight(self) -> int:
        return len(self._open)

    @property
    def balanced(self) -> bool:
        return self.breaches == 0 and self.accepted == self.ended.total() + self.in_flight

    def open(self, request: str) -> None:
        self.accepted += 1
        self._open.add(request)

    def close(self, request: str, end: End, attempts: int) -> None:
        """Enter a request's end; the second end of one request is a breach and not counted."""
        if request not in self._open:
            self.breaches += 1
            logger.error("ledger: request %s ended twice", request)
            return
        self._open.remove(request)
        self.ended[end] += 1
        self.attempts += attempts
