"""The registry: which experts there should be, how each of them is, and who may ask. SQLite (WAL) or Postgres."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine, delete, event, insert, inspect, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.schema import CreateTable

from . import expert_rows, key_rows, router_rows
from .card import Card
from .records import (
    ConflictError,
    ExpertRecord,
    KeyRecord,
    KeyScope,
    RegistryError,
    RouterRecord,
    SkillRecord,
    State,
    UnknownExpertError,
    key_digest,
)
from .schema import EXPERTS, KEYS, META, METADATA, SCHEMA_VERSION, SKILLS, configure_sqlite

logger = logging.getLogger("collegium.registry")

__all__ = [
    "ConflictError",
    "ExpertRecord",
    "KeyRecord",
    "KeyScope",
    "Registry",
    "RegistryError",
    "RouterRecord",
    "SkillRecord",
    "State",
    "UnknownExpertError",
    "key_digest",
]


class Registry:
    """Desired and observed state of a pool.

    Every write bumps `version()`, so readers poll one integer. All methods may raise RegistryError.
    """

    def __init__(self, url: str) -> None:
        """Open, and create what is missing. `url` is SQLAlchemy's, e.g. sqlite:////path or postgresql+psycopg://host/db."""
        if url.startswith(("postgresql://", "postgres://")):
            url = "postgresql+psycopg://" + url.split("://", 1)[1]
        try:
            self._engine = create_engine(url, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise RegistryError(
                "the registry URL cannot be used; accepted: sqlite:////absolute/path.db or "
                f"postgresql://user@host/database ({type(error).__name__})"
            ) from error
        if self._engine.dialect.name == "sqlite":
            _tell_empty(self._engine.url.database)
            event.listen(self._engine, "connect", configure_sqlite)
        self._known: Mapping[str, ExpertRecord] = {}
        self._create_schema()

    def close(self) -> None:
        self._engine.dispose()

    def version(self) -> int:
        """A number that grows with every write."""
        with self._read() as connection:
            return _meta(connection, "version")

    # Experts

    def experts(self) -> list[ExpertRecord]:
        """All records in order of name, those being removed included.

        Of an expert that nobody changed since the last call the same record is returned.
        """
        with self._read() as connection:
            return list(self._experts(connection).values())

    def expert(self, name: str) -> ExpertRecord:
        """One record.

        Raises:
            UnknownExpertError: no expert has that name.
        """
        with self._read() as connection:
            return expert_rows.read_one(connection, name)

    def add(self, card: Card) -> ExpertRecord:
        """Register a new expert.

        Raises:
            ConflictError: the name is taken.
        """
        try:
            with self._write() as connection:
                return expert_rows.add(connection, card)
        except IntegrityError as error:
            raise ConflictError(
                f"an expert named {card.name!r} is registered already; replace it or choose another name"
            ) from error

    def seed(self, cards: Iterable[Card]) -> None:
        """Add the cards that are missing and replace those that differ: all of them or, on an error, none.

        Raises:
            ConflictError: one of them is being removed.
        """
        with self._write() as connection:
            present = self._experts(connection)
            for card in cards:
                if card.name not in present:
                    expert_rows.add(connection, card)
                elif present[card.name].card != card:
                    expert_rows.replace(connection, card, None)

    def replace(self, card: Card, expected_generation: int | None = None) -> ExpertRecord:
        """Change an expert's card. What runs goes on serving until the new engine is ready.

        Raises:
            UnknownExpertError: no expert has that name.
            ConflictError: it is being removed, or changed since `expected_generation` was read.
        """
        with self._write() as connection:
            return expert_rows.replace(connection, card, expected_generation)

    def remove(self, name: str) -> ExpertRecord:
        """Ask for an expert's removal: no new request at once, running ones finish, then the record goes.

        Raises:
            UnknownExpertError: no expert has that name.
            ConflictError: prompted experts still use its engine.
        """
        with self._write() as connection:
            return expert_rows.mark_removed(connection, name)

    def forget(self, name: str) -> None:
        """Delete the record of a removed expert whose engine is gone."""
        with self._write() as connection:
            connection.execute(delete(EXPERTS).where(EXPERTS.c.name == name, EXPERTS.c.removed))

    def observe(self, name: str, state: State, reason: str = "", base_url: str | None = None) -> None:
        """Write back what the reconciler saw. Nothing is written, and no version spent, where nothing changed."""
        with self._read() as connection:
            row = connection.execute(select(EXPERTS).where(EXPERTS.c.name == name)).mappings().one_or_none()
        if row is None or (row["state"], row["reason"], row["base_url"]) == (state, reason, base_url):
            return
        with self._write() as connection:
            expert_rows.change(connection, name, state=state, reason=reason, base_url=base_url)

    # Skills

    def skills(self) -> list[SkillRecord]:
        with self._read() as connection:
            rows = connection.execute(select(SKILLS).order_by(SKILLS.c.expert, SKILLS.c.domain)).mappings()
            return [SkillRecord(**row) for row in rows]

    def set_skills(self, expert: str, skills: list[SkillRecord]) -> None:
        """Replace all that was measured of an expert.

        Raises:
            UnknownExpertError: no expert has that name.
        """
        with self._write() as connection:
            expert_rows.read_one(connection, expert)
            connection.execute(delete(SKILLS).where(SKILLS.c.expert == expert))
            for skill in skills:
                connection.execute(
                    insert(SKILLS).values(
                        expert=expert,
                        domain=skill.domain,
                        right=skill.right,
                        total=skill.total,
                        admitted=skill.admitted,
                    )
                )

    # API keys

    def keys(self) -> list[KeyRecord]:
        """All keys in order of name, revoked ones included."""
        with self._read() as connection:
            return key_rows.read(connection)

    def add_key(self, name: str, secret: str, scope: KeyScope | None = None) -> KeyRecord:
        """Keep a key's digest; the secret itself is not stored. Without a scope it may do everything but administer.

        Raises:
            ConflictError: the name is taken.
        """
        try:
            with self._write() as connection:
                return key_rows.add(connection, name, secret, scope or KeyScope())
        except IntegrityError as error:
            raise ConflictError(f"a key named {name!r} exists already; revoke it or choose another name") from error

    def rotate_key(self, name: str, secret: str, overlap: float = 0.0) -> bool:
        """Replace a key's secret; the old one still counts for `overlap` seconds. Whether there is such a key."""
        with self._write() as connection:
            return key_rows.rotate(connection, name, secret, overlap)

    def revoke_key(self, name: str) -> bool:
        """End a key but keep its record, so that the endpoint stays closed. Whether there was such a key."""
        with self._write() as connection:
            return key_rows.revoke(connection, name)

    def remove_key(self, name: str) -> bool:
        """Delete a key and its record. Without any record left everybody may ask. Whether there was such a key."""
        with self._write() as connection:
            return connection.execute(delete(KEYS).where(KEYS.c.name == name)).rowcount > 0

    # Router versions

    def promote(self, record: RouterRecord) -> None:
        """Make a router version the active one."""
        with self._write() as connection:
            router_rows.promote(connection, record)

    def rollback(self) -> str | None:
        """Deactivate the active version; returns the path of the one before, which is active again, or None."""
        with self._write() as connection:
            return router_rows.rollback(connection)

    def active_router(self) -> str | None:
        """Path of the active router artefact, or None for the starter."""
        with self._read() as connection:
            return router_rows.active(connection)

    def routers(self) -> list[RouterRecord]:
        """Every version that was ever promoted, the latest promotion first."""
        with self._read() as connection:
            return router_rows.read(connection)

    # Inner workings

    def _experts(self, connection: Connection) -> Mapping[str, ExpertRecord]:
        self._known = expert_rows.read(connection, self._known)
        return self._known

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise RegistryError(f"the registry cannot be read: {_first_line(error)}") from error

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                # First statement, so that concurrent writers queue here and read what the one before them wrote.
                connection.execute(update(META).where(META.c.key == "version").values(value=META.c.value + 1))
                yield connection
        except IntegrityError:
            raise
        except SQLAlchemyError as error:
            raise RegistryError(f"the registry cannot be written: {_first_line(error)}") from error

    def _create_schema(self) -> None:
        try:
            with self._engine.begin() as connection:
                _create_missing(connection)
                for key, value in (("version", 0), ("schema", SCHEMA_VERSION)):
                    if connection.execute(select(META).where(META.c.key == key)).first() is None:
                        connection.execute(insert(META).values(key=key, value=value))
                found = _meta(connection, "schema")
        except IntegrityError:
            return self._create_schema()  # another process created it in between
        except SQLAlchemyError as error:
            raise RegistryError(f"the registry cannot be opened: {_first_line(error)}") from error
        if found != SCHEMA_VERSION:
            raise RegistryError(
                f"the registry has schema {found}, this collegium reads schema {SCHEMA_VERSION}; use its own version"
            )
        return None


def _tell_empty(database: str | None) -> None:
    """An empty file is what a crash of the file system may leave of a registry: then nobody should wonder."""
    file = Path(database) if database else None
    if file is not None and file.is_file() and file.stat().st_size == 0:
        logger.warning("%s is an empty file: a new registry without experts and keys begins there", file)


def _create_missing(connection: Connection) -> None:
    """Create the tables that are missing, of which another process may create some at the same time."""
    found = inspect(connection)
    for table in METADATA.sorted_tables:
        if not found.has_table(table.name):
            connection.execute(CreateTable(table, if_not_exists=True))


def _meta(connection: Connection, key: str) -> int:
    return int(connection.execute(select(META.c.value).where(META.c.key == key)).scalar_one())


def _first_line(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
