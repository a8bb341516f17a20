"""The registry's tables, and how SQLite is opened so that they survive a crash."""

from __future__ import annotations

import sqlite3
import time
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
)  # fmt: skip

SCHEMA_VERSION = 1
_PATIENCE = 10  # seconds to wait for others that write
METADATA = MetaData()

META = Table(
    "meta", METADATA,
    Column("key", String(50), primary_key=True),
    Column("value", Integer, nullable=False),
)  # fmt: skip
EXPERTS = Table(
    "experts", METADATA,
    Column("name", String(63), primary_key=True),
    Column("card", JSON, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("removed", Boolean, nullable=False),
    Column("state", String(20), nullable=False),
    Column("reason", Text, nullable=False),
    Column("base_url", Text),
    Column("updated", Float, nullable=False),
)  # fmt: skip
SKILLS = Table(
    "skills", METADATA,
    Column("expert", String(63), ForeignKey("experts.name", ondelete="CASCADE")),
    Column("domain", String(100)),
    Column("right", Integer, nullable=False),
    Column("total", Integer, nullable=False),
    Column("admitted", Boolean, nullable=False),
    PrimaryKeyConstraint("expert", "domain"),
)  # fmt: skip
KEYS = Table(
    "api_keys", METADATA,
    Column("name", String(100), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("experts", JSON),
)  # fmt: skip
# Beside api_keys rather than in it: databases from before there were scopes open as they are.
KEY_SCOPES = Table(
    "api_key_scopes", METADATA,
    Column("key", String(100), ForeignKey("api_keys.name", ondelete="CASCADE"), primary_key=True),
    Column("domains", JSON),
    Column("admin", Boolean, nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("concurrent", Integer),
    Column("revoked", Boolean, nullable=False),
    Column("previous", String(64)),
    Column("previous_until", Float),
)  # fmt: skip
ROUTERS = Table(
    "routers", METADATA,
    Column("position", Integer, primary_key=True, autoincrement=True),
    Column("version", String(200), nullable=False),
    Column("path", Text, nullable=False),
    Column("promoted", Float, nullable=False),
)  # fmt: skip
# `routers` is the stack that rolling back shortens; here every version stays.
ROUTER_VERSIONS = Table(
    "router_versions", METADATA,
    Column("version", String(200), primary_key=True),
    Column("path", Text, nullable=False),
    Column("kind", String(50), nullable=False),
    Column("parent", String(200)),
    Column("accuracy", Float),
    Column("promoted", Float, nullable=False),
)  # fmt: skip


def configure_sqlite(connection: Any, _record: object) -> None:  # noqa: ANN401 - SQLAlchemy hands over the driver's object
    cursor = connection.cursor()
    for pragma in (f"busy_timeout={1000 * _PATIENCE}", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    _write_ahead(cursor)
    cursor.close()


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch a new database to WAL; for another process that does so too, SQLite itself does not wait."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # the rest of the code says why
            if not busy or time.monotonic() > until:
                raise
        time.sleep(0.01)
