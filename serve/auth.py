"""API keys of the public endpoint. Without any key in the registry everybody may ask."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from ..experts.registry import KeyRecord, key_digest
from .errors import ApiError

Headers = Sequence[tuple[bytes, bytes]]


def header(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def authorise(headers: Headers, keys: Sequence[KeyRecord], *, api_key_header: bool = False) -> KeyRecord | None:
    """The key that the request shows, or None where none is needed. `api_key_header` also takes Anthropic's x-api-key.

    Raises:
        ApiError: invalid_api_key.
    """
    if not keys:
        return None
    secret = _presented(headers, api_key_header)
    digest = key_digest(secret) if secret else ""
    found = None
    for key in keys:  # all of them, so that the time tells nothing
        if hmac.compare_digest(key.digest, digest):
            found = key
    if found is None:
        raise ApiError(
            "invalid_api_key",
            "An API key is needed: Authorization: Bearer KEY.",
            headers=((b"www-authenticate", b"Bearer"),),
        )
    return found


def is_admin(headers: Headers, admin_key: str) -> bool:
    """Whether the request shows the admin key."""
    secret = _presented(headers, api_key_header=False)
    return secret is not None and hmac.compare_digest(key_digest(secret), key_digest(admin_key))


def _presented(headers: Headers, api_key_header: bool) -> str | None:
    """The one secret shown; two of them are as good as none."""
    shown = header(headers, b"authorization")
    if api_key_header and not shown:
        keys = header(headers, b"x-api-key")
        return keys[0].decode("latin-1") if len(keys) == 1 else None
    if len(shown) != 1:
        return None
    scheme, _, secret = shown[0].decode("latin-1").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
