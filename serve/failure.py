"""What can go wrong with an expert, and the error that says so."""

from __future__ import annotations

from enum import StrEnum

from .errors import ApiError


class Fault(StrEnum):
    """Kinds of failure, by what they allow afterwards (retry.py)."""

    CONNECT = "connect"  # no connection: the expert has seen nothing
    OPEN = "open"  # the expert failed too often just now and was not asked
    RESET = "reset"  # the connection ended before an answer began
    BUSY = "busy"  # 429 or 503: the expert said that it did nothing
    ERROR = "error"  # the expert reports a failure of its own
    LATE = "late"  # a deadline passed before anything of the answer came
    INVALID = "invalid"  # what came is no answer
    BROKEN = "broken"  # the answer broke off or stalled under way
    MISCONFIGURED = "misconfigured"  # credentials, model or API are wrong
    REFUSED = "refused"  # the request is at fault


class UpstreamError(ApiError):
    """An expert's failure as the client would be told of it; `wait` is its Retry-After, in seconds."""

    def __init__(
        self, fault: Fault, code: str, message: str, param: str | None = None, *, wait: int | None = None
    ) -> None:
        super().__init__(code, message, param, retry_after=wait)
        self.fault = fault
        self.wait = wait


def let_go(failure: BaseException | None) -> None:
    """Drop the tracebacks: their frames and the request hold each other, whatever its size, until a collection."""
    while failure is not None:
        failure.__traceback__ = None
        failure = failure.__context__
