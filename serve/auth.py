"""API keys of the public endpoint and of the admin API. Without any key in the registry everybody may ask."""

from __future__ import annotations

import hmac
import time
from collections.abc import Iterable, Sequence

from ..experts.registry import KeyRecord, key_digest
from ..router.decision import Candidate
from .errors import ApiError

Headers = Sequence[tuple[bytes, bytes]]


def header(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


class Keyring:
    """The registry's keys by digest. SHA-256 hides how much of a wrong secret was right, so the time tells nothing."""

    def __init__(self, keys: Iterable[KeyRecord] = ()) -> None:
        self._digests: dict[str, tuple[KeyRecord, float]] = {}
        self.closed = False  # whether a key is needed: as soon as there is any, a revoked one included
        for key in keys:
            self.closed = True
            if key.revoked:
                continue
            self._digests[key.digest] = (key, float("inf"))
            if key.previous is not None:
                self._digests[key.previous] = (key, key.previous_until)

    def find(self, secret: str | None) -> KeyRecord | None:
        """The key with this secret, where it is in use."""
        digest = key_digest(secret) if secret else ""
        key, until = self._digests.get(digest, (None, 0.0))
        return key if time.time() < until else None


def authorise(headers: Headers, keyring: Keyring, *, api_key_header: bool = False) -> KeyRecord | None:
    """The key that the request shows, or None where none is needed. `api_key_header` also takes Anthropic's x-api-key.

    Raises:
        ApiError: invalid_api_key, or key_not_allowed for a key of the admin API.
    """
    if not keyring.closed:
        return None
    key = keyring.find(_presented(headers, api_key_header))
    if key is None:
        raise ApiError(
            "invalid_api_key",
            "An API key is needed: Authorization: Bearer KEY.",
            headers=((b"www-authenticate", b"Bearer"),),
        )
    if key.scope.admin:
        raise ApiError("key_not_allowed", "This key opens the admin API only.")
    return key


def permitted(key: KeyRecord | None, candidates: Iterable[Candidate]) -> frozenset[str] | None:
    """Names of the experts that a key may use: those it lists and those admitted to its domains; None for all."""
    if key is None or (key.scope.experts is None and key.scope.domains is None):
        return None
    domains = key.scope.domains or frozenset()
    admitted = {one.name for one in candidates if domains & one.admitted}
    return (key.scope.experts or frozenset()) | admitted


def is_admin(headers: Headers, admin_key: str, keyring: Keyring) -> bool:
    """Whether the request shows the state folder's admin key or a key with the admin scope."""
    secret = _presented(headers, api_key_header=False)
    if secret is None:
        return False
    if hmac.compare_digest(key_digest(secret), key_digest(admin_key)):
        return True
    key = keyring.find(secret)
    return key is not None and key.scope.admin


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
