"""What the registry hands out: records of experts, skills and keys, and its errors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.engine import RowMapping

from .card import Card, parse_card


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

    `base_url` is the OpenAI base URL that answers now (it ends in /v1), kept while a new generation starts beside it.
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
class KeyRecord:
    """An API key: `digest` is the SHA-256 of the secret in hex; `experts` is its allow-list, or None for all."""

    name: str
    digest: str
    experts: frozenset[str] | None


def key_digest(secret: str) -> str:
    """SHA-256 in hex: enough for keys of 256 random bits, which need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


def expert_record(row: RowMapping) -> ExpertRecord:
    card = row["card"] if isinstance(row["card"], dict) else json.loads(row["card"])
    return ExpertRecord(
        card=parse_card(card),
        generation=row["generation"],
        removed=row["removed"],
        state=State(row["state"]),
        reason=row["reason"],
        base_url=row["base_url"],
        updated=row["updated"],
    )


def key_record(row: RowMapping) -> KeyRecord:
    return KeyRecord(row["name"], row["digest"], None if row["experts"] is None else frozenset(row["experts"]))
