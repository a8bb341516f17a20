"""Experts as rows of the registry: read, inserted, replaced and marked for removal on an open connection."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection, Row

from .card import Card
from .records import ConflictError, ExpertRecord, State, UnknownExpertError, expert_record
from .schema import EXPERTS

_STATUS = select(*(column for column in EXPERTS.columns if column is not EXPERTS.c.card)).order_by(EXPERTS.c.name)
_AT_ONCE = 500  # names in one statement


def read(connection: Connection, known: Mapping[str, ExpertRecord]) -> list[ExpertRecord]:
    """All records in order of name. Of those in `known` that are as they were, the cards are not read again."""
    rows = {row.name: row for row in connection.execute(_STATUS)}
    stand = {name: known[name] for name, row in rows.items() if name in known and _is_still(known[name], row)}
    others = [name for name in rows if name not in stand]
    for start in range(0, len(others), _AT_ONCE):
        names = others[start : start + _AT_ONCE]
        for row in connection.execute(select(EXPERTS).where(EXPERTS.c.name.in_(names))).mappings():
            stand[row["name"]] = expert_record(row)
    return [stand[name] for name in rows if name in stand]


def _is_still(record: ExpertRecord, row: Row[Any]) -> bool:
    return (record.updated, record.generation, record.state, record.base_url, record.reason, record.removed) == (
        row.updated, row.generation, row.state, row.base_url, row.reason, row.removed,
    )  # fmt: skip


def read_one(connection: Connection, name: str) -> ExpertRecord:
    """
    Raises:
        UnknownExpertError: no expert has that name.
    """
    row = connection.execute(select(EXPERTS).where(EXPERTS.c.name == name)).mappings().one_or_none()
    if row is None:
        raise UnknownExpertError(f"no expert is named {name!r}")
    return expert_record(row)


def add(connection: Connection, card: Card) -> ExpertRecord:
    connection.execute(
        insert(EXPERTS).values(
            name=card.name, card=card.model_dump(mode="json"), generation=1, removed=False,
            state=State.REGISTERED, reason="", base_url=None, updated=time.time(),
        )
    )  # fmt: skip
    return read_one(connection, card.name)


def replace(connection: Connection, card: Card, expected_generation: int | None) -> ExpertRecord:
    """
    Raises:
        ConflictError: it is being removed, or changed since `expected_generation` was read.
    """
    before = read_one(connection, card.name)
    if before.removed:
        raise ConflictError(f"expert {card.name!r} is being removed; wait until it is gone")
    if expected_generation not in (None, before.generation):
        raise ConflictError(
            f"expert {card.name!r} is at generation {before.generation}, not {expected_generation}; read it again"
        )
    change(connection, card.name, card=card.model_dump(mode="json"), generation=before.generation + 1)
    return read_one(connection, card.name)


def mark_removed(connection: Connection, name: str) -> ExpertRecord:
    """
    Raises:
        ConflictError: prompted experts still use its engine.
    """
    read_one(connection, name)
    users = [
        record.name
        for record in read(connection, {})
        if getattr(record.card.backend, "engine", None) == name and not record.removed
    ]
    if users:
        raise ConflictError(f"expert {name!r} runs the engine of {', '.join(users)}; remove those first")
    change(connection, name, removed=True, state=State.DRAINING)
    return read_one(connection, name)


def change(connection: Connection, name: str, **values: object) -> None:
    connection.execute(update(EXPERTS).where(EXPERTS.c.name == name).values(updated=time.time(), **values))
