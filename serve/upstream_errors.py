"""An expert's error statuses, translated: its own words pass only where we run the engine, and about the request."""

from __future__ import annotations

import re

import orjson

from .failure import Fault, UpstreamError
from .snapshot import Target

MAX_RETRY_AFTER = 120
_INVALID = "upstream_invalid_response"
_SHOWN = 500
_ADDRESS = re.compile(r"\w+://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_PARAM = re.compile(r"[A-Za-z_][A-Za-z0-9_.\[\]]{0,99}")


def translated(target: Target, status: int, raw: bytes, retry_after: str | None) -> UpstreamError:
    """Our error for an expert's answer with a status other than 200."""
    who = target.expert
    if status in (400, 422):
        return _about_the_request(target, _envelope(raw))
    if status in (401, 403):
        return UpstreamError(Fault.MISCONFIGURED, _INVALID, f"{who} refuses the credentials configured for it.")
    if status in (404, 405, 501):
        return UpstreamError(Fault.MISCONFIGURED, _INVALID, f"{who} does not offer this API or model.")
    if status == 413:
        return UpstreamError(Fault.REFUSED, "request_too_large", f"The request is too large for {who}.")
    wait = clamped(retry_after)
    if status == 429:
        return UpstreamError(Fault.BUSY, "rate_limit_exceeded", f"{who} is rate limited.", wait=wait)
    if status == 503:
        return UpstreamError(Fault.BUSY, "server_is_overloaded", f"{who} is overloaded or not ready.", wait=wait)
    if status in (408, 504):
        return UpstreamError(Fault.LATE, "total_timeout", f"{who} did not answer in time.")
    fault = Fault.ERROR if status >= 500 else Fault.INVALID
    return UpstreamError(fault, _INVALID, f"{who} failed (status {status}).")


def clamped(retry_after: str | None) -> int | None:
    """Seconds from 1 to MAX_RETRY_AFTER, or None where the header says nothing usable."""
    if retry_after is None or not re.fullmatch(r"[0-9]{1,9}", retry_after):
        return None
    return min(max(int(retry_after), 1), MAX_RETRY_AFTER)


def _about_the_request(target: Target, envelope: dict[str, object]) -> UpstreamError:
    message = envelope.get("message")
    text = message if isinstance(message, str) else ""
    param = envelope.get("param")
    named = param if isinstance(param, str) and _PARAM.fullmatch(param) else None
    code = _code(envelope.get("code"), text)
    if target.vouched and text:
        return UpstreamError(Fault.REFUSED, code, _plain(text, target), named)
    if code == "context_length_exceeded":
        return UpstreamError(
            Fault.REFUSED, code, f"The request does not fit the context window of {target.expert}.", named
        )
    if code == "content_policy_violation":
        return UpstreamError(Fault.REFUSED, code, f"{target.expert} refuses the request's content.", named)
    return UpstreamError(Fault.REFUSED, code, f"{target.expert} refuses the request.", named)


def _code(code: object, message: str) -> str:
    if code in ("context_length_exceeded", "content_policy_violation"):
        return str(code)
    if "maximum context length" in message or "max_model_len" in message:
        return "context_length_exceeded"
    if code == "content_filter":
        return "content_policy_violation"
    return "invalid_value"


def _envelope(raw: bytes) -> dict[str, object]:
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return {}
    inner = data.get("error", data) if isinstance(data, dict) else {}
    return inner if isinstance(inner, dict) else {}


def _plain(text: str, target: Target) -> str:
    """One bounded line without addresses or the expert's key."""
    line = " ".join(text.split())
    if target.key:
        line = line.replace(target.key, "[removed]")
    return _ADDRESS.sub("[removed]", line)[:_SHOWN]
