"""Errors of the public endpoint: one table of codes, one envelope, OpenAI's shape."""

from __future__ import annotations

from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Kind:
    """What a code means on the wire. `retry` becomes x-should-retry, which OpenAI's clients obey."""

    status: int
    type: str
    retry: bool = False
    retry_after: int | None = None


_REQUEST = "invalid_request_error"
_UPSTREAM = "upstream_error"
_UNAVAILABLE = "service_unavailable_error"

# 408 is left out on purpose: OpenAI's clients retry it. A 504 is not retried, because the work may be billed already.
KINDS = {
    "invalid_json": Kind(400, _REQUEST),
    "invalid_unicode": Kind(400, _REQUEST),
    "invalid_value": Kind(400, _REQUEST),
    "invalid_host": Kind(400, _REQUEST),
    "invalid_http": Kind(400, _REQUEST),
    "unsupported_parameter": Kind(400, _REQUEST),
    "context_length_exceeded": Kind(400, _REQUEST),
    "content_policy_violation": Kind(400, _REQUEST),
    "request_incomplete": Kind(400, _REQUEST),
    "invalid_api_key": Kind(401, "authentication_error"),
    "model_not_allowed": Kind(403, "permission_error"),
    "key_not_allowed": Kind(403, "permission_error"),
    "model_not_found": Kind(404, _REQUEST),
    "not_found": Kind(404, _REQUEST),
    "method_not_allowed": Kind(405, _REQUEST),
    "registry_version_conflict": Kind(409, "conflict_error"),
    "in_use": Kind(409, "conflict_error"),
    "already_exists": Kind(409, "conflict_error"),
    "request_too_large": Kind(413, _REQUEST),
    "unsupported_media_type": Kind(415, _REQUEST),
    "headers_too_large": Kind(431, _REQUEST),
    "rate_limit_exceeded": Kind(429, "rate_limit_error", retry=True, retry_after=1),
    "tenant_concurrency_exceeded": Kind(429, "rate_limit_error", retry=True, retry_after=1),
    "insufficient_quota": Kind(429, "rate_limit_error"),
    "internal_error": Kind(500, "server_error"),
    "upstream_invalid_response": Kind(502, _UPSTREAM),
    "upstream_connection_failed": Kind(502, _UPSTREAM, retry=True, retry_after=1),
    "upstream_stream_truncated": Kind(502, _UPSTREAM),
    "server_is_overloaded": Kind(503, _UNAVAILABLE, retry=True, retry_after=1),
    "no_healthy_expert": Kind(503, _UNAVAILABLE, retry=True, retry_after=5),
    "expert_loading": Kind(503, _UNAVAILABLE, retry=True, retry_after=5),
    "registry_unavailable": Kind(503, _UNAVAILABLE, retry=True, retry_after=5),
    "draining": Kind(503, _UNAVAILABLE, retry=True, retry_after=1),
    "ttft_timeout": Kind(504, "timeout_error"),
    "total_timeout": Kind(504, "timeout_error"),
}


class ApiError(Exception):
    """An answer that is an error; `message` is for the client and holds no secret, address or foreign text."""

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        *,
        retry_after: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.kind = KINDS[code]
        self.message = message
        self.param = param
        self._retry_after = self.kind.retry_after if retry_after is None else retry_after
        self._more_headers = headers

    @property
    def status(self) -> int:
        return self.kind.status

    def as_dict(self) -> dict[str, str | None]:
        return {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.code}

    def body(self) -> bytes:
        """The envelope; characters that JSON cannot carry are replaced."""
        try:
            return orjson.dumps({"error": self.as_dict()})
        except orjson.JSONEncodeError:
            self.message = self.message.encode("utf-8", "replace").decode()
            self.param = self.param and self.param.encode("utf-8", "replace").decode()
            return orjson.dumps({"error": self.as_dict()})

    def headers(self) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-should-retry", b"true" if self.kind.retry else b"false"), *self._more_headers]
        if self.kind.retry and self._retry_after is not None:
            headers.append((b"retry-after", str(self._retry_after).encode()))
        return headers
