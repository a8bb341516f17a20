"""Experts as rows of the registry: read, inserted, replaced and marked for removal on an open connection."""

from __future__ import annotations

import time
from collections.abc import Mapping

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection

from .card import Card
from .records import ConflictError, ExpertRecord, State, UnknownExpertError, expert_record
from .schema import EXPERTS

# Every change of an expert changes one of them.
_MARKS = select(EXPERTS.c.name, EXPERTS.c.updated, EXPERTS.c.generation).order_by(EXPERTS.c.name)
_AT_ONCE = 500  # names in one statement; rows that are fetched without letting other threads work


def read(connection: Connection, known: Mapping[str, ExpertRecord]) -> dict[str, ExpertRecord]:
    """All records in order of name. Of those in `known` that are as they were, the rows are not read again."""
    found: dict[str, ExpertRecord | None] = {}
    for rows in connection.execute(_MARKS).partitions(_AT_ONCE):
        for name, updated, generation in rows:
            record = known.get(name)
            stands = record is not None and record.updated == updated and record.generation == generation
            found[name] = record if stands else None
    changed = [name for name, record in found.items() if record is None]
    for start in range(0, len(changed), _AT_ONCE):
        names = changed[start : start + _AT_ONCE]
        for row in connection.execute(select(EXPERTS).where(EXPERTS.c.name.in_(names))).mappings():
            found[row["name"]] = expert_record(row)
    return {name: record for name, record in found.items() if record is not None}


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
    borrows = EXPERTS.c.card["backend"]["engine"].as_string() == name
    users = connection.execute(select(EXPERTS.c.name).where(borrows, ~EXPERTS.c.removed).order_by(EXPERTS.c.name))
    if names := users.scalars().all():
        raise ConflictError(f"expert {name!r} runs the engine of {', '.join(names)}; remove those first")
    change(connection, name, removed=True, state=State.DRAINING)
    return read_one(connection, name)


def change(connection: Connection, name: str, **values: object) -> None:
    connection.execute(update(EXPERTS).where(EXPERTS.c.name == name).values(updated=time.time(), **values))
