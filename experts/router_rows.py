"""Router versions as rows of the registry: a stack of promotions, and every version that was ever promoted."""

from __future__ import annotations

import time

from sqlalchemy import delete, insert, select
from sqlalchemy.engine import Connection

from .records import RouterRecord
from .schema import ROUTER_VERSIONS, ROUTERS


def promote(connection: Connection, record: RouterRecord) -> None:
    """Put a version on top of the stack, and on record for good."""
    now = time.time()
    connection.execute(insert(ROUTERS).values(version=record.version, path=record.path, promoted=now))
    connection.execute(delete(ROUTER_VERSIONS).where(ROUTER_VERSIONS.c.version == record.version))
    connection.execute(
        insert(ROUTER_VERSIONS).values(
            version=record.version,
            path=record.path,
            kind=record.kind,
            parent=record.parent,
            accuracy=record.accuracy,
            promoted=now,
        )
    )


def rollback(connection: Connection) -> str | None:
    """Take the newest off the stack; the path of the one that is active then, or None."""
    newest = select(ROUTERS.c.position).order_by(ROUTERS.c.position.desc()).limit(1)
    connection.execute(delete(ROUTERS).where(ROUTERS.c.position == newest.scalar_subquery()))
    return active(connection)


def active(connection: Connection) -> str | None:
    newest = select(ROUTERS.c.path).order_by(ROUTERS.c.position.desc()).limit(1)
    return connection.execute(newest).scalar_one_or_none()


def read(connection: Connection) -> list[RouterRecord]:
    """Every version, the latest promotion first; one from before versions were kept has its path and time only."""
    stack = connection.execute(select(ROUTERS).order_by(ROUTERS.c.position.desc())).mappings().all()
    on_top = stack[0]["version"] if stack else None
    kept = connection.execute(select(ROUTER_VERSIONS)).mappings().all()
    records = {
        row["version"]: RouterRecord(
            row["version"], row["path"], row["kind"], row["parent"], row["accuracy"], row["promoted"],
            active=row["version"] == on_top,
        )
        for row in kept
    }  # fmt: skip
    for row in stack:
        version = row["version"]
        records.setdefault(
            version, RouterRecord(version, row["path"], promoted=row["promoted"], active=version == on_top)
        )
    return sorted(records.values(), key=lambda record: (-record.promoted, record.version))
