"""What the registry hands out: records of experts, skills and keys, and its errors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.engine import RowMapping

from .card import Card, CardError, parse_card


class RegistryError(RuntimeError):
    """The registry cannot be reached, or holds something this version cannot read."""


class ConflictError(RegistryError):
    """The name is taken, or the record changed since it was read."""


class UnknownExpertError(RegistryError):
    """No expert has that name."""


class State(StrEnum):
    """An expert's life: registered -> starting -> ready -> draining; failed with a reason at any point."""

    REGISTERED = "registered"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One expert: the desired card and the observed state.

    `base_url` is the OpenAI base URL that answers now (it ends in /v1), kept while a new generation starts beside it;
    an adapter's has a fragment, the adapter's name on its engine. Of a remote expert with several URLs it holds those
    that answer, with spaces between them.
    `removed` means that it shall go; it takes no new request.
    """

    card: Card
    generation: int
    removed: bool
    state: State
    reason: str
    base_url: str | None
    updated: float

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def base_urls(self) -> tuple[str, ...]:
        """What answers now: several only of a remote expert with several URLs."""
        return tuple((self.base_url or "").split())

    @property
    def routable(self) -> bool:
        return self.base_url is not None and not self.removed


@dataclass(frozen=True, slots=True)
class SkillRecord:
    """What evaluations measured: `right` of `total` prompts of `domain`, and whether the gate admitted the expert."""

    expert: str
    domain: str
    right: int
    total: int
    admitted: bool


@dataclass(frozen=True, slots=True)
class KeyScope:
    """What an API key may do.

    It may use the experts it names and those admitted to one of its `domains`; with neither, all of them. An `admin`
    key opens the admin API and nothing else. Limits are None where there is none; `concurrent` counts running requests.
    """

    experts: frozenset[str] | None = None
    domains: frozenset[str] | None = None
    admin: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrent"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; it must be 1 or more")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """An API key: `digest` is the SHA-256 of the secret in hex.

    After a rotation the digest before it, `previous`, counts until `previous_until` (Unix time). A revoked key stays on
    record without a usable digest, so that revoking the last one does not open the endpoint to everybody.
    """

    name: str
    digest: str
    scope: KeyScope = KeyScope()
    revoked: bool = False
    previous: str | None = None
    previous_until: float = 0.0


@dataclass(frozen=True, slots=True)
class RouterRecord:
    """A router version that was promoted, last at Unix time `promoted`; `accuracy` is that on held-out rows."""

    version: str
    path: str
    kind: str = ""
    parent: str | None = None
    accuracy: float | None = None
    promoted: float = 0.0
    active: bool = False


def key_digest(secret: str) -> str:
    """SHA-256 in hex: enough for keys of 256 random bits, which need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def expert_record(row: RowMapping) -> ExpertRecord:
    """
    Raises:
        RegistryError: a newer version wrote a card that this one cannot read.
    """
    card = row["card"] if isinstance(row["card"], dict) else json.loads(row["card"])
    try:
        parsed = parse_card(card)
    except CardError as error:
        raise RegistryError(f"the registry holds a card that this version cannot read: {error}") from error
    return ExpertRecord(
        card=parsed,
        generation=row["generation"],
        removed=row["removed"],
        state=State(row["state"]),
        reason=row["reason"],
        base_url=row["base_url"],
        updated=row["updated"],
    )


def key_record(row: RowMapping) -> KeyRecord:
    """A row of api_keys with its scope beside it; a key from before there were scopes has none."""
    scope = KeyScope(
        experts=_names(row["experts"]),
        domains=_names(row["domains"]),
        admin=bool(row["admin"]),
        requests_per_minute=row["requests_per_minute"],
        tokens_per_minute=row["tokens_per_minute"],
        concurrent=row["concurrent"],
    )
    return KeyRecord(
        row["name"], row["digest"], scope, bool(row["revoked"]), row["previous"], row["previous_until"] or 0.0
    )


def _names(listed: list[str] | None) -> frozenset[str] | None:
    return None if listed is None else frozenset(listed)
