"""API keys as rows of the registry: read, written, rotated and revoked on an open connection."""

from __future__ import annotations

import secrets
import time

from sqlalchemy import delete, insert, select, update
from sqlalchemy.engine import Connection

from .records import KeyRecord, KeyScope, key_digest, key_record
from .schema import KEY_SCOPES, KEYS


def read(connection: Connection) -> list[KeyRecord]:
    joined = select(KEYS, KEY_SCOPES).join(KEY_SCOPES, KEY_SCOPES.c.key == KEYS.c.name, isouter=True)
    return [key_record(row) for row in connection.execute(joined.order_by(KEYS.c.name)).mappings()]


def add(connection: Connection, name: str, secret: str, scope: KeyScope) -> KeyRecord:
    """Insert a key; a revoked one of that name makes room."""
    if any(key.name == name and key.revoked for key in read(connection)):
        connection.execute(delete(KEYS).where(KEYS.c.name == name))
    listed = sorted(scope.experts) if scope.experts is not None else None
    connection.execute(insert(KEYS).values(name=name, digest=key_digest(secret), experts=listed))
    connection.execute(
        insert(KEY_SCOPES).values(
            key=name,
            domains=sorted(scope.domains) if scope.domains is not None else None,
            admin=scope.admin,
            requests_per_minute=scope.requests_per_minute,
            tokens_per_minute=scope.tokens_per_minute,
            concurrent=scope.concurrent,
            revoked=False,
        )
    )
    return KeyRecord(name, key_digest(secret), scope)


def rotate(connection: Connection, name: str, secret: str, overlap: float) -> bool:
    """Give a key a new secret; the old one goes on for `overlap` seconds. Whether there is such a key in use."""
    found = next((key for key in read(connection) if key.name == name and not key.revoked), None)
    if found is None:
        return False
    connection.execute(update(KEYS).where(KEYS.c.name == name).values(digest=key_digest(secret)))
    kept = {"previous": found.digest, "previous_until": time.time() + overlap} if overlap > 0 else {}
    _set_scope(connection, name, **{"previous": None, "previous_until": None, **kept})
    return True


def revoke(connection: Connection, name: str) -> bool:
    """End a key, which stays on record. Whether there was such a key in use."""
    if not any(key.name == name and not key.revoked for key in read(connection)):
        return False
    # A digest of nothing that anybody knows: a collegium from before there were scopes refuses the key as well.
    nothing = key_digest(secrets.token_hex(32))
    connection.execute(update(KEYS).where(KEYS.c.name == name).values(digest=nothing))
    _set_scope(connection, name, revoked=True, previous=None, previous_until=None)
    return True


def _set_scope(connection: Connection, name: str, **values: object) -> None:
    changed = connection.execute(update(KEY_SCOPES).where(KEY_SCOPES.c.key == name).values(**values))
    if changed.rowcount == 0:  # a key from before there were scopes
        connection.execute(insert(KEY_SCOPES).values(**{"key": name, "admin": False, "revoked": False, **values}))
